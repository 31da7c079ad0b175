"""The NMS that post-processing settings choose."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from solo_infer.config import PostprocessConfig
from solo_infer.ops.greedy_nms import greedy_nms_packed
from solo_infer.ops.matrix_nms import NMSResult, matrix_nms_packed


def nms_function(thresholds: PostprocessConfig) -> Callable[..., NMSResult]:
    """Return Matrix-NMS or greedy NMS of packed masks with its parameters bound."""
    if thresholds.nms == "greedy":
        return partial(greedy_nms_packed, iou_thr=thresholds.nms_iou)
    return partial(matrix_nms_packed, kernel=thresholds.kernel, sigma=thresholds.sigma)
