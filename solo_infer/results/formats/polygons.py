"""Polygons of masks along the edges of pixels, with holes and several parts; rasterized, they are the mask.

A mask is a list of polygons, one for each part. Vertices are corners of pixels: pixel (y, x) is the square
from (x, y) to (x + 1, y + 1). Pixels that touch only at a corner are different parts, so that no ring crosses
or touches itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from solo_infer.errors import ResultError

# Which of the four pixels around a vertex are set: top left 1, top right 2, bottom left 4, bottom right 8.
_TOP_LEFT, _TOP_RIGHT, _BOTTOM_LEFT, _BOTTOM_RIGHT = 1, 2, 4, 8
_FALLING = _TOP_LEFT + _BOTTOM_RIGHT  # two pixels that touch at a corner
_RISING = _TOP_RIGHT + _BOTTOM_LEFT
_TURNS = np.zeros(16, np.uint8)  # number of times that the outline turns at a vertex
_TURNS[[1, 2, 4, 8, 7, 11, 13, 14]] = 1
_TURNS[[_FALLING, _RISING]] = 2
_MAX_CROSSINGS = 2**28  # of the outline and the rows of an image, in ``rasterize``


class Polygon(NamedTuple):
    """One part of a mask.

    Attributes:
        exterior: (K, 2) int32, corners x, y of the outer ring in pixels, clockwise in the image; the first is
            not repeated.
        holes: Rings of the same kind, counterclockwise.
    """

    exterior: np.ndarray
    holes: tuple[np.ndarray, ...] = ()

    @property
    def rings(self) -> list[np.ndarray]:
        """The exterior and the holes."""
        return [self.exterior, *self.holes]


def trace(mask: np.ndarray) -> list[Polygon]:
    """Return the polygons of a mask, one for each part, from the top to the bottom.

    Args:
        mask: (H, W) bool. An empty mask has no polygons.

    Raises:
        ResultError: The mask is of another shape or dtype.
    """
    if not isinstance(mask, np.ndarray) or mask.ndim != 2 or mask.dtype != np.bool_:
        given = f"{getattr(mask, 'dtype', type(mask).__name__)} {tuple(getattr(mask, 'shape', ()))}"
        raise ResultError(f"Mask {given}: expected a numpy array (H, W) bool.")
    rows, columns = mask.any(axis=1).nonzero()[0], mask.any(axis=0).nonzero()[0]
    if not rows.size:
        return []
    top, left = int(rows[0]), int(columns[0])
    padded = np.pad(mask[top : rows[-1] + 1, left : columns[-1] + 1], 1)
    points, following, partners = _corners(padded)
    order, starts = _cycles(following)
    x, y = points[order].T
    ring_of = np.empty(order.size, np.int64)
    ring_of[order] = np.repeat(np.arange(starts.size), np.diff(starts, append=order.size))
    cross = x * np.roll(y, -1) - np.roll(x, -1) * y  # the last corner of a ring is corrected below
    last = np.append(starts[1:], order.size) - 1
    cross[last] = x[last] * y[starts] - x[starts] * y[last]
    is_hole = np.add.reduceat(cross, starts) < 0
    owners = _owners(padded, points, ring_of, partners, is_hole, order[starts])
    rings = np.split((points[order] + (left, top)).astype(np.int32), starts[1:])
    holes: dict[int, list[np.ndarray]] = {int(ring): [] for ring in np.flatnonzero(~is_hole)}
    for ring in np.flatnonzero(is_hole):
        holes[int(owners[ring])].append(rings[ring])
    return [Polygon(rings[ring], tuple(inner)) for ring, inner in holes.items()]


def _corners(padded: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the corners of the outline of a mask with a border of one empty pixel.

    Returns:
        Corners (N, 2) int64 x, y in the order of rows, twice where the outline turns twice; the index (N,) of
        the next corner along the outline, with the mask to the right; and the index (N,) of the corner at the
        other end of the vertical edge.
    """
    bits = padded.view(np.uint8)
    around = bits[:-1, :-1] + 2 * bits[:-1, 1:] + 4 * bits[1:, :-1] + 8 * bits[1:, 1:]
    turns = _TURNS[around]
    y, x = turns.nonzero()
    repeats, pattern = turns[y, x], around[y, x]
    is_second = np.zeros(int(repeats.sum()), bool)
    is_second[np.cumsum(repeats, dtype=np.int64)[repeats == 2] - 1] = True
    x, y, pattern = (np.repeat(values, repeats) for values in (x, y, pattern))
    # The corners of a row, and those of a column, are by turns the first and the last of an edge. At a vertex
    # with two turns, the first one has the edge to the left: it goes on upwards at a pixel in the top left.
    beside = np.arange(x.size) ^ 1
    is_upper = is_second ^ (pattern == _FALLING)
    by_column = np.lexsort((~is_upper, y, x))
    above = np.empty(x.size, np.int64)
    above[by_column[0::2]], above[by_column[1::2]] = by_column[1::2], by_column[0::2]
    # The outline goes to the right with the mask below the edge, and to the left with the mask above it.
    is_left_end = np.arange(x.size) % 2 == 0
    leaves_right, leaves_left = pattern & _BOTTOM_RIGHT > 0, pattern & _TOP_LEFT > 0
    following = np.where(np.where(is_left_end, leaves_right, leaves_left), beside, above)
    # Where one ring touches itself, it is cut in two.
    roots = _roots(following)
    second = np.flatnonzero(is_second)
    second = second[roots[second] == roots[second - 1]]
    following[second], following[second - 1] = following[second - 1], following[second]
    return np.stack((x, y), axis=1), following, above


def _roots(following: np.ndarray) -> np.ndarray:
    """Return the smallest index of each cycle of a permutation, by doubling the steps."""
    roots, steps = np.arange(following.size), following
    while True:
        smaller = np.minimum(roots, roots[steps])
        if np.array_equal(smaller, roots):
            return roots
        roots, steps = smaller, steps[steps]


def _cycles(following: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices of a permutation cycle by cycle, and where each one starts."""
    roots = _roots(following)
    is_last = roots[following] == following
    steps = np.where(is_last, np.arange(following.size), following)
    left = np.where(is_last, 0, 1)  # number of steps to the last index of the cycle
    while (left[steps] > 0).any():
        left, steps = left + left[steps], steps[steps]
    order = np.lexsort((-left, roots))
    return order, np.flatnonzero(np.diff(roots[order], prepend=-1))


def _owners(
    padded: np.ndarray,
    points: np.ndarray,
    ring_of: np.ndarray,
    above: np.ndarray,
    is_hole: np.ndarray,
    first: np.ndarray,
) -> np.ndarray:
    """Return the exterior ring (R,) of the part of each ring.

    The pixel above the first corner of a hole belongs to its part. The run of pixels to the left of that one
    ends at the exterior ring, or at a hole of the same part that starts farther up.
    """
    height, width = padded.shape
    owners = np.arange(is_hole.size)
    holes = np.flatnonzero(is_hole)
    if not holes.size:
        return owners
    run_starts = np.flatnonzero(np.diff(padded.ravel().view(np.int8), prepend=0) == 1)
    x, y = points[first[holes]].T
    pixels = y * width + x + 1  # in the padded mask, above the edge that starts at the corner to the left
    starts = run_starts[np.searchsorted(run_starts, pixels, side="right") - 1]
    # Vertical edges by their column and their upper end.
    edges = np.flatnonzero(points[:, 1] < points[above, 1])
    keys = points[edges, 0] * height + points[edges, 1]
    edges = edges[np.argsort(keys)]
    keys.sort()
    wanted = (starts % width - 1) * height + starts // width - 1
    beside = ring_of[edges[np.searchsorted(keys, wanted, side="right") - 1]]
    for hole, ring in zip(holes, beside, strict=True):  # in the order of their first corners
        owners[hole] = owners[ring]
    return owners


def rasterize(rings: Iterable[np.ndarray], height: int, width: int) -> np.ndarray:
    """Return the mask (H, W) bool of the pixels whose centers are inside of an odd number of rings.

    Args:
        rings: Vertices (K, 2) x, y in pixels, integers or floats, of closed rings in any order and direction.
        height: Height of the image in pixels.
        width: Width of the image in pixels.

    Raises:
        ResultError: A ring is of another shape, is not finite, or the rings are too long.
    """
    edges = np.concatenate([np.empty((0, 2, 2)), *map(_edges, rings)])
    upper, lower = edges[:, 0], edges[:, 1]
    # Rows with centers in the half-open range of an edge, so that a vertex counts once.
    first = np.ceil(upper[:, 1] - 0.5).clip(0, height).astype(np.int64)
    counts = np.ceil(lower[:, 1] - 0.5).clip(0, height).astype(np.int64) - first
    if counts.sum() > _MAX_CROSSINGS:
        raise ResultError(
            f"The rings cross more than {_MAX_CROSSINGS} rows of the image: expected an outline."
        )
    index = np.repeat(np.arange(counts.size), counts)
    rows = first[index] + np.arange(index.size) - np.repeat(counts.cumsum() - counts, counts)
    span = (lower - upper)[index]
    x = upper[index, 0] + (rows + 0.5 - upper[index, 1]) * (span[:, 0] / span[:, 1])
    columns = np.ceil(x - 0.5).clip(0, width).astype(np.int64)
    cells, crossings = np.unique(rows * (width + 1) + columns, return_counts=True)
    toggles = np.zeros(height * (width + 1), np.uint8)
    toggles[cells] = crossings & 1
    inside = np.bitwise_xor.accumulate(toggles.reshape(height, width + 1), axis=1)
    return inside[:, :width].astype(bool)


def _edges(ring: np.ndarray) -> np.ndarray:
    """Return the edges (K, 2, 2) float64 of a ring, from their upper to their lower ends."""
    try:
        points = np.asarray(ring, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ResultError(f"A ring is not an array of numbers ({error}): expected (K, 2) x, y.") from error
    if points.ndim != 2 or points.shape[1] != 2 or not np.isfinite(points).all():
        raise ResultError(f"A ring of shape {points.shape}: expected (K, 2) finite numbers x, y in pixels.")
    following = np.roll(points, -1, axis=0)
    swapped = (points[:, 1] > following[:, 1])[:, None]
    return np.stack((np.where(swapped, following, points), np.where(swapped, points, following)), axis=1)


def joined(rings: Sequence[np.ndarray]) -> np.ndarray:
    """Return one ring (K, 2) for formats that have only one, which bridges join from several.

    A bridge leads to a ring and back along the same line. By the even-odd rule it covers nothing, so that
    ``rasterize`` gives the same mask; programs that draw outlines or dilate them show the bridges.

    Args:
        rings: Vertices (K, 2) x, y of one ring or several.
    """
    merged = rings[0]
    for ring in rings[1:]:
        near = int(((merged - ring[0]) ** 2).sum(axis=1).argmin())
        merged = np.concatenate((merged[: near + 1], ring, ring[:1], merged[near:]))
    return merged
