"""The NMS that post-processing settings choose."""

import pytest
import torch

from solo_infer.config import PostprocessConfig
from solo_infer.inference.nms import nms_function
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
