"""Fast NMS beside its definition in plain loops."""

import numpy as np
import pytest
import torch
from helpers.original_yolact import fast_nms as reference_fast_nms
from helpers.original_yolact import iou
from torch import tensor

from solo_infer.ops.fast_nms import fast_nms, pairwise_iou


def random_boxes(count, seed=0, side=200.0):
    random = np.random.default_rng(seed)
    corner = random.uniform(0, side, (count, 2))
    return torch.from_numpy(np.hstack([corner, corner + random.uniform(5, side / 2, (count, 2))])).float()


def test_pairwise_iou_equals_definition():
    boxes = torch.stack([random_boxes(9, 3), random_boxes(9, 4)])
    result = pairwise_iou(boxes)
    expected = [[[iou(a, b) for b in group] for a in group] for group in boxes.tolist()]
    np.testing.assert_allclose(result.numpy(), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("filter_thr", "top_k", "max_num"), [(0.05, 200, 100), (0.0, 200, 1000), (0.3, 7, 9)]
)
def test_fast_nms_equals_definition(filter_thr, top_k, max_num):
    boxes = random_boxes(60, 5)
    scores = torch.from_numpy(np.random.default_rng(6).uniform(0, 1, (60, 4)) ** 3).float()
    result = fast_nms(boxes, scores, iou_thr=0.5, filter_thr=filter_thr, top_k=top_k, max_num=max_num)
    expected = reference_fast_nms(boxes.tolist(), scores.numpy(), 0.5, filter_thr, top_k, max_num)
    assert len(expected) > 5
    assert result.scores.tolist() == [score for score, _, _ in expected]
    assert result.labels.tolist() == [label for _, label, _ in expected]
    assert result.keep.tolist() == [row for _, _, row in expected]


def test_chunks_of_classes_give_equal_results(monkeypatch):
    boxes, scores = random_boxes(60, 7), torch.rand(60, 5, generator=torch.Generator().manual_seed(1))
    options = {"iou_thr": 0.5, "filter_thr": 0.1, "top_k": 50, "max_num": 100}
    expected_result = fast_nms(boxes, scores, **options)
    monkeypatch.setattr("solo_infer.ops.fast_nms._MAX_PAIRS", 2 * 50**2)
    assert all(map(torch.equal, fast_nms(boxes, scores, **options), expected_result))


def test_suppressed_boxes_suppress_others():
    boxes = tensor([[0.0, 0, 10, 10], [4, 0, 14, 10], [6, 0, 16, 10]])  # IoU 0.43, 0.67, 0.25
    result = fast_nms(boxes, tensor([[0.9], [0.8], [0.7]]), iou_thr=0.4, filter_thr=0.0, top_k=9, max_num=9)
    assert result.keep.tolist() == [0]


@pytest.mark.parametrize("count", [0, 3])
def test_fast_nms_without_scores_above_the_threshold(count):
    result = fast_nms(
        random_boxes(count), torch.zeros(count, 4), iou_thr=0.5, filter_thr=0.05, top_k=200, max_num=100
    )
    assert (result.scores.shape, result.labels.dtype, result.keep.dtype) == ((0,), torch.int64, torch.int64)


@pytest.mark.parametrize("top_k", [200, 7])
def test_fast_nms_across_classes_takes_each_box_with_its_best_class(top_k):
    boxes = random_boxes(60, 5)
    scores = torch.from_numpy(np.random.default_rng(6).uniform(0, 1, (60, 4)) ** 3).float()
    options = {"iou_thr": 0.5, "filter_thr": 0.1, "top_k": top_k, "max_num": 30}
    result = fast_nms(boxes, scores, **options, across_classes=True)
    best = scores.amax(dim=1, keepdim=True).numpy()
    expected = reference_fast_nms(boxes.tolist(), best, 0.5, 0.1, top_k, 30)
    assert 3 < len(expected)
    assert result.keep.tolist() == [row for _, _, row in expected]
    assert result.labels.tolist() == scores[result.keep].argmax(dim=1).tolist()
    assert len(set(result.labels.tolist())) > 1


def test_fast_nms_across_classes_of_no_boxes():
    options = {"iou_thr": 0.5, "filter_thr": 0.1, "top_k": 9, "max_num": 9}
    empty = fast_nms(random_boxes(0), torch.zeros(0, 4), **options, across_classes=True)
    assert [len(values) for values in empty] == [0, 0, 0]
