"""A result on its image: masks, contours, boxes and captions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from solo_infer.errors import ResultError
from solo_infer.runtime.atomic_files import write_whole

Rgb = tuple[int, int, int]
Rectangle = tuple[int, int, int, int]  # x1, y1, x2, y2 in px, far edge exclusive

# Chosen and ordered so that all lie apart in OKLab, and those that follow one another, which instances of
# one class often get, farthest.
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


@dataclass(frozen=True)
class _Stroke:
    """Sizes in px that scale with the image."""

    line: int
    font: int

    @classmethod
    def of(cls, width: int, height: int) -> _Stroke:
        side = (width * height) ** 0.5
        return cls(line=max(1, round(side**0.5 / 12)), font=max(11, round(side / 40)))


@dataclass(frozen=True)
class _Caption:
    text: str
    color: Rgb
    box: Rectangle


def draw_instances(
    image: np.ndarray,
    *,
    masks: Iterable[np.ndarray],
    boxes: np.ndarray,
    labels: np.ndarray,
    names: Sequence[str],
    scores: np.ndarray,
    alpha: float = 0.5,
    boxes_visible: bool = False,
    captions: bool = True,
) -> Image.Image:
    """Draw instances on a copy of an image, the best on top.

    Each instance gets a color of its own, by its index, so that neighbors of one class differ.

    Args:
        image: (H, W, 3) uint8 RGB, 0..255; not modified.
        masks: N masks (H, W), bool, in the order of the instances. They are taken one at a time, so that
            a generator never has more than one whole mask in memory.
        boxes: (N, 4) float32 x1 y1 x2 y2 in px, far edge exclusive; zeros for an empty mask, which is
            not drawn. What a mask holds outside of its box is not drawn either.
        labels: (N,) int, 0..classes-1.
        names: N class names, for the captions.
        scores: (N,) float, 0..1.
        alpha: Opacity of the masks, 0..1.
        boxes_visible: Draw the boxes.
        captions: Write class name and score; a caption that is wider or higher than the image is left out.

    Returns:
        The drawing, of the size of the image, mode RGB.

    Raises:
        ResultError: The image is not (H, W, 3) uint8, alpha is out of range, or sizes do not fit.
    """
    _check_image(image, alpha)
    _check_instances(boxes, labels, names, scores)
    height, width = image.shape[:2]
    stroke = _Stroke.of(width, height)
    canvas = Image.fromarray(image)  # a copy, as PIL stores RGB in four bytes
    rectangles = [_pixels_of(box, width, height) for box in boxes.tolist()]
    crops = _crop_all(masks, rectangles, (height, width))
    best_last = [index for index in np.argsort(-scores, kind="stable")[::-1].tolist() if index in crops]
    for index in best_last:
        _draw_mask(canvas, crops[index], rectangles[index], _color(index), alpha, stroke)
    if boxes_visible:
        for index in best_last:
            _draw_box(canvas, rectangles[index], _color(index), stroke)
    if captions:
        shown = [
            _Caption(f"{names[index]} {scores[index]:.2f}", _color(index), rectangles[index])
            for index in best_last
        ]
        _draw_captions(canvas, shown, stroke)
    return canvas


def save_picture(picture: Image.Image, path: Path) -> Path:
    """Write a picture, of the type that the suffix names, whole or not at all.

    Args:
        picture: What to write.
        path: Where; ``~`` is expanded.

    Returns:
        The path written.

    Raises:
        ResultError: The suffix is no picture's, or the file cannot be written.
    """
    path = path.expanduser()
    if Image.registered_extensions().get(path.suffix.lower()) not in Image.SAVE:
        raise ResultError(f"Cannot write {str(path)!r}: expected a name that ends in .jpg, .png, .webp, ...")
    try:
        return write_whole(path, lambda temporary: picture.save(temporary, quality=_JPEG_QUALITY))
    except (OSError, ValueError) as error:
        raise ResultError(f"Cannot write {str(path)!r}: {error}. Check the folder, or its rights.") from error


def _check_image(image: Any, alpha: float) -> None:
    if not isinstance(image, np.ndarray) or image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        given = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise ResultError(f"Image to draw on is {given}: expected a numpy array (H, W, 3), uint8, RGB.")
    if image.size == 0:
        raise ResultError(f"Image to draw on has shape {image.shape}: expected at least one pixel.")
    if not 0.0 <= alpha <= 1.0:
        raise ResultError(f"alpha={alpha}: expected an opacity of 0..1.")


def _check_instances(boxes: np.ndarray, labels: np.ndarray, names: Sequence[str], scores: np.ndarray) -> None:
    count = len(scores)
    found = {
        "scores": (np.shape(scores), (count,)),
        "boxes": (np.shape(boxes), (count, 4)),
        "labels": (np.shape(labels), (count,)),
        "names": ((len(names),), (count,)),
    }
    for what, (shape, expected) in found.items():
        if shape != expected:
            raise ResultError(f"{what} of shape {shape} for {count} scores: expected {expected}.")
    if not np.isfinite(boxes).all():
        raise ResultError("Boxes hold NaN or infinity: expected pixels of the image.")


def _color(index: int) -> Rgb:
    return PALETTE[index % len(PALETTE)]


def _pixels_of(box: Sequence[float], width: int, height: int) -> Rectangle:
    """Return the whole pixels that a box touches, inside the image."""
    x1, y1 = (max(0, int(np.floor(value))) for value in box[:2])
    x2, y2 = min(width, int(np.ceil(box[2]))), min(height, int(np.ceil(box[3])))
    return x1, y1, x2, y2


def _crop_all(
    masks: Iterable[np.ndarray], rectangles: Sequence[Rectangle], size: tuple[int, int]
) -> dict[int, np.ndarray]:
    """Cut each mask to its rectangle and pack it to bits; leave out those whose rectangle is empty."""
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
    canvas: Image.Image, packed: np.ndarray, rectangle: Rectangle, color: Rgb, alpha: float, stroke: _Stroke
) -> None:
    x1, y1, x2, _ = rectangle
    mask = np.unpackbits(packed, axis=1, count=x2 - x1).view(bool)
    opacity = mask * np.uint8(255)
    np.copyto(opacity, round(255 * alpha), where=_shrink(mask, stroke.line))
    canvas.paste(color, (x1, y1), Image.fromarray(opacity))


def _shrink(mask: np.ndarray, steps: int) -> np.ndarray:
    """Take ``steps`` pixels off the border of a mask (H, W)."""
    for _ in range(steps):
        padded = np.pad(mask, 1)
        mask = mask & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask


def _draw_box(canvas: Image.Image, rectangle: Rectangle, color: Rgb, stroke: _Stroke) -> None:
    x1, y1, x2, y2 = rectangle
    ImageDraw.Draw(canvas).rectangle((x1, y1, x2 - 1, y2 - 1), outline=color, width=stroke.line)


def _draw_captions(canvas: Image.Image, captions: Sequence[_Caption], stroke: _Stroke) -> None:
    """Write captions given from the worst to the best; the best choose their places first."""
    pen = ImageDraw.Draw(canvas)
    font = _fitting_font([caption.text for caption in captions], stroke.font, canvas.width)
    margin = max(1, stroke.font // 5)
    ascent, descent = font.getmetrics()
    placed: list[tuple[_Caption, Rectangle]] = []
    for caption in reversed(captions):
        size = (int(np.ceil(font.getlength(caption.text))) + 2 * margin, ascent + descent + margin)
        if size[0] <= canvas.width and size[1] <= canvas.height:
            plate = _place(size, caption.box, canvas.size, [taken for _, taken in placed])
            placed.append((caption, plate))
    for caption, (x1, y1, x2, y2) in reversed(placed):
        pen.rounded_rectangle((x1, y1, x2 - 1, y2 - 1), radius=margin, fill=caption.color)
        ink = _ink(caption.color)
        pen.text((x1 + margin, y1 + margin // 2 + ascent), caption.text, fill=ink, font=font, anchor="ls")


def _fitting_font(texts: Sequence[str], size: int, width: int) -> ImageFont.FreeTypeFont:
    """Return the font, smaller if the longest text is wider than the image, but still legible."""
    font = _font(size)
    longest = max((font.getlength(text) for text in texts), default=0) + 2 * max(1, size // 5)
    if longest > width:
        font = _font(max(_MIN_FONT_SIZE, int(size * width / longest)))
    return font


def _font(size: int) -> ImageFont.FreeTypeFont:
    return cast(ImageFont.FreeTypeFont, ImageFont.load_default(size))  # which it is, with a size


def _place(
    size: tuple[int, int], box: Rectangle, canvas: tuple[int, int], taken: Sequence[Rectangle]
) -> Rectangle:
    """Return the first free of the places at a box; if none is, that which covers other captions least."""
    x1, y1, x2, y2 = box
    width, height = size
    left, right, middle = x1, x2 - width, (x1 + x2 - width) // 2
    places = np.array(
        [(left, y1 - height), (left, y1), (right, y1 - height), (right, y1)]
        + [(middle, (y1 + y2 - height) // 2), (left, y2 - height), (left, y2), (right, y2 - height)]
    ).clip(0, (canvas[0] - width, canvas[1] - height))
    others = np.array(taken).reshape(1, -1, 4)
    starts = np.maximum(places[:, None], others[:, :, :2])  # (places, captions, 2): x, y
    ends = np.minimum(places[:, None] + size, others[:, :, 2:])
    covered = (ends - starts).clip(0).prod(axis=2).sum(axis=1)
    x, y = places[int(covered.argmin())].tolist()
    return x, y, x + width, y + height


def _ink(plate: Rgb) -> Rgb:
    """Return white where it contrasts with a color by at least 3.3 to 1 (the ratio of WCAG), else black."""
    red, green, blue = ((value / 255) ** 2.2 for value in plate)
    luminance = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    return (255, 255, 255) if 1.05 / (luminance + 0.05) >= 3.3 else (0, 0, 0)
