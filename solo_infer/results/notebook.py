"""Pictures for notebooks, which embed them in their files: PNG of bounded size."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from solo_infer.results.caption_text import load_font
from solo_infer.results.drawing import draw_instances

_LONGEST_SIDE = 1200  # pixels of a picture
_COLUMNS, _ROWS, _GAP = 3, 4, 8  # of the picture of several drawings; pixels between them
_FONT_SIZE = 18  # pixels
_BACKGROUND = 64  # gray of an instance without an image
_LEAST_CROP = 160  # pixels along each side of the image around an instance

Box = tuple[float, float, float, float]


def drawing_png(drawing: Image.Image) -> bytes:
    """Return a drawing as PNG, reduced in size if it is large."""
    return _png(_reduced(drawing, _LONGEST_SIDE))


def drawings_png(drawings: Sequence[Image.Image], total: int) -> bytes:
    """Return drawings in rows as one PNG.

    Args:
        drawings: Drawings, reduced by ``reduced_for_rows``.
        total: Number of images that the picture stands for; the number of the others is written below.
    """
    rows = [drawings[start : start + _COLUMNS] for start in range(0, len(drawings), _COLUMNS)]
    width = max(sum(drawing.width for drawing in row) + _GAP * (len(row) - 1) for row in rows)
    heights = [max(drawing.height for drawing in row) for row in rows]
    others = total - len(drawings)
    footer = 2 * _FONT_SIZE if others else 0
    sheet = Image.new("RGB", (width, sum(heights) + _GAP * (len(rows) - 1) + footer), "white")
    top = 0
    for row, height in zip(rows, heights, strict=True):
        left = 0
        for drawing in row:
            sheet.paste(drawing, (left, top))
            left += drawing.width + _GAP
        top += height + _GAP
    if others:
        font = load_font(None, _FONT_SIZE)
        ImageDraw.Draw(sheet).text((0, top), f"{others} more", fill="black", font=font)
    return _png(sheet)


def reduced_for_rows(drawing: Image.Image) -> Image.Image:
    """Return a drawing at the size that it has among others in ``drawings_png``."""
    return _reduced(drawing, (_LONGEST_SIDE - _GAP * (_COLUMNS - 1)) // _COLUMNS)


def most_drawings() -> int:
    """Return the greatest number of drawings in one picture."""
    return _COLUMNS * _ROWS


def instance_png(image: np.ndarray | None, mask: np.ndarray, box: Box, name: str, score: float) -> bytes:
    """Return an instance on the part of the image around it as PNG.

    Args:
        image: (H, W, 3) uint8 RGB, or None for a plain background.
        mask: (H, W) bool.
        box: x1, y1, x2, y2 in pixels.
        name: Class name.
        score: Score, 0..1.
    """
    height, width = mask.shape
    x1, x2 = _widened(box[0], box[2], width)
    y1, y2 = _widened(box[1], box[3], height)
    if image is None or image.shape[:2] != mask.shape:
        crop = np.full((y2 - y1, x2 - x1, 3), _BACKGROUND, np.uint8)
    else:
        crop = np.ascontiguousarray(image[y1:y2, x1:x2])
    drawing = draw_instances(
        crop,
        masks=[mask[y1:y2, x1:x2]],
        boxes=np.array([box], np.float32) - np.array([[x1, y1, x1, y1]], np.float32),
        names=[name],
        scores=np.array([score], np.float32),
    )
    return drawing_png(drawing)


def _widened(start: float, end: float, length: int) -> tuple[int, int]:
    """Return pixels start..end with half as many pixels on either side, at least ``_LEAST_CROP``, clipped."""
    margin = max((end - start) / 2, (_LEAST_CROP - (end - start)) / 2)
    return max(int(start - margin), 0), min(int(np.ceil(end + margin)), length)


def _reduced(drawing: Image.Image, longest: int) -> Image.Image:
    reduced = drawing.copy()
    reduced.thumbnail((longest, longest))
    return reduced


def _png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()
