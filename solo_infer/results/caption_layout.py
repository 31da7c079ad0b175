"""Positions of captions: close to their boxes, inside the image, and never on top of each other."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Rectangle = tuple[int, int, int, int]  # x1, y1, x2, y2 in pixels, far edge exclusive


def place_captions(
    sizes: Sequence[tuple[int, int]], boxes: Sequence[Rectangle], canvas: tuple[int, int]
) -> list[Rectangle | None]:
    """Return a rectangle for each caption, None for those without a free place.

    Captions are placed in order, so that the first ones are closest to their boxes.

    Args:
        sizes: (width, height) of each caption in pixels.
        boxes: Box of the instance of each caption.
        canvas: (width, height) of the image in pixels.
    """
    rectangles: list[Rectangle | None] = []
    occupied = np.empty((0, 4), np.int64)
    for size, box in zip(sizes, boxes, strict=True):
        rectangle = None
        if size[0] <= canvas[0] and size[1] <= canvas[1]:
            rectangle = _first_free(_at_box(size, box, canvas), size, occupied)
            if rectangle is None:
                rectangle = _first_free(_around_box(size, box, canvas), size, occupied)
        if rectangle is not None:
            occupied = np.concatenate([occupied, np.array([rectangle], np.int64)])
        rectangles.append(rectangle)
    return rectangles


def leader_line(caption: Rectangle, box: Rectangle) -> tuple[int, int, int, int] | None:
    """Return the line x1 y1 x2 y2 from a caption to its box, None if they are close to each other."""
    (x1, x2), (y1, y2) = (_closest_points(caption[axis::2], box[axis::2]) for axis in (0, 1))
    is_close = max(abs(x1 - x2), abs(y1 - y2)) < caption[3] - caption[1]
    return None if is_close else (x1, y1, x2, y2)


def _closest_points(first: Sequence[int], second: Sequence[int]) -> tuple[int, int]:
    """Return the points of two intervals that are closest to each other."""
    start, end = max(first[0], second[0]), min(first[1], second[1])
    if start < end:
        return (start + end) // 2, (start + end) // 2
    return (first[1] - 1, second[0]) if first[1] <= second[0] else (first[0], second[1] - 1)


def _first_free(positions: np.ndarray, size: tuple[int, int], occupied: np.ndarray) -> Rectangle | None:
    """Return the first of the positions (P, 2) x, y where a caption overlaps no rectangle (R, 4)."""
    ends = positions + size
    overlaps = (positions[:, None] < occupied[:, 2:]) & (ends[:, None] > occupied[:, :2])
    free = np.flatnonzero(~np.any(np.all(overlaps, axis=2), axis=1))
    if not len(free):
        return None
    x, y = positions[free[0]].tolist()
    return x, y, x + size[0], y + size[1]


def _at_box(size: tuple[int, int], box: Rectangle, canvas: tuple[int, int]) -> np.ndarray:
    """Return the preferred positions (P, 2) at the corners and the center of a box, inside the image."""
    x1, y1, x2, y2 = box
    width, height = size
    left, right, middle = x1, x2 - width, (x1 + x2 - width) // 2
    positions = [(left, y1 - height), (left, y1), (right, y1 - height), (right, y1)]
    positions += [(middle, (y1 + y2 - height) // 2), (left, y2 - height), (left, y2), (right, y2 - height)]
    return np.array(positions).clip(0, (canvas[0] - width, canvas[1] - height))


def _around_box(size: tuple[int, int], box: Rectangle, canvas: tuple[int, int]) -> np.ndarray:
    """Return positions (P, 2) on a grid over the whole image, the closest to a box first."""
    width, height = size
    # Half a caption's height is fine enough that rows of captions leave no unused gaps.
    columns = np.unique(np.append(np.arange(0, canvas[0] - width, height), canvas[0] - width))
    rows = np.unique(np.append(np.arange(0, canvas[1] - height, max(height // 2, 1)), canvas[1] - height))
    x, y = (values.flatten() for values in np.meshgrid(columns, rows))
    gap_x = np.maximum(np.maximum(box[0] - (x + width), x - box[2]), 0)
    gap_y = np.maximum(np.maximum(box[1] - (y + height), y - box[3]), 0)
    # Of equal gaps, the position whose center is closest to that of the box.
    offset = np.hypot(2 * x + width - box[0] - box[2], 2 * y + height - box[1] - box[3])
    order = np.lexsort((offset, np.hypot(gap_x, gap_y)))
    return np.stack([x, y], axis=1)[order]
