"""GroupNorm followed by ReLU, which SOLO's heads apply 70 times and the decoupled heads 105 times."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from solo_infer.ops.dispatch import triton_kernel


@triton_kernel("GroupNorm", "solo_infer.ops.triton.group_norm_relu:group_norm_relu")
def group_norm_relu(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Return relu(group_norm(x)), with statistics in float32.

    Args:
        x: (N, C, H, W) float32, float16 or bfloat16.
        groups: Number of groups of channels.
        weight: (C,).
        bias: (C,).
        eps: Constant that is added to the variance.
    """
    return F.group_norm(x, groups, weight, bias, eps).relu_()
