"""ShuffleNetV2 (Ma et al., arXiv 1807.11164) in torchvision's order, without BatchNorm and with LeakyReLU.

The BatchNorm of the weights that it starts from is folded into the convolutions, which have a bias instead.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from solo_infer.config.tiny import SHUFFLENET_CHANNELS

_BLOCKS = (4, 8, 4)  # blocks of each stage, at every width
SLOPE = 0.1  # of LeakyReLU, as in NanoDet-Plus

leaky_relu = partial(F.leaky_relu, negative_slope=SLOPE)


def pointwise(in_channels: int, out_channels: int) -> nn.Conv2d:
    """Return a 1x1 convolution."""
    return nn.Conv2d(in_channels, out_channels, 1)


def depthwise(channels: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    """Return a depthwise convolution that pads its input by half a kernel."""
    return nn.Conv2d(channels, channels, kernel, stride, kernel // 2, groups=channels)


class ShuffleNet(nn.Module):
    """Backbone.

    Args:
        name: "shufflenet_1x" or "shufflenet_1.5x".

    Attributes:
        out_channels: Channels of the returned maps.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        stem, *widths = SHUFFLENET_CHANNELS[name]
        self.out_channels = (stem, *widths)
        self.stem = nn.Conv2d(3, stem, 3, stride=2, padding=1)
        self.stages = nn.ModuleList(
            nn.Sequential(DownBlock(before, after), *(Block(after) for _ in range(blocks - 1)))
            for before, after, blocks in zip(self.out_channels, widths, _BLOCKS, strict=False)
        )

    def forward(self, images: Tensor) -> list[Tensor]:
        """Map (N, 3, H, W) to the maps of the stem, at stride 2, and of the stages, at strides 8, 16, 32."""
        maps = [leaky_relu(self.stem(images))]
        x = quarter(maps[0])
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps

    def freeze_stem(self) -> None:
        """Freeze the stem and the first stage."""
        self.stem.requires_grad_(False)
        self.stages[0].requires_grad_(False)


class DownBlock(nn.Module):
    """Unit of stride 2: two branches read all channels."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        half = out_channels // 2
        self.left_depthwise = depthwise(in_channels, 3, stride=2)
        self.left_pointwise = pointwise(in_channels, half)
        self.expand = pointwise(in_channels, half)
        self.depthwise = depthwise(half, 3, stride=2)
        self.pointwise = pointwise(half, half)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C', H / 2, W / 2), rounded up."""
        left = leaky_relu(self.left_pointwise(self.left_depthwise(x)))
        right = leaky_relu(self.pointwise(self.depthwise(leaky_relu(self.expand(x)))))
        return shuffle(torch.cat([left, right], dim=1))


class Block(nn.Module):
    """Unit of stride 1: the second half of the channels passes three convolutions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.expand = pointwise(half, half)
        self.depthwise = depthwise(half, 3)
        self.pointwise = pointwise(half, half)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to the same size."""
        left, right = x.chunk(2, dim=1)
        right = leaky_relu(self.pointwise(self.depthwise(leaky_relu(self.expand(right)))))
        return shuffle(torch.cat([left, right], dim=1))


def shuffle(x: Tensor) -> Tensor:
    """Interleave the two halves of the channels (N, C, H, W)."""
    return x.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)


def quarter(stem: Tensor) -> Tensor:
    """Return the input of the first stage, at stride 4, from the map of the stem."""
    return F.max_pool2d(stem, 3, stride=2, padding=1)
