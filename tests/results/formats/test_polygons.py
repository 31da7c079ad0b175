"""Polygons of masks: rasterized, they are the mask."""

from collections import deque

import numpy as np
import pytest
from helpers.masks import frame, random_mask
from helpers.results import make_result
from pycocotools import mask as coco

from solo_infer import SOLO
from solo_infer.errors import ResultError
from solo_infer.results.formats.polygons import joined, rasterize, trace


def rings_of(polygons):
    return [ring for polygon in polygons for ring in polygon.rings]


def flood(mask, steps):
    """Return the number of connected regions of a mask (H, W), by a search over single pixels."""
    left = set(zip(*(axis.tolist() for axis in mask.nonzero()), strict=True))
    count = 0
    while left:
        queue, count = deque([left.pop()]), count + 1
        while queue:
            y, x = queue.popleft()
            for dy, dx in steps:
                if (y + dy, x + dx) in left:
                    left.remove((y + dy, x + dx))
                    queue.append((y + dy, x + dx))
    return count


SIDES = [(0, 1), (0, -1), (1, 0), (-1, 0)]


def signed_area(ring):
    x, y = ring.astype(float).T
    return (x * np.roll(y, -1) - np.roll(x, -1) * y).sum() / 2


def check(mask):
    """Check the polygons of a mask, and return the numbers of parts and of holes."""
    polygons = trace(mask)
    parts = [rasterize(polygon.rings, *mask.shape) for polygon in polygons]
    np.testing.assert_array_equal(rasterize(rings_of(polygons), *mask.shape), mask)
    np.testing.assert_array_equal(sum(map(np.int64, parts), np.zeros(mask.shape)), mask)  # no part twice
    for polygon in polygons:
        assert signed_area(polygon.exterior) > 0 and all(signed_area(hole) < 0 for hole in polygon.holes)
        for ring in polygon.rings:
            assert ring.dtype == np.int32
            assert len(np.unique(ring, axis=0)) == len(ring)  # no ring touches itself
            steps = np.roll(ring, -1, axis=0) - ring
            assert ((steps != 0).sum(axis=1) == 1).all()  # edges along the pixels, and corners only
            assert ((steps[:, 0] != 0) != (np.roll(steps, -1, axis=0)[:, 0] != 0)).all()
    return len(polygons), sum(len(polygon.holes) for polygon in polygons)


def test_round_trip_of_1000_random_masks():
    several_parts = holes = 0
    for number in range(1000):
        mask = random_mask(number)
        polygons = trace(mask)
        np.testing.assert_array_equal(rasterize(rings_of(polygons), *mask.shape), mask)
        several_parts += len(polygons) > 1
        holes += any(polygon.holes for polygon in polygons)
    assert several_parts > 500 and holes > 250


@pytest.mark.parametrize("first", [0, 1, 2])
def test_rings_are_simple_and_directed(first):
    for number in range(first, 90, 3):
        check(random_mask(number))


def test_parts_and_holes_are_those_of_a_flood_fill():
    for number in range(60):
        mask = random_mask(number)
        polygons = trace(mask)
        assert len(polygons) == flood(mask, SIDES)
        for polygon in polygons:
            part = rasterize(polygon.rings, *mask.shape)
            assert flood(part, SIDES) == 1
            outline = rasterize([polygon.exterior], *mask.shape)
            assert flood(outline & ~part, SIDES) == len(polygon.holes)


def test_round_trip_of_all_masks_of_a_photo(photo):
    result = SOLO.from_pretrained("tiny", device="cpu")(photo)
    assert len(result) >= 10
    for instance, polygons in zip(result, result.to_polygons(), strict=True):
        mask = instance.mask.numpy()
        np.testing.assert_array_equal(rasterize(rings_of(polygons), *mask.shape), mask)
        assert sum(len(ring) for ring in rings_of(polygons)) < mask.sum()


def test_known_polygons():
    outer, inner, corner = trace(frame())
    assert outer.exterior.tolist() == [[3, 2], [17, 2], [17, 14], [3, 14]]
    assert [hole.tolist() for hole in outer.holes] == [[[5, 4], [5, 12], [15, 12], [15, 4]]]
    assert inner.exterior.tolist() == [[7, 6], [12, 6], [12, 9], [7, 9]] and not inner.holes
    assert corner.exterior.tolist() == [[25, 17], [29, 17], [29, 20], [25, 20]]


@pytest.mark.parametrize(
    "rows, parts, holes",
    [
        (["10", "01"], 2, 0),
        (["01", "10"], 2, 0),
        (["111", "101", "111"], 1, 1),
        (["1111", "1011", "1101", "1111"], 1, 2),  # holes that touch at a corner
        (["1111", "1101", "1011", "1111"], 1, 2),
        (["110", "101", "111"], 1, 1),  # a hole that touches the outside
        (["11111", "10001", "10101", "10001", "11111"], 2, 1),
        (["1"], 1, 0),
        (["0"], 0, 0),
        (["1" * 40] * 3, 1, 0),
    ],
)
def test_small_masks(rows, parts, holes):
    assert check(np.array([[char == "1" for char in row] for row in rows])) == (parts, holes)


@pytest.mark.parametrize("view", ["transposed", "strided", "reversed"])
def test_masks_of_any_memory_layout(view):
    mask = frame()
    masks = {"transposed": np.asfortranarray(mask), "strided": np.repeat(mask, 2, 1)[:, ::2]}
    other = masks.get(view, mask[::-1][::-1])
    for polygon, expected in zip(trace(other), trace(mask), strict=True):
        np.testing.assert_array_equal(polygon.exterior, expected.exterior)


@pytest.mark.parametrize(
    "mask", [np.zeros((3, 3), np.uint8), np.zeros(3, bool), np.zeros((1, 3, 3), bool), [[True]], None]
)
def test_other_masks_are_refused(mask):
    with pytest.raises(ResultError, match=r"expected a numpy array \(H, W\) bool"):
        trace(mask)


def test_a_joined_ring_covers_the_mask():
    for number in range(300):
        mask = random_mask(number)
        rings = rings_of(trace(mask))
        if rings:
            np.testing.assert_array_equal(rasterize([joined(rings)], *mask.shape), mask)


def test_pycocotools_rasterizes_polygons_exactly():
    for number in range(300):
        mask = random_mask(number)
        height, width = map(int, mask.shape)
        polygons = [joined(polygon.rings).ravel().tolist() for polygon in trace(mask)]
        if polygons:
            decoded = coco.decode(coco.merge(coco.frPyObjects(polygons, height, width)))
            np.testing.assert_array_equal(decoded.astype(bool), mask)


def test_rasterize_takes_the_centers_of_pixels():
    triangle = np.array([[0.0, 0.0], [4.0, 0.0], [0.0, 4.0]])
    centers = np.add.outer(np.arange(4) + 0.5, np.arange(4) + 0.5) < 4
    np.testing.assert_array_equal(rasterize([triangle], 4, 4), centers)
    outside = np.array([[-5, -5], [9, -5], [9, 9], [-5, 9]])
    assert rasterize([outside], 4, 6).all() and not rasterize([], 4, 6).any()


@pytest.mark.parametrize("ring", [[[0, 0], [np.nan, 1], [1, 1]], [0, 1, 2], [["a", "b"]], [[0, 0, 0]]])
def test_rings_that_cannot_be_rasterized(ring):
    with pytest.raises(ResultError, match="A ring"):
        rasterize([ring], 4, 4)


def test_polygons_of_results():
    result = make_result()
    polygons = result.to_polygons()
    assert [len(parts) for parts in polygons] == [1, 1, 1, 1, 0]
    assert polygons[0][0].exterior.tolist() == result[0].polygons()[0].exterior.tolist()
