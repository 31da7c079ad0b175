"""GroupNorm followed by ReLU, which SOLO's heads apply 70 times and the decoupled heads 105 times."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from solo_infer.ops.dispatch import is_compiling, triton_kernel
from solo_infer.ops.native import group_norm
from solo_infer.ops.native.library import kernel_library


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


def group_norm_relu_(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Return relu(group_norm(x)) like ``group_norm_relu``; ``x`` may be overwritten.

    A compiled kernel, where the package has one, computes float32 and bfloat16 maps in channels_last on the
    CPU in place.
    """
    pixels = x.permute(0, 2, 3, 1)
    library = kernel_library()
    if (
        library is None
        or is_compiling()
        or torch.is_grad_enabled()
        or x.device.type != "cpu"
        or x.dtype not in (torch.float32, torch.bfloat16)
        or not (pixels.is_contiguous() and pixels.numel())
    ):
        return group_norm_relu(x, groups, weight, bias, eps)
    group_norm.group_norm_relu_(
        library, pixels, groups, weight.float().contiguous(), bias.float().contiguous(), eps
    )
    return x
