"""ShuffleNetV2 (Ma et al., arXiv 1807.11164) in torchvision's order, without BatchNorm and with LeakyReLU.

The BatchNorm of the weights that it starts from is folded into the convolutions, which have a bias instead.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from solo_infer.config.tiny import SHUFFLENET_CHANNELS
from solo_infer.models.layers.leaky_conv import conv3x3, depthwise, pointwise

_BLOCKS = (4, 8, 4)  # blocks of each stage, at every width


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
        self.stem = conv3x3(3, stem, stride=2, leaky=True)
        self.stages = nn.ModuleList(
            nn.Sequential(DownBlock(before, after), *(Block(after) for _ in range(blocks - 1)))
            for before, after, blocks in zip(self.out_channels, widths, _BLOCKS, strict=False)
        )

    def forward(self, images: Tensor) -> list[Tensor]:
        """Map (N, 3, H, W) to the maps of the stem, at stride 2, and of the stages, at strides 8, 16, 32."""
        maps = [self.stem(images)]
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
        self.left_pointwise = pointwise(in_channels, half, leaky=True)
        self.expand = pointwise(in_channels, half, leaky=True)
        self.depthwise = depthwise(half, 3, stride=2)
        self.pointwise = pointwise(half, half, leaky=True)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C', H / 2, W / 2), rounded up."""
        left = self.left_pointwise(self.left_depthwise(x))
        right = self.pointwise(self.depthwise(self.expand(x)))
        return interleave(left, right)


class Block(nn.Module):
    """Unit of stride 1: the second half of the channels passes three convolutions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.expand = pointwise(half, half, leaky=True)
        self.depthwise = depthwise(half, 3)
        self.pointwise = pointwise(half, half, leaky=True)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to the same size."""
        half = x.shape[1] // 2
        return interleave(x[:, :half], self.pointwise(self.depthwise(self.expand(x[:, half:]))))


def interleave(left: Tensor, right: Tensor) -> Tensor:
    """Return the channels of two maps (N, C, H, W) in turn, (N, 2 C, H, W) in channels_last.

    This is the concatenation and the shuffle of ShuffleNet in one copy.
    """
    pairs = torch.stack([left.movedim(1, -1), right.movedim(1, -1)], dim=-1)
    return pairs.flatten(-2).movedim(-1, 1)


def quarter(stem: Tensor) -> Tensor:
    """Return the input of the first stage, at stride 4, from the map of the stem."""
    return F.max_pool2d(stem, 3, stride=2, padding=1)
