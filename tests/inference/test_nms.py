"""The NMS that post-processing settings choose."""

from dataclasses import replace

import pytest
import torch

from solo_infer.config import PostprocessConfig
from solo_infer.inference.nms import compared_labels, nms_function
from solo_infer.ops.greedy_nms import greedy_nms
from solo_infer.ops.matrix_nms import matrix_nms
from solo_infer.ops.packed_masks import pack

MASKS = torch.zeros(3, 8, 8, dtype=torch.bool)
MASKS[0, :4], MASKS[1, :5], MASKS[2, 6:] = True, True, True


@pytest.mark.parametrize(
    "thresholds, expected",
    [
        (PostprocessConfig(), lambda *args: matrix_nms(*args)),
        (
            PostprocessConfig(kernel="linear", sigma=1.0),
            lambda *args: matrix_nms(*args, kernel="linear"),
        ),
        (PostprocessConfig(sigma=0.5), lambda *args: matrix_nms(*args, sigma=0.5)),
        (PostprocessConfig(nms="greedy", nms_iou=0.7), lambda *args: greedy_nms(*args, iou_thr=0.7)),
        (PostprocessConfig(nms="greedy", nms_iou=0.9), lambda *args: greedy_nms(*args, iou_thr=0.9)),
    ],
)
def test_settings_reach_the_function(thresholds, expected):
    labels, scores = torch.zeros(3, dtype=torch.int64), torch.tensor([0.9, 0.8, 0.7])
    areas = MASKS.flatten(1).sum(dim=1).float()
    result = nms_function(thresholds)(
        pack(MASKS.flatten(1)), areas, labels, scores, nms_pre=-1, max_num=-1, filter_thr=-1.0
    )
    for values, others in zip(result, expected(MASKS, labels, scores), strict=True):
        torch.testing.assert_close(values, others)


@pytest.mark.parametrize(
    "thresholds",
    [
        PostprocessConfig(),
        PostprocessConfig(kernel="linear"),
        PostprocessConfig(nms="greedy"),
        PostprocessConfig(nms="greedy", nms_iou=0.9),
    ],
)
def test_nms_across_classes_compares_all_and_returns_the_labels(thresholds):
    labels, scores = torch.tensor([2, 5, 1]), torch.tensor([0.7, 0.9, 0.8])
    areas = MASKS.flatten(1).sum(dim=1).float()
    arguments = pack(MASKS.flatten(1)), areas
    options = {"nms_pre": -1, "max_num": -1, "filter_thr": -1.0}
    expected = nms_function(thresholds)(*arguments, torch.zeros_like(labels), scores, **options)
    across = replace(thresholds, across_classes=True)
    result = nms_function(across)(*arguments, labels, scores, **options)
    assert torch.equal(result.scores, expected.scores) and torch.equal(result.keep, expected.keep)
    assert torch.equal(result.labels, labels[result.keep])
    apart = nms_function(thresholds)(*arguments, labels, scores, **options)
    assert torch.equal(apart.scores, scores.sort(descending=True).values)
    assert thresholds.nms_iou == 0.9 or not torch.equal(apart.scores, result.scores)
    assert torch.equal(compared_labels(labels, thresholds), labels)
