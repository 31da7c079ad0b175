"""Max pooling and ReLU of the ResNet stem."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from solo_infer.ops.dispatch import is_compiling
from solo_infer.runtime import kept_memory


class StemPool(nn.Module):
    """3x3 max pooling with stride 2 and a padding of 1, and ReLU, which commutes with it.

    On the CPU the output and the positions of the maxima, which torch computes too, take kept memory.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C, ceil(H / 2), ceil(W / 2))."""
        if torch.is_grad_enabled() or is_compiling() or x.device.type != "cpu":
            return F.relu(F.max_pool2d(x, 3, 2, 1), inplace=True)
        count, channels, height, width = x.shape
        shape = count, (height + 1) // 2, (width + 1) // 2, channels
        output, indices = (
            kept_memory.empty(shape, dtype).permute(0, 3, 1, 2) for dtype in (x.dtype, torch.int64)
        )
        torch.ops.aten.max_pool2d_with_indices.out(x, [3, 3], [2, 2], [1, 1], out=output, indices=indices)
        return output.relu_()
