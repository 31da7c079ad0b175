"""Pairing of detections with those of a golden file."""

import numpy as np
import pytest
import torch

from solo_infer.diagnostics.pairing import golden_masks, pair_detections
from solo_infer.diagnostics.verify import Check
from solo_infer.inference.solo import Detections
from solo_infer.ops import packed_masks, rle

SIZE = (40, 50)


@pytest.fixture
def masks():
    """Three disjoint squares, bool (3, H, W)."""
    masks = np.zeros((3, *SIZE), bool)
    for index in range(3):
        masks[index, 5:15, 15 * index + 2 : 15 * index + 12] = True
    return masks


@pytest.fixture
def golden(masks):
    texts = [rle.encode(mask)["counts"].encode("ascii") for mask in masks]
    return {
        "scores": np.array([0.9, 0.8, 0.7], np.float32),
        "labels": np.array([1, 1, 2]),
        "boxes": np.array([[2, 5, 12, 15], [17, 5, 27, 15], [32, 5, 42, 15]], np.float32),
        "rle_counts": np.frombuffer(b"".join(texts), np.uint8),
        "rle_offsets": np.cumsum([0, *map(len, texts)]),
    }


def make_detections(golden, masks, **changes):
    values = {
        "scores": torch.from_numpy(golden["scores"].copy()),
        "labels": torch.from_numpy(golden["labels"].copy()),
        "boxes": torch.from_numpy(golden["boxes"].copy()),
        "packed_masks": packed_masks.pack(torch.from_numpy(masks)),
    }
    return Detections(**{**values, **changes})


def test_golden_masks_are_decoded(golden, masks):
    assert np.array_equal(np.stack(list(golden_masks(golden, SIZE))), masks)


def test_equal_detections(golden, masks):
    pairs = pair_detections(make_detections(golden, masks), golden, SIZE, 1e-3)
    assert (pairs.score_difference, pairs.box_difference, pairs.iou_loss, pairs.unpaired) == (0, 0, 0, 0)


def test_differences_of_pairs(golden, masks):
    shifted = masks.copy()
    shifted[0] = np.roll(shifted[0], 1, axis=1)  # 20 pixels differ, the union has 110
    boxes = torch.from_numpy(golden["boxes"].copy())
    boxes[1, 2] += 0.5
    scores = torch.tensor([0.9, 0.805, 0.7])
    pairs = pair_detections(make_detections(golden, shifted, boxes=boxes, scores=scores), golden, SIZE, 0.01)
    assert pairs.score_difference == pytest.approx(0.005, abs=1e-6)
    assert pairs.box_difference == 0.5
    assert pairs.iou_loss == pytest.approx(20 / 110)
    assert pairs.unpaired == 0


def test_few_edge_pixels_are_accepted(golden, masks):
    changed = masks.copy()
    changed[0, 5, 2:7] = False
    assert pair_detections(make_detections(golden, changed), golden, SIZE, 1e-3).iou_loss == 0


def test_unpaired_detections_are_counted_except_at_the_end_of_the_list(golden, masks):
    detections = make_detections(golden, masks, labels=torch.tensor([1, 3, 3]))
    assert pair_detections(detections, golden, SIZE, 1e-3).unpaired == pytest.approx(2 / 6)


def test_nan_fails_a_check():
    assert Check("m", "q", 0.1, 0.1).passed
    assert not Check("m", "q", float("nan"), 0.1).passed
