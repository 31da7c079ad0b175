"""GroupNorm followed by a ReLU, which the heads have seventy (SOLO) or a hundred and five (Decoupled) of."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from solo_infer.ops import dispatch


def group_norm_relu(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Return relu(group_norm(x)), statistics in float32.

    Args:
        x: (N, C, H, W) float32, float16 or bfloat16.
        groups: Of the channels.
        weight: (C,).
        bias: (C,).
        eps: Added to the variance.
    """

    def fused() -> Tensor:
        from solo_infer.ops.triton import group_norm_relu

        return group_norm_relu.group_norm_relu(x, groups, weight, bias, eps)

    return dispatch.run(
        "GroupNorm", x.device, fused, lambda: group_norm_relu_torch(x, groups, weight, bias, eps)
    )


def group_norm_relu_torch(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Do what ``group_norm_relu`` does with torch's own operations."""
    return F.group_norm(x, groups, weight, bias, eps).relu_()
