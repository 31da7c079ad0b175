"""Polygons and RLE become the masks of pycocotools, and nothing else reaches its C code."""

import json
import math

import numpy as np
import pytest
from helpers.coco_sets import NO_MASK, ellipse, rectangle
from pycocotools import mask as coco

from solo_infer.data.segmentation import MAX_OUTSIDE, to_rle

HEIGHT, WIDTH = 80, 96
SQUARE = [8, 8, 38, 8, 38, 38, 8, 38]


def rle(counts, height=HEIGHT, width=WIDTH):
    return {"size": [height, width], "counts": counts}


def decode(counts, height=HEIGHT, width=WIDTH):
    return coco.decode({"size": [height, width], "counts": counts})


@pytest.fixture
def no_polygons_in_c(monkeypatch):
    """Let every call of pycocotools that would read polygons fail."""

    def refuse(*values):
        raise AssertionError("a polygon reached pycocotools")

    monkeypatch.setattr(coco, "frPyObjects", refuse)


@pytest.mark.parametrize(
    "number",
    [
        math.nan,
        math.inf,
        -math.inf,
        None,
        True,
        "nan",
        "8",
        10**400,
        -(10**30),
        1e9,
        -3e9,
        1e300,
        10**9,
        [],
        {},
    ],
    ids=repr,
)
@pytest.mark.parametrize(
    "place",
    [
        lambda odd: [[*SQUARE[:3], odd, *SQUARE[4:]]],
        lambda odd: [[odd, *SQUARE[1:]]],
        lambda odd: [[*SQUARE[:7], odd]],
        lambda odd: [SQUARE, [1, 1, 9, 9, odd, 5]],
        lambda odd: [[1, odd], SQUARE],
        lambda odd: [*SQUARE[:4], odd, *SQUARE[5:]],
        lambda odd: [[8, 8], [odd, 38], [38, 8]],
        lambda odd: [[[8, 8], [8, odd], [38, 8]]],
        lambda odd: [rle([10, 20, HEIGHT * WIDTH - 30]), [odd, *SQUARE[1:]]],
    ],
    ids=["middle", "first", "last", "second part", "point", "flat", "pairs", "list of pairs", "beside RLE"],
)
def test_odd_numbers_in_polygons_are_refused(no_polygons_in_c, place, number):
    segmentation = place(number)
    if isinstance(segmentation[-1], list) and isinstance(segmentation[0], dict):
        segmentation.pop(0)  # RLE is converted by the function that must not be called
    with pytest.raises(ValueError, match="polygon|segmentation|RLE of size None") as caught:
        to_rle(segmentation, HEIGHT, WIDTH)
    assert len(str(caught.value)) < 300 and str(caught.value).isprintable()


@pytest.mark.parametrize("polygon", [5, "8,8,38,8", {"a": 1}, None, True])
def test_parts_that_are_no_lists_are_refused(polygon):
    with pytest.raises(ValueError, match="expected polygons or RLE|RLE of size None"):
        to_rle([SQUARE, polygon], HEIGHT, WIDTH)
    with pytest.raises(ValueError, match="pairs of x and y"):
        to_rle([[[1, 1], [9, 1], [9, 9, 9]]], HEIGHT, WIDTH)


def test_masks_equal_those_of_pycocotools():
    random = np.random.default_rng(0)
    for scale, repetitions in ((1, 30), (30, 30), (100, 30), (5000, 5), (MAX_OUTSIDE, 1)):
        for _ in range(repetitions):
            sizes = random.choice([6, 7, 8, 9, 20], random.integers(1, 4))
            polygons = [(random.uniform(-scale, WIDTH + scale, size)).tolist() for size in sizes]
            expected = coco.merge(coco.frPyObjects(polygons, HEIGHT, WIDTH))
            counts, area = to_rle(polygons, HEIGHT, WIDTH)
            assert (counts, area) == (expected["counts"], int(coco.area(expected)))


def test_many_parts_are_merged_like_in_pycocotools():
    parts = [part for x in range(0, 90, 3) for y in range(0, 78, 2) for part in rectangle(x, y, 2, 1.5)]
    expected = coco.merge(coco.frPyObjects(parts, HEIGHT, WIDTH))
    assert to_rle(parts, HEIGHT, WIDTH) == (expected["counts"], int(coco.area(expected)))


@pytest.mark.parametrize(
    "segmentation",
    [
        SQUARE,
        [[8, 8], [38, 8], [38, 38], [8, 38]],
        [[[8, 8], [38, 8], [38, 38], [8, 38]]],
        [SQUARE, []],
        [SQUARE, [1, 1]],
        [[1, 1, 5, 5], SQUARE],
        [[[1, 1], [5, 5]], SQUARE],
        [*SQUARE, 3],
    ],
    ids=["flat", "points", "list of points", "empty part", "point", "box first", "line first", "odd count"],
)
def test_forms_of_a_polygon(segmentation):
    assert to_rle(segmentation, HEIGHT, WIDTH) == to_rle([SQUARE], HEIGHT, WIDTH)
    assert to_rle(segmentation, HEIGHT, WIDTH)[1] == 900


@pytest.mark.parametrize("segmentation", NO_MASK, ids=repr)
def test_segmentation_without_a_mask(segmentation):
    assert to_rle(segmentation, HEIGHT, WIDTH) is None


def test_limits_of_coordinates():
    limit = MAX_OUTSIDE
    assert (
        to_rle([[-limit, -limit, WIDTH + limit, -limit, WIDTH + limit, HEIGHT + limit]], HEIGHT, WIDTH)[1] > 0
    )
    for number, axis in ((-limit - 1, "x"), (WIDTH + limit + 1, "x")):
        with pytest.raises(
            ValueError, match=f"{axis} coordinate .*at most 100000 pixels outside of the image of height 80"
        ):
            to_rle([[number, 0, 5, 5, 0, 9]], HEIGHT, WIDTH)
    with pytest.raises(ValueError, match="y coordinate"):
        to_rle([[0, HEIGHT + limit + 1, 5, 5, 0, 9]], HEIGHT, WIDTH)


def test_endless_outlines_are_refused(no_polygons_in_c):
    zigzag = [-MAX_OUTSIDE, 0, MAX_OUTSIDE, 1] * 1000
    with pytest.raises(ValueError, match="longer than 4000000 pixels"):
        to_rle([zigzag], HEIGHT, WIDTH)
    with pytest.raises(ValueError, match="longer than 4000000 pixels"):
        to_rle([zigzag[:20]] * 100, HEIGHT, WIDTH)


def test_long_outlines_of_small_steps_are_read():
    circle = ellipse(40, 40, 30, 30, corners=100_000)  # its estimate exceeds the limit, its length does not
    assert to_rle(circle, HEIGHT, WIDTH)[1] == pytest.approx(math.pi * 900, rel=0.02)


@pytest.mark.parametrize("as_text", [False, True])
@pytest.mark.parametrize("wrap", [lambda part: part, lambda part: [part], lambda part: [SQUARE, part]])
def test_rle(wrap, as_text):
    mask = np.zeros((HEIGHT, WIDTH), np.uint8, order="F")
    mask[10:20, 40:60] = 1
    part = rle([40 * HEIGHT + 10, *[10, 70] * 19, 10, HEIGHT * WIDTH - 59 * HEIGHT - 20])
    if as_text:
        part = json.loads(json.dumps(rle(coco.encode(mask)["counts"].decode())))
    counts, area = to_rle(wrap(part), HEIGHT, WIDTH)
    expected = mask | decode(to_rle(SQUARE, HEIGHT, WIDTH)[0]) if wrap("") == [SQUARE, ""] else mask
    assert np.array_equal(decode(counts), expected) and area == expected.sum()


TOTAL = HEIGHT * WIDTH


@pytest.mark.parametrize("wrap", [lambda part: part, lambda part: [part], lambda part: [SQUARE, part]])
@pytest.mark.parametrize(
    "part",
    [
        {},
        {"a": 1},
        {"counts": [TOTAL]},
        {"size": [HEIGHT, WIDTH]},
        rle(None),
        rle([]),
        rle(""),
        rle([TOTAL - 1]),
        rle([-10, 20, TOTAL - 10]),
        rle([2**40, 20, 5]),
        rle([2**32, TOTAL]),
        rle([10**400]),
        rle([TOTAL, 0.0]),
        rle([math.nan]),
        rle([True, TOTAL - 1]),
        rle([[TOTAL]]),
        rle(["5"]),
        rle([0] * (TOTAL + 2) + [TOTAL]),
        rle("zzzz"),
        rle("\x00\x00"),
        rle("süß"),
        rle("P" * 20),
        rle("0" * (8 * TOTAL + 100)),
        rle("b'0'"),
        rle({"a": 1}),
        rle([0], 0, 0),
        rle([TOTAL], WIDTH, HEIGHT),
        rle([5, 6], 2**31 - 1, 2**31 - 1),
        rle([TOTAL], -HEIGHT, WIDTH),
        {"size": "80x96", "counts": [TOTAL]},
        {"size": [HEIGHT, WIDTH, 1], "counts": [TOTAL]},
        {"size": None, "counts": [TOTAL]},
    ],
    ids=lambda part: json.dumps(part)[:40],
)
def test_damaged_rle_is_refused(part, wrap):
    with pytest.raises(ValueError, match="RLE") as caught:
        to_rle(wrap(part), HEIGHT, WIDTH)
    assert len(str(caught.value)) < 300 and str(caught.value).isprintable()


def test_empty_runs_are_removed():
    counts, area = to_rle(rle([0, 0, 5, 0, 0, 10, 0, 0, 0, 7, TOTAL - 22]), HEIGHT, WIDTH)
    assert (counts, area) == to_rle(rle([5, 17, TOTAL - 22]), HEIGHT, WIDTH)
    assert to_rle(rle([0, 5, 0, 3, TOTAL - 8]), HEIGHT, WIDTH) == to_rle(
        rle([0, 8, TOTAL - 8]), HEIGHT, WIDTH
    )


@pytest.mark.parametrize("segmentation", [5, "polygon", True, 1.5, math.nan])
def test_other_values_are_refused(segmentation):
    with pytest.raises(ValueError, match='"segmentation" is .*: expected polygons or RLE'):
        to_rle(segmentation, HEIGHT, WIDTH)
