"""Branches of the SOLO heads: stacked 3x3 convolutions with GroupNorm and ReLU."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from solo_infer.models.layers.deform_conv import DeformableConv

NUM_GROUPS = 32  # groups of every GroupNorm in the heads (SOLO paper, section 4)


class ConvBlock(nn.Sequential):
    """3x3 convolution, GroupNorm and ReLU; the submodules have the names of mmdet's ConvModule."""

    def __init__(self, in_channels: int, out_channels: int, bias: bool, deformable: bool) -> None:
        super().__init__()
        if deformable:
            self.conv: nn.Conv2d = DeformableConv(in_channels, out_channels, bias=bias)
        else:
            self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=bias)
        self.gn = nn.GroupNorm(NUM_GROUPS, out_channels)
        self.activate = nn.ReLU(inplace=True)


class ConvBranch(nn.Sequential):
    """Stacked ``ConvBlock`` layers with shared weights for all levels.

    Args:
        in_channels: Channels of the feature maps.
        channels: Channels of every block's output.
        depth: Number of blocks.
        axes: Axes whose coordinates the first block reads as further channels: "", "x", "y" or "xy".
        bias: Whether the convolutions have a bias.
        deformable_last: Whether the last convolution is deformable.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        depth: int,
        *,
        axes: str = "",
        bias: bool = False,
        deformable_last: bool = False,
    ) -> None:
        widths = [in_channels + len(axes)] + [channels] * (depth - 1)
        super().__init__(
            *(
                ConvBlock(width, channels, bias, deformable_last and index == depth - 1)
                for index, width in enumerate(widths)
            )
        )
        self.axes = axes

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Map feature maps (N, C, h, w) of several levels to (N, channels, h, w) each."""
        outputs = []
        for x in maps:
            x = append_coordinates(x, self.axes)
            for block in self:
                x = block(x)
            outputs.append(x)
        return outputs


def append_coordinates(feature: Tensor, axes: str) -> Tensor:
    """Append the coordinates along some axes ("", "x", "y", "xy") to the channels of (N, C, H, W)."""
    return append_channels(feature, coordinates(feature, axes)) if axes else feature


def append_channels(x: Tensor, channels: Tensor) -> Tensor:
    """Append channels (N or 1, c, H, W) to maps (N, C, H, W)."""
    channels = channels.expand(len(x), -1, -1, -1).contiguous(memory_format=torch.channels_last)
    return torch.cat([x, channels], dim=1)


def coordinates(feature: Tensor, axes: str) -> Tensor:
    """Return the coordinates of the pixels of a map (N, C, H, W) along some axes.

    Args:
        feature: Map that gives size, dtype and device.
        axes: "x", "y" or "xy".

    Returns:
        (1, len(axes), H, W), from -1 to 1 inclusive over the padded map.
    """
    height, width = feature.shape[-2:]
    x = torch.linspace(-1, 1, width, dtype=torch.float32, device=feature.device)
    y = torch.linspace(-1, 1, height, dtype=torch.float32, device=feature.device)
    maps = {"x": x.expand(height, width), "y": y[:, None].expand(height, width)}
    return torch.stack([maps[axis] for axis in axes])[None].to(feature.dtype)
