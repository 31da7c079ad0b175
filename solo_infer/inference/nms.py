"""The NMS that post-processing settings choose."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from solo_infer.config import BasePostprocessConfig, PostprocessConfig
from solo_infer.ops.greedy_nms import greedy_nms_packed
from solo_infer.ops.matrix_nms import NMSResult, matrix_nms_packed


def nms_function(thresholds: PostprocessConfig) -> Callable[..., NMSResult]:
    """Return Matrix-NMS or greedy NMS of packed masks with its parameters bound."""
    function: Callable[..., NMSResult] = (
        partial(greedy_nms_packed, iou_thr=thresholds.nms_iou)
        if thresholds.nms == "greedy"
        else partial(matrix_nms_packed, kernel=thresholds.kernel, sigma=thresholds.sigma)
    )

    def nms(packed: Tensor, areas: Tensor, labels: Tensor, scores: Tensor, **options: Any) -> NMSResult:
        result = function(packed, areas, compared_labels(labels, thresholds), scores, **options)
        return result._replace(labels=labels[result.keep])

    return nms


def compared_labels(labels: Tensor, thresholds: BasePostprocessConfig) -> Tensor:
    """Return labels of which NMS compares equal ones: all equal if it works across classes."""
    return torch.zeros_like(labels) if thresholds.across_classes else labels
