"""Anchors, box deltas, mask crops and target assignment of YOLACT, compared with plain loops."""

import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import tensor

from solo_infer.models.yolact.anchors import decode, encode, strided_anchors
from solo_infer.models.yolact.masks import crop
from solo_infer.models.yolact.targets import BACKGROUND, NEUTRAL, assign_anchors

CPU = torch.device("cpu")
LEVELS = ((69, 69), (35, 35), (18, 18), (9, 9), (5, 5))
SIZES, STRIDES = (24, 48, 96, 192, 384), tuple(550 / side for side, _ in LEVELS)


def random_boxes(count, seed=0, side=200.0):
    random = np.random.default_rng(seed)
    corner = random.uniform(0, side, (count, 2))
    return torch.from_numpy(np.hstack([corner, corner + random.uniform(5, side / 2, (count, 2))])).float()


def test_strided_anchors():
    anchors = strided_anchors(LEVELS, SIZES, STRIDES, CPU)
    assert anchors.shape == (19248, 4)
    expected = []
    for (height, width), size, stride in zip(LEVELS, SIZES, STRIDES, strict=True):
        for row in range(height):
            for column in range(width):
                for ratio in (0.5, 1, 2):
                    w, h = size / math.sqrt(ratio), size * math.sqrt(ratio)
                    x, y = (column + 0.5) * stride, (row + 0.5) * stride
                    expected.append([x - w / 2, y - h / 2, x + w / 2, y + h / 2])
    np.testing.assert_allclose(anchors.numpy(), expected, atol=1e-3)


def test_anchors_are_cached_for_all_threads():
    with ThreadPoolExecutor(8) as pool:
        cached = list(pool.map(lambda _: strided_anchors(LEVELS, SIZES, STRIDES, CPU), range(32)))
    assert all(torch.equal(anchors, cached[0]) for anchors in cached)
    assert strided_anchors(LEVELS, SIZES, STRIDES, CPU) is strided_anchors(LEVELS, SIZES, STRIDES, CPU)


def test_decode_inverts_encode():
    anchors, boxes = random_boxes(50, 1), random_boxes(50, 2)
    deltas = encode(boxes, anchors)
    torch.testing.assert_close(decode(deltas, anchors, None), boxes, rtol=1e-4, atol=1e-3)
    clipped = decode(deltas, anchors, (150, 180))
    expected = np.clip(boxes.numpy(), 0, [180, 150, 180, 150])
    np.testing.assert_allclose(clipped.numpy(), expected, rtol=1e-4, atol=1e-3)


def test_change_of_size_is_limited_as_in_mmdet():
    anchor = tensor([[1000.0, 1000.0, 1010.0, 1010.0]])
    box = decode(tensor([[0.0, 0.0, 100.0, -100.0]]), anchor, (10000, 10000))
    width, height = (box[0, 2:] - box[0, :2]).tolist()
    assert width / 10 == pytest.approx(62.5, rel=1e-4)
    assert height / 10 == pytest.approx(0.016, rel=1e-3)


def test_crop_keeps_one_pixel_around_the_box():
    kept = crop(torch.ones(2, 10, 20), tensor([[0.2, 0.3, 0.5, 0.6], [0.0, 0.0, 1.0, 1.0]]))
    rows, columns = torch.nonzero(kept[0], as_tuple=True)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (2, 6, 3, 10)
    assert kept[1].all()


def test_anchors_are_assigned_by_iou():
    near = [[0.0, 0, 10, 10], [0, 0, 10, 9], [0, 4, 10, 14], [0, 3, 10, 13]]
    anchors = tensor([*near, [50, 50, 60, 60], [90, 90, 95, 95]])
    boxes = tensor([[0.0, 0, 10, 10], [80, 80, 90.5, 90.5]])  # IoU with the first: 1, 0.9, 0.43, 0.54
    assert assign_anchors(anchors, boxes, torch.zeros(0, 4)).tolist() == [0, 0, NEUTRAL, 0, BACKGROUND, 1]
    assert assign_anchors(anchors, boxes[:0], torch.zeros(0, 4)).unique().tolist() == [BACKGROUND]


def test_later_instance_gets_an_anchor_that_two_claim():
    anchors = tensor([[0.0, 0, 10, 10], [40, 40, 50, 50]])
    boxes = tensor([[0.0, 0, 10, 10], [0, 0, 3, 3], [1, 1, 3, 3]])
    assert assign_anchors(anchors, boxes, torch.zeros(0, 4)).tolist() == [2, BACKGROUND]


def test_anchors_inside_a_crowd_are_ignored():
    anchors = tensor([[0.0, 0, 10, 10], [5, 0, 15, 10], [30, 30, 40, 40]])
    crowd = tensor([[0.0, 0, 11, 20]])
    assert assign_anchors(anchors, torch.zeros(0, 4), crowd).tolist() == [NEUTRAL, BACKGROUND, BACKGROUND]
