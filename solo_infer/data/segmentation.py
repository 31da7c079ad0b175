"""Masks of COCO files: from polygons or run-length encoding (RLE) to checked compressed RLE."""

from __future__ import annotations

import math
from itertools import chain
from typing import Any

import numpy as np

from solo_infer.ops.rle import pycocotools_mask, run_lengths
from solo_infer.runtime.messages import quoted

MAX_SIDE = 1_000_000  # pixels
MAX_PIXELS = 2**31 - 1  # of an image; pycocotools counts pixels in 32 bits
MAX_OUTSIDE = 100_000  # pixels by which a polygon may leave its image
MAX_OUTLINE = 4_000_000  # pixels along all polygons of a mask; pycocotools takes 80 bytes for each

_MIN_NUMBERS = 6  # of a polygon: fewer than three points have no area
_NUMBERS = {int, float}
_MAX_DIGITS = 7  # characters of a number in compressed RLE
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
        return _checked_rle(segmentation, height, width)
    if not isinstance(segmentation, list):
        raise ValueError(f'"segmentation" is {quoted(segmentation)}: expected polygons or RLE.')
    parts = _split(segmentation)
    masks = [_checked_rle(part, height, width)[0] for part in parts if isinstance(part, dict)]
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
    return [encoded["counts"] for encoded in pycocotools_mask().frPyObjects(polygons, height, width)]


def _union(masks: list[bytes], height: int, width: int) -> tuple[bytes, int]:
    """Return the union of masks and its area, merged in groups: one after another takes quadratic time."""
    mask = pycocotools_mask()
    while len(masks) > 1:
        encoded = [{"size": [height, width], "counts": counts} for counts in masks]
        groups = [encoded[start : start + _MERGED] for start in range(0, len(encoded), _MERGED)]
        masks = [mask.merge(group)["counts"] for group in groups]
    return masks[0], int(mask.area({"size": [height, width], "counts": masks[0]}))


def _checked_rle(rle: dict[str, Any], height: int, width: int) -> tuple[bytes, int]:
    """Return the counts of compressed RLE and the area of RLE with any valid counts."""
    counts, size = rle.get("counts"), rle.get("size")
    if size != [height, width]:
        raise ValueError(f"RLE of size {quoted(size)} for an image of height {height}, width {width}.")
    most_runs = height * width + 2
    if isinstance(counts, str) and counts.isascii():
        if len(counts) > most_runs * _MAX_DIGITS:
            raise ValueError(f"RLE counts of {len(counts)} characters: too long for {height * width} pixels.")
        compressed = counts.encode("ascii")
        runs = run_lengths(compressed)
    elif isinstance(counts, list) and set(map(type, counts)) <= {int} and len(counts) <= most_runs:
        if not 0 <= min(counts, default=0) <= max(counts, default=0) <= height * width:
            raise ValueError(f"RLE counts are not in 0..{height * width}, the number of pixels of the image.")
        compressed, runs = None, np.array(counts, dtype=np.int64)
    else:
        raise ValueError('RLE "counts" are neither a list of integers nor ASCII text.')
    # pycocotools loops forever when it compares masks whose run lengths have different sums.
    if runs.min(initial=0) < 0 or runs.sum() != height * width:
        raise ValueError(f"RLE counts do not add up to the {height * width} pixels of the image.")
    if compressed is None or (runs[1:] == 0).any():
        compressed = _compress(runs, height, width)
    return compressed, int(runs[1::2].sum())


def _compress(runs: np.ndarray, height: int, width: int) -> bytes:
    """Return compressed RLE of run lengths, without empty runs, at which pycocotools may stop comparing."""
    mask = pycocotools_mask()
    is_inside = np.arange(runs.size) % 2
    is_inside, runs = is_inside[runs > 0], runs[runs > 0]
    starts = np.flatnonzero(np.diff(is_inside, prepend=-1))
    lengths = np.add.reduceat(runs, starts).tolist()
    rle = {"size": [height, width], "counts": [0, *lengths] if is_inside[0] else lengths}
    return mask.frPyObjects(rle, height, width)["counts"]
