"""NMS of boxes equals torchvision's."""

import pytest
import torch
from helpers.kernels import IMPLEMENTATIONS, use_implementation
from torchvision.ops import nms

from solo_infer.ops import box_nms as box_nms_module
from solo_infer.ops.box_nms import box_nms, box_overlaps


@pytest.fixture(params=IMPLEMENTATIONS, autouse=True)
def implementation(request, monkeypatch):
    use_implementation(request.param, monkeypatch)


def random_boxes(count, seed=0, side=50.0):
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(count, 2, generator=generator) * 100 - 20
    return torch.cat([corners, corners + torch.rand(count, 2, generator=generator) * side], dim=1)


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.6, 1.0])
@pytest.mark.parametrize("count", [0, 1, 2, 40, 700])
def test_indices_equal_torchvisions(count, threshold):
    boxes = random_boxes(count)
    scores = torch.rand(count, generator=torch.Generator().manual_seed(1))
    kept = box_nms(boxes, scores, threshold)
    assert torch.equal(kept, nms(boxes, scores, threshold))
    assert kept.dtype == torch.int64 and len(kept) > 0 or count == 0


def test_equal_scores_and_equal_boxes_keep_the_first():
    boxes = random_boxes(6).repeat(3, 1)
    scores = torch.tensor([0.5] * 12 + [0.9] * 6)
    kept = box_nms(boxes, scores, 0.5)
    assert torch.equal(kept, nms(boxes, scores, 0.5))
    assert set(kept.tolist()) <= {*range(6), *range(12, 18)}


def test_boxes_without_area():
    boxes = torch.tensor([[5.0, 5, 5, 5], [5, 5, 5, 5], [0, 0, 10, 10], [0, 0, 10, 0]])
    scores = torch.tensor([0.9, 0.8, 0.7, 0.6])
    for threshold in (0.0, 0.5):
        assert torch.equal(box_nms(boxes, scores, threshold), nms(boxes, scores, threshold))


def test_size_of_steps_does_not_change_indices(monkeypatch):
    boxes, scores = random_boxes(70, seed=3), torch.rand(70, generator=torch.Generator().manual_seed(4))
    expected = box_nms(boxes, scores, 0.4)
    monkeypatch.setattr(box_nms_module, "_ROWS", 7)
    assert torch.equal(box_nms(boxes, scores, 0.4), expected)


def test_ious_near_the_threshold():
    """IoUs of whole numbers, many of which are equal to one of the thresholds."""
    corners = torch.randint(0, 12, (900, 2, 2), generator=torch.Generator().manual_seed(5)).float() / 7
    boxes = torch.cat([corners.amin(dim=1), corners.amax(dim=1)], dim=1)
    scores = torch.rand(len(boxes), generator=torch.Generator().manual_seed(6))
    for threshold in (0.25, 1 / 3, 0.5, 0.6, 2 / 3, 0.75):
        assert torch.equal(box_nms(boxes, scores, threshold), nms(boxes, scores, threshold))


def test_boxes_that_are_not_finite():
    boxes = random_boxes(40)
    boxes[::5, 2], boxes[3::7, 0] = float("inf"), float("nan")
    scores = torch.rand(40, generator=torch.Generator().manual_seed(1))
    kept = []
    for index in scores.argsort(descending=True, stable=True).tolist():
        if not (box_overlaps(boxes[kept], boxes[index : index + 1]) > 0.3).any():
            kept.append(index)
    assert box_nms(boxes, scores, 0.3).tolist() == kept
