"""Convolution with LeakyReLU."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import leaky_relu

SLOPE = 0.1  # of LeakyReLU below 0, as in NanoDet-Plus


class LeakyConv2d(nn.Conv2d):
    """A 2D convolution followed by LeakyReLU."""

    def forward(self, input: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C', H', W')."""
        return leaky_relu(super().forward(input), SLOPE)


def pointwise(in_channels: int, out_channels: int, *, leaky: bool = False) -> nn.Conv2d:
    """Return a 1x1 convolution, with LeakyReLU or without."""
    return _kind(leaky)(in_channels, out_channels, 1)


def depthwise(channels: int, kernel: int, stride: int = 1, *, leaky: bool = False) -> nn.Conv2d:
    """Return a depthwise convolution that pads its input by half a kernel, with LeakyReLU or without."""
    return _kind(leaky)(channels, channels, kernel, stride, kernel // 2, groups=channels)


def conv3x3(in_channels: int, out_channels: int, stride: int = 1, *, leaky: bool = False) -> nn.Conv2d:
    """Return a 3x3 convolution that pads its input by one pixel, with LeakyReLU or without."""
    return _kind(leaky)(in_channels, out_channels, 3, stride, 1)


def _kind(leaky: bool) -> type[nn.Conv2d]:
    return LeakyConv2d if leaky else nn.Conv2d
