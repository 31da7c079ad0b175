"""Convolution of an up-sampled map."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from solo_infer.models.layers.resize import upsample


class UpsampledConv2d(nn.Conv2d):
    """Convolution of stride 1 of a map that is first up-sampled bilinearly by a factor of 2."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size, padding=kernel_size // 2)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, h, w) to (N, K, 2h, 2w)."""
        return super().forward(upsample(x))

    def select(self, x: Tensor, channels: Tensor) -> Tensor:
        """Compute some of the output channels.

        Args:
            x: (N, C, h, w) of any float dtype.
            channels: (k,) int64 output channels.

        Returns:
            (N, k, 2h, 2w) float32.
        """
        weight, bias = self.weight[channels], self.get_parameter("bias")[channels]
        return F.conv2d(upsample(x), weight, bias, padding=self.padding).float()
