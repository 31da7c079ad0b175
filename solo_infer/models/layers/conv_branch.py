"""Branches of the heads: convolutions in a row with GroupNorm, over maps that may carry coordinates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from solo_infer.config import SOLOConfig
from solo_infer.models.layers.deform_conv import DeformableConv
from solo_infer.models.optimized.winograd_conv import WideConv, append

GROUPS = 32  # of every GroupNorm in the heads (paper, section 4)


class ConvBlock(nn.Sequential):
    """3x3 convolution, GroupNorm, ReLU; sub-modules are named as in mmdet's ConvModule."""

    def __init__(self, in_channels: int, out_channels: int, bias: bool, deformable: bool) -> None:
        super().__init__()
        if deformable:
            self.conv: nn.Conv2d = DeformableConv(in_channels, out_channels, bias=bias)
        else:
            self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=bias)
        self.gn = nn.GroupNorm(GROUPS, out_channels)
        self.activate = nn.ReLU(inplace=True)

    def each(self, maps: Sequence[Tensor], axes: str = "") -> list[Tensor]:
        """Run on maps of any sizes, to whose channels the coordinates along some axes are appended."""
        conv = self.conv
        if isinstance(conv, WideConv):
            found = conv.each(maps, [axis_maps(x, axes) for x in maps] if axes else ())
        else:
            found = [conv(with_coordinates(x, axes) if axes else x) for x in maps]
        return [self.activate(self.gn(x)) for x in found]


def branch(config: SOLOConfig, coordinate_channels: int = 0) -> nn.Sequential:
    """Return a branch of the head: ``stacked_convs`` blocks in a row."""
    width, depth = config.head_channels, config.stacked_convs
    widths = [config.pyramid_channels + coordinate_channels] + [width] * (depth - 1)
    deformable = [False] * (depth - 1) + [config.deformable_head]
    blocks = (
        ConvBlock(channels, width, config.head_bias, moves)
        for channels, moves in zip(widths, deformable, strict=True)
    )
    return nn.Sequential(*blocks)


def through(blocks: nn.Sequential, maps: Sequence[Tensor], axes: str = "") -> list[Tensor]:
    """Run a branch on maps of any sizes, block by block, which shares work among small ones.

    Args:
        blocks: The branch.
        maps: Each (N, C, h, w).
        axes: Whose coordinates the first block also reads: "x", "y", "xy" or none.
    """
    for block in blocks:
        maps, axes = cast(ConvBlock, block).each(maps, axes), ""
    return list(maps)


def coordinates(feature: Tensor) -> tuple[Tensor, Tensor]:
    """Return x and y maps (N, 1, H, W), each from -1 to 1 inclusive over the padded map."""
    n, _, height, width = feature.shape
    options = {"dtype": torch.float32, "device": feature.device}
    x = torch.linspace(-1, 1, width, **options).to(feature.dtype)  # type: ignore[call-overload]
    y = torch.linspace(-1, 1, height, **options).to(feature.dtype)  # type: ignore[call-overload]
    return x.expand(n, 1, height, width), y[:, None].expand(n, 1, height, width)


def axis_maps(feature: Tensor, axes: str) -> Tensor:
    """Return the coordinates along some axes, "x", "y" or "xy", of a feature map: (1, 1 or 2, H, W)."""
    maps = dict(zip("xy", coordinates(feature[:1]), strict=True))
    return torch.cat([maps[axis] for axis in axes], dim=1)


def with_coordinates(feature: Tensor, axes: str) -> Tensor:
    """Append the coordinates along some axes, "x", "y" or "xy", to the channels of a map (N, C, H, W)."""
    return append(feature, axis_maps(feature, axes))
