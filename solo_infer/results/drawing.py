"""Drawing of instances on an image: masks, contours, boxes and captions."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageDraw

from solo_infer.errors import ResultError
from solo_infer.results.caption_layout import Rectangle, leader_line, place_captions
from solo_infer.results.caption_text import Font, caption_text, load_font
from solo_infer.runtime.atomic_files import write_whole
from solo_infer.runtime.messages import quoted, shortened

logger = logging.getLogger(__name__)

Rgb = tuple[int, int, int]

# All colors are well separated in OKLab, consecutive ones most: instances of one class often get those.
PALETTE: tuple[Rgb, ...] = (
    (255, 64, 64),
    (32, 128, 255),
    (64, 224, 64),
    (255, 192, 0),
    (192, 64, 255),
    (64, 224, 224),
    (255, 112, 0),
    (224, 160, 224),
    (192, 64, 96),
    (128, 192, 0),
    (255, 160, 128),
    (128, 64, 255),
    (0, 160, 192),
    (255, 0, 160),
    (160, 128, 255),
    (192, 128, 64),
    (96, 255, 160),
    (128, 192, 255),
    (160, 96, 160),
    (96, 128, 0),
)
_MIN_FONT_SIZE = 8
_JPEG_QUALITY = 95
_SOFTWARE = "solo_infer"  # EXIF entry of drawings


@dataclass(frozen=True)
class _Sizes:
    """Line width and font size in pixels, in proportion to the image."""

    line: int
    font: int

    @classmethod
    def for_image(cls, width: int, height: int) -> _Sizes:
        side = (width * height) ** 0.5
        return cls(line=max(1, round(side**0.5 / 12)), font=max(11, round(side / 40)))


@dataclass(frozen=True)
class _Caption:
    text: str
    font_path: str | None
    color: Rgb
    box: Rectangle


def draw_instances(
    image: np.ndarray,
    *,
    masks: Iterable[np.ndarray],
    boxes: np.ndarray,
    names: Sequence[str],
    scores: np.ndarray,
    alpha: float = 0.5,
    boxes_visible: bool = False,
    captions: bool = True,
    font: str | os.PathLike[str] | None = None,
    colors: Sequence[int] | None = None,
) -> Image.Image:
    r"""Draw instances on a copy of an image, those with the highest scores on top.

    Args:
        image: (H, W, 3) uint8 RGB, 0..255; not modified.
        masks: N masks (H, W), bool, in the order of the instances. They are consumed one at a time, so that
            with a generator only one full-size mask is in memory.
        boxes: (N, 4) float32 x1 y1 x2 y2 in pixels, far edge exclusive; zeros for an empty mask, which is
            not drawn. Pixels of a mask outside its box are not drawn either.
        names: N class names, for the captions.
        scores: (N,) float, 0..1.
        alpha: Opacity of the masks, 0..1.
        boxes_visible: Whether to draw the boxes.
        captions: Whether to write class names and scores. Captions do not overlap; a line connects those
            that are far from their boxes. Captions without a free place, or larger than the image, are
            omitted.
        font: Font file for the captions. Texts with characters that it lacks use Pillow's font or one of the
            system. Characters that no font has are written as escapes, such as ``\u732b``.
        colors: N indices into ``PALETTE``. Defaults to the positions of the instances, so that neighbors of
            one class differ.

    Returns:
        Drawing of mode RGB and the size of the image.

    Raises:
        ResultError: The image is not (H, W, 3) uint8, alpha is out of range, sizes do not match, or the font
            cannot be read.
    """
    _check_image(image, alpha)
    _check_instances(boxes, names, scores)
    height, width = image.shape[:2]
    sizes = _Sizes.for_image(width, height)
    rgb = [_color(index) for index in (range(len(names)) if colors is None else colors)]
    canvas = Image.fromarray(image)  # a copy, because PIL stores RGB in four bytes
    rectangles = [_enclosing_pixels(box, width, height) for box in boxes.tolist()]
    crops = _crop_all(masks, rectangles, (height, width))
    best_last = [index for index in np.argsort(-scores, kind="stable")[::-1].tolist() if index in crops]
    for index in best_last:
        _draw_mask(canvas, crops[index], rectangles[index], rgb[index], alpha, sizes)
    if boxes_visible:
        for index in best_last:
            _draw_box(canvas, rectangles[index], rgb[index], sizes)
    if captions:
        drawn = {name: caption_text(name, font) for name in set(names)}
        texts = [
            _Caption(
                f"{drawn[names[index]].text} {scores[index]:.2f}",
                drawn[names[index]].font_path,
                rgb[index],
                rectangles[index],
            )
            for index in best_last
        ]
        _draw_captions(canvas, texts, sizes)
    return canvas


def is_own_drawing(path: str | os.PathLike[str]) -> bool:
    """Return whether ``save_image`` wrote an image file in a format with EXIF (JPEG, PNG, WebP, TIFF)."""
    try:
        with Image.open(path) as image:
            return image.getexif().get(ExifTags.Base.Software) == _SOFTWARE
    except Exception as error:  # Pillow raises almost anything for damaged files
        logger.debug("%s: not read as a drawing: %s", path, error)
        return False


def save_image(image: Image.Image, path: str | os.PathLike[str]) -> Path:
    """Write an image file atomically; the suffix selects the format.

    Args:
        image: Image to write.
        path: Path of the file; ``~`` is expanded.

    Returns:
        Path of the file, expanded.

    Raises:
        ResultError: The suffix is not that of an image format, or the file cannot be written.
    """
    path = Path(os.path.expanduser(path))
    if Image.registered_extensions().get(path.suffix.lower()) not in Image.SAVE:
        raise ResultError(
            f"Cannot write {quoted(path, 200)}: expected a file name ending in .jpg, .png, .webp, ..."
        )
    exif = Image.Exif()
    exif[ExifTags.Base.Software] = _SOFTWARE
    try:
        return write_whole(path, lambda temporary: image.save(temporary, quality=_JPEG_QUALITY, exif=exif))
    except (OSError, ValueError) as error:
        raise ResultError(
            f"Cannot write {quoted(path, 200)}: {shortened(error)}. Check the folder and its permissions."
        ) from error


def _check_image(image: Any, alpha: float) -> None:
    if not isinstance(image, np.ndarray) or image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        description = (
            f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        )
        raise ResultError(f"Image to draw on is {description}: expected a numpy array (H, W, 3), uint8, RGB.")
    if image.size == 0:
        raise ResultError(f"Image to draw on has shape {image.shape}: expected at least one pixel.")
    if not 0.0 <= alpha <= 1.0:
        raise ResultError(f"alpha={alpha}: expected an opacity of 0..1.")


def _check_instances(boxes: np.ndarray, names: Sequence[str], scores: np.ndarray) -> None:
    count = len(scores)
    shapes = {
        "scores": (np.shape(scores), (count,)),
        "boxes": (np.shape(boxes), (count, 4)),
        "names": ((len(names),), (count,)),
    }
    for name, (shape, expected) in shapes.items():
        if shape != expected:
            raise ResultError(f"{name} of shape {shape} for {count} scores: expected {expected}.")
    if not np.isfinite(boxes).all():
        raise ResultError("boxes contain NaN or infinity: expected pixels of the image.")


def _color(index: int) -> Rgb:
    return PALETTE[index % len(PALETTE)]


def _enclosing_pixels(box: Sequence[float], width: int, height: int) -> Rectangle:
    """Return the pixels that a box touches, clipped to the image."""
    x1, y1 = (max(0, int(np.floor(value))) for value in box[:2])
    x2, y2 = min(width, int(np.ceil(box[2]))), min(height, int(np.ceil(box[3])))
    return x1, y1, x2, y2


def _crop_all(
    masks: Iterable[np.ndarray], rectangles: Sequence[Rectangle], size: tuple[int, int]
) -> dict[int, np.ndarray]:
    """Crop each mask to its rectangle and pack it to bits; omit masks with an empty rectangle."""
    crops: dict[int, np.ndarray] = {}
    count = 0
    for index, mask in enumerate(masks):
        if index == len(rectangles):
            raise ResultError(f"More masks than the {len(rectangles)} scores: expected one each.")
        if mask.shape != size or mask.dtype != np.bool_:
            raise ResultError(
                f"Mask {index} is {mask.dtype} {mask.shape}: expected bool {size}, the size of the image."
            )
        x1, y1, x2, y2 = rectangles[index]
        if x1 < x2 and y1 < y2:
            crops[index] = np.packbits(mask[y1:y2, x1:x2], axis=1)
        count = index + 1
    if count < len(rectangles):
        raise ResultError(f"{count} masks for {len(rectangles)} scores: expected one each.")
    return crops


def _draw_mask(
    canvas: Image.Image, packed: np.ndarray, rectangle: Rectangle, color: Rgb, alpha: float, sizes: _Sizes
) -> None:
    x1, y1, x2, _ = rectangle
    mask = np.unpackbits(packed, axis=1, count=x2 - x1).view(bool)
    opacity = mask * np.uint8(255)
    np.copyto(opacity, round(255 * alpha), where=_erode(mask, sizes.line))
    canvas.paste(color, (x1, y1), Image.fromarray(opacity))


def _erode(mask: np.ndarray, steps: int) -> np.ndarray:
    """Remove ``steps`` pixels from the border of a mask (H, W)."""
    for _ in range(steps):
        padded = np.pad(mask, 1)
        mask = mask & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask


def _draw_box(canvas: Image.Image, rectangle: Rectangle, color: Rgb, sizes: _Sizes) -> None:
    x1, y1, x2, y2 = rectangle
    ImageDraw.Draw(canvas).rectangle((x1, y1, x2 - 1, y2 - 1), outline=color, width=sizes.line)


def _draw_captions(canvas: Image.Image, captions: Sequence[_Caption], sizes: _Sizes) -> None:
    """Write captions, ordered from the lowest to the highest score; the highest are placed first."""
    draw = ImageDraw.Draw(canvas)
    fonts = _fitting_fonts(captions, sizes.font, canvas.width)
    margin = max(1, sizes.font // 5)
    best_first = captions[::-1]
    plate_sizes = []
    for caption in best_first:
        font = fonts[caption.font_path]
        ascent, descent = font.getmetrics()
        plate_sizes.append(
            (int(np.ceil(font.getlength(caption.text))) + 2 * margin, ascent + descent + margin)
        )
    plates = place_captions(plate_sizes, [caption.box for caption in best_first], canvas.size)
    placed = [
        (caption, plate) for caption, plate in zip(best_first, plates, strict=True) if plate is not None
    ]
    for caption, plate in placed:
        line = leader_line(plate, caption.box)
        if line is not None:
            draw.line(line, fill=caption.color, width=sizes.line)
    for caption, (x1, y1, x2, y2) in placed:
        font = fonts[caption.font_path]
        draw.rounded_rectangle((x1, y1, x2 - 1, y2 - 1), radius=margin, fill=caption.color)
        draw.text(
            (x1 + margin, y1 + margin // 2 + font.getmetrics()[0]),
            caption.text,
            fill=_text_color(caption.color),
            font=font,
            anchor="ls",
        )


def _fitting_fonts(captions: Sequence[_Caption], size: int, width: int) -> dict[str | None, Font]:
    """Return the fonts by path, reduced to a legible size if the longest text is wider than the image."""
    paths = {caption.font_path for caption in captions}
    fonts = {path: load_font(path, size) for path in paths}
    lengths = [fonts[caption.font_path].getlength(caption.text) for caption in captions]
    longest = max(lengths, default=0) + 2 * max(1, size // 5)
    if longest > width:
        size = max(_MIN_FONT_SIZE, int(size * width / longest))
        fonts = {path: load_font(path, size) for path in paths}
    return fonts


def _text_color(background: Rgb) -> Rgb:
    """Return white if its WCAG contrast ratio to the background is at least 3.3, else black."""
    red, green, blue = ((value / 255) ** 2.2 for value in background)
    luminance = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    return (255, 255, 255) if 1.05 / (luminance + 0.05) >= 3.3 else (0, 0, 0)
