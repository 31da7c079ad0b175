"""The stem of ResNets: convolution, max pooling and ReLU."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from solo_infer.ops.dispatch import is_compiling
from solo_infer.ops.native.library import kernel_library
from solo_infer.ops.packed_weight import PackedWeight, pack_weight
from solo_infer.ops.resnet_stem import resnet_stem
from solo_infer.runtime import kept_memory


class FusedStem(nn.Module):
    """7x7 convolution with stride 2, ReLU, and 3x3 max pooling with stride 2 and a padding of 1.

    In float32 on the CPU it is one compiled kernel, where there is one. Otherwise the ReLU follows the max
    pooling, which it commutes with.

    Args:
        conv: Convolution with folded BatchNorm; it is used as it is.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv
        # Computed on first use; concurrent threads compute equal values.
        self._packed: PackedWeight | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, K, ceil(H / 4), ceil(W / 4))."""
        if not self._uses_kernel(x):
            return pool_and_relu(self.conv(x))
        if self._packed is None:
            self._packed = pack_weight(self.conv.weight, self.conv.bias)
        return pool_and_relu(self.conv(x)) if self._packed is None else resnet_stem(x, self._packed)

    @staticmethod
    def _uses_kernel(x: Tensor) -> bool:
        is_plain = (x.device.type, x.dtype) == ("cpu", torch.float32) and bool(x.numel())
        return (
            is_plain and not torch.is_grad_enabled() and not is_compiling() and kernel_library() is not None
        )


def pool_and_relu(x: Tensor) -> Tensor:
    """Apply 3x3 max pooling with stride 2 and a padding of 1, and ReLU.

    On the CPU the output and the positions of the maxima, which torch computes too, take kept memory.

    Args:
        x: (N, C, H, W).

    Returns:
        (N, C, ceil(H / 2), ceil(W / 2)).
    """
    if torch.is_grad_enabled() or is_compiling() or x.device.type != "cpu":
        return F.relu(F.max_pool2d(x, 3, 2, 1), inplace=True)
    count, channels, height, width = x.shape
    shape = count, (height + 1) // 2, (width + 1) // 2, channels
    output, indices = (
        kept_memory.empty(shape, dtype).permute(0, 3, 1, 2) for dtype in (x.dtype, torch.int64)
    )
    torch.ops.aten.max_pool2d_with_indices.out(x, [3, 3], [2, 2], [1, 1], out=output, indices=indices)
    return output.relu_()
