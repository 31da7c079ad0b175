"""Captions never overlap and stay inside the image."""

from itertools import combinations

import numpy as np
import pytest

from solo_infer.results.caption_layout import leader_line, place_captions


def overlap(first, second):
    return min(first[2], second[2]) > max(first[0], second[0]) and min(first[3], second[3]) > max(
        first[1], second[1]
    )


def random_case(seed, count, canvas):
    """Return sizes and boxes of captions, most of them in one corner of the image."""
    random = np.random.default_rng(seed)
    sizes = [(int(random.integers(20, 90)), 12) for _ in range(count)]
    boxes = []
    for _ in range(count):
        x, y = (int(random.integers(side * (0.7 if seed % 2 else 0), side)) for side in canvas)
        boxes.append((x, y, min(x + int(random.integers(1, 60)), canvas[0]), min(y + 30, canvas[1])))
    return sizes, boxes


@pytest.mark.parametrize("canvas", [(640, 480), (120, 400), (91, 13), (900, 60)])
@pytest.mark.parametrize("seed", range(6))
def test_captions_do_not_overlap(seed, canvas):
    sizes, boxes = random_case(seed, 100, canvas)
    rectangles = place_captions(sizes, boxes, canvas)
    placed = [rectangle for rectangle in rectangles if rectangle is not None]
    assert len(rectangles) == 100 and placed and rectangles[0] is not None
    assert not any(overlap(*pair) for pair in combinations(placed, 2))
    for size, rectangle in zip(sizes, rectangles, strict=True):
        if rectangle is not None:
            x1, y1, x2, y2 = rectangle
            assert (x2 - x1, y2 - y1) == size
            assert 0 <= x1 and 0 <= y1 and x2 <= canvas[0] and y2 <= canvas[1]


def test_all_captions_are_placed_where_there_is_room():
    sizes, boxes = random_case(1, 60, (928, 530))
    assert None not in place_captions(sizes, boxes, (928, 530))


def test_captions_without_a_free_place_or_larger_than_the_image_are_omitted():
    box = (0, 0, 10, 10)
    assert place_captions([(40, 12)] * 3, [box] * 3, (40, 25)) == [(0, 0, 40, 12), (0, 12, 40, 24), None]
    assert place_captions([(41, 12), (40, 12)], [box] * 2, (40, 12)) == [None, (0, 0, 40, 12)]
    assert place_captions([], [], (40, 12)) == []


def test_first_captions_are_closest_to_their_boxes():
    box = (100, 100, 140, 110)
    rectangles = place_captions([(60, 12)] * 30, [box] * 30, (400, 300))
    gaps = [max(y1 - 110, 100 - y2, x1 - 140, 100 - x2, 0) for x1, y1, x2, y2 in rectangles]
    assert gaps[:2] == [0, 0] and gaps[-1] > 10
    assert rectangles[0] == (100, 88, 160, 100)


@pytest.mark.parametrize(
    ("caption", "box", "line"),
    [
        ((0, 0, 20, 10), (5, 5, 50, 50), None),  # on the box
        ((0, 0, 20, 10), (0, 12, 50, 50), None),  # close
        ((0, 0, 20, 10), (0, 40, 30, 50), (10, 9, 10, 40)),
        ((0, 0, 20, 10), (50, 40, 60, 50), (19, 9, 50, 40)),
        ((50, 40, 70, 50), (0, 0, 10, 60), (50, 45, 9, 45)),
    ],
)
def test_leader_lines(caption, box, line):
    assert leader_line(caption, box) == line
