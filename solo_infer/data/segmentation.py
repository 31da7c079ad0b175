"""Masks of COCO files: from polygons or run-length encoding (RLE) to checked compressed RLE."""

from __future__ import annotations

import math
from itertools import chain
from typing import Any

import numpy as np

from solo_infer.ops import rle
from solo_infer.runtime.messages import quoted

MAX_OUTSIDE = 100_000  # pixels by which a polygon may leave its image
MAX_OUTLINE = 4_000_000  # pixels along all polygons of a mask; pycocotools takes 80 bytes for each

_MIN_NUMBERS = 6  # of a polygon: fewer than three points have no area
_NUMBERS = {int, float}
_MERGED = 16  # masks merged at once


def to_rle(segmentation: Any, height: int, width: int) -> tuple[bytes, int] | None:
    """Convert a COCO segmentation to the counts of compressed RLE and the area in pixels.

    Masks equal those of pycocotools. Nothing reaches its C code that it would not survive: numbers that are
    not finite, polygons more than ``MAX_OUTSIDE`` pixels outside of the image or longer than ``MAX_OUTLINE``
    pixels, RLE of another size.

    Args:
        segmentation: Polygons in pixels, whose union is the mask ([[x, y, x, y, ...], ...]; points may be
            pairs, and a single polygon needs no list around it), RLE with "size" and "counts" (a list or a
            string), or a list of RLE.
        height: Height of the image in pixels, at most ``MAX_SIDE``.
        width: Width of the image in pixels, at most ``MAX_SIDE``; the image has at most ``MAX_PIXELS``.

    Returns:
        Counts and area; None if there is no mask: no segmentation, or only polygons below three points.

    Raises:
        ValueError: The segmentation is malformed.
    """
    if segmentation is None:
        return None
    if isinstance(segmentation, dict):
        return rle.check(segmentation, height, width)
    if not isinstance(segmentation, list):
        raise ValueError(f'"segmentation" is {quoted(segmentation)}: expected polygons or RLE.')
    parts = _split(segmentation)
    masks = [rle.check(part, height, width)[0] for part in parts if isinstance(part, dict)]
    polygons = [_coordinates(part) for part in parts if not isinstance(part, dict)]
    masks += _polygon_masks(_checked_polygons(polygons, height, width), height, width)
    if not masks:
        return None
    return _union(masks, height, width)


def _split(segmentation: list[Any]) -> list[Any]:
    """Return the polygons and RLE of a list, which may also be the numbers or the points of one polygon."""
    if not any(isinstance(part, list | dict) for part in segmentation):
        return [segmentation] if segmentation else []
    is_points = all(
        isinstance(part, list) and len(part) == 2 and not isinstance(part[0], list) for part in segmentation
    )
    return [segmentation] if is_points else segmentation


def _coordinates(polygon: Any) -> list[float]:
    """Return the numbers of a polygon, whose points may be pairs.

    Raises:
        ValueError: There is anything other than numbers.
    """
    if not isinstance(polygon, list):
        raise ValueError(f'"segmentation" has {quoted(polygon)} in its list: expected polygons or RLE.')
    if polygon and all(isinstance(point, list) for point in polygon):
        odd = next((point for point in polygon if len(point) != 2), None)
        if odd is not None:
            raise ValueError(f"A polygon has the point {quoted(odd)}: expected pairs of x and y.")
        polygon = list(chain.from_iterable(polygon))
    if not set(map(type, polygon)) <= _NUMBERS:
        other = next(number for number in polygon if type(number) not in _NUMBERS)
        raise ValueError(f"A polygon has the coordinate {quoted(other)}: expected a number in pixels.")
    return polygon


def _checked_polygons(polygons: list[list[float]], height: int, width: int) -> list[list[float]]:
    """Return the polygons of three points or more.

    Raises:
        ValueError: A coordinate is not finite or too far outside of the image, or the outline is too long.
    """
    length = 0.0
    for polygon in filter(None, polygons):
        if not _is_near(polygon, min(height, width)):
            _check_range(polygon[0::2], "x", width, height, width)
            _check_range(polygon[1::2], "y", height, height, width)
        length += len(polygon) * (max(polygon) - min(polygon) + 1)
    large = [polygon for polygon in polygons if len(polygon) >= _MIN_NUMBERS]
    if (
        length > MAX_OUTLINE and sum(map(_outline, large)) > MAX_OUTLINE
    ):  # the estimate is quick, but too high
        raise ValueError(
            f"The polygons are longer than {MAX_OUTLINE} pixels: expected the outline of an instance, or RLE."
        )
    return large


def _is_near(polygon: list[float], side: int) -> bool:
    """Return quickly whether all coordinates are finite and within the limits of a square image."""
    try:
        is_finite = math.isfinite(sum(polygon))
    except OverflowError:  # an integer beyond the range of float
        return False
    return is_finite and min(polygon) >= -MAX_OUTSIDE and max(polygon) <= side + MAX_OUTSIDE


def _check_range(values: list[float], axis: str, side: int, height: int, width: int) -> None:
    wrong = next((value for value in values if not -MAX_OUTSIDE <= value <= side + MAX_OUTSIDE), None)
    if wrong is not None:
        raise ValueError(
            f"A polygon has the {axis} coordinate {quoted(wrong)}: expected a finite number, at most "
            f"{MAX_OUTSIDE} pixels outside of the image of height {height}, width {width}."
        )


def _outline(polygon: list[float]) -> float:
    """Return the length of a closed polygon, where diagonal steps count as 1."""
    points = np.array(polygon[: len(polygon) // 2 * 2], dtype=np.float64).reshape(-1, 2)
    return float((np.abs(points - np.roll(points, 1, axis=0)).max(axis=1) + 1).sum())


def _polygon_masks(polygons: list[list[float]], height: int, width: int) -> list[bytes]:
    if not polygons:
        return []
    return [encoded["counts"] for encoded in rle.pycocotools_mask().frPyObjects(polygons, height, width)]


def _union(masks: list[bytes], height: int, width: int) -> tuple[bytes, int]:
    """Return the union of masks and its area, merged in groups: one after another takes quadratic time."""
    mask = rle.pycocotools_mask()
    while len(masks) > 1:
        encoded = [{"size": [height, width], "counts": counts} for counts in masks]
        groups = [encoded[start : start + _MERGED] for start in range(0, len(encoded), _MERGED)]
        masks = [mask.merge(group)["counts"] for group in groups]
    return masks[0], int(mask.area({"size": [height, width], "counts": masks[0]}))
