"""Feature pyramid of Tiny: the GhostPAN of NanoDet-Plus, top-down and then bottom-up."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from solo_infer.models.layers.leaky_conv import depthwise, pointwise


class GhostPAN(nn.Module):
    """Four feature maps P3 to P6 from three.

    Args:
        in_channels: Channels of C3, C4 and C5.
        channels: Channels of the pyramid.
    """

    def __init__(self, in_channels: Sequence[int], channels: int) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(pointwise(width, channels, leaky=True) for width in in_channels)
        self.top_down = nn.ModuleList(GhostBlock(2 * channels, channels) for _ in range(2))
        self.downsample = nn.ModuleList(SeparableConv(channels, stride=2) for _ in range(2))
        self.bottom_up = nn.ModuleList(GhostBlock(2 * channels, channels) for _ in range(2))
        self.extra_from_c5 = SeparableConv(channels, stride=2)
        self.extra_from_p5 = SeparableConv(channels, stride=2)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Map C3, C4, C5 at strides 8, 16, 32 to P3, P4, P5, P6 at strides 8, 16, 32, 64."""
        c3, c4, c5 = (conv(x) for conv, x in zip(self.lateral, maps, strict=True))
        middle = self.top_down[0](torch.cat([resize_like(c5, c4), c4], dim=1))
        p3 = self.top_down[1](torch.cat([resize_like(middle, c3), c3], dim=1))
        p4 = self.bottom_up[0](torch.cat([self.downsample[0](p3), middle], dim=1))
        p5 = self.bottom_up[1](torch.cat([self.downsample[1](p4), c5], dim=1))
        return [p3, p4, p5, self.extra_from_c5(c5) + self.extra_from_p5(p5)]


class SeparableConv(nn.Module):
    """Depthwise 5x5 and 1x1 convolution, LeakyReLU after both."""

    def __init__(self, channels: int, stride: int = 1) -> None:
        super().__init__()
        self.depthwise = depthwise(channels, 5, stride, leaky=True)
        self.pointwise = pointwise(channels, channels, leaky=True)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C, H / stride, W / stride), rounded up."""
        return self.pointwise(self.depthwise(x))


class GhostConv(nn.Module):
    """Half of the channels from a 1x1 convolution, the other half from a depthwise one of these."""

    def __init__(self, in_channels: int, out_channels: int, leaky: bool) -> None:
        super().__init__()
        half = out_channels // 2
        self.primary = pointwise(in_channels, half, leaky=leaky)
        self.cheap = depthwise(half, 3, leaky=leaky)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C', H, W)."""
        first = self.primary(x)
        return torch.cat([first, self.cheap(first)], dim=1)


class GhostBlock(nn.Module):
    """Two ghost convolutions beside a separable shortcut."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.ghost1 = GhostConv(in_channels, channels, leaky=True)
        self.ghost2 = GhostConv(channels, channels, leaky=False)
        self.shortcut_depthwise = depthwise(in_channels, 5)
        self.shortcut_pointwise = pointwise(in_channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C', H, W)."""
        return self.ghost2(self.ghost1(x)) + self.shortcut_pointwise(self.shortcut_depthwise(x))


def resize_like(x: Tensor, other: Tensor) -> Tensor:
    """Resize maps (N, C, h, w) bilinearly to the size of others."""
    size = (other.shape[-2], other.shape[-1])
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)
