"""GroupNorm followed by a ReLU, as one operation."""

from __future__ import annotations

from torch import Tensor, nn

from solo_infer.ops.group_norm_relu import group_norm_relu_


class GroupNormReLU(nn.Module):
    """GroupNorm and ReLU in fused kernels, on CUDA and on the CPU.

    Args:
        norm: GroupNorm whose weights are shared.
    """

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self.weight, self.bias = norm.weight, norm.bias
        self.groups, self.eps = norm.num_groups, norm.eps

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to the same shape; ``x`` may be overwritten."""
        return group_norm_relu_(x, self.groups, self.weight, self.bias, self.eps)
