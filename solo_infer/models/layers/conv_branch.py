"""Branches of the SOLO heads: stacked convolutions with GroupNorm and ReLU."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from solo_infer.models.layers.deform_conv import DeformableConv

NUM_GROUPS = 32  # groups of every GroupNorm in the heads (SOLO paper, section 4)


class ConvBlock(nn.Sequential):
    """Convolution, GroupNorm and ReLU; the submodules have the names of mmdet's ConvModule.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Taps along each side, odd. Defaults to 3.
        bias: Whether the convolution has a bias. Defaults to False.
        deformable: Whether the convolution is deformable. Defaults to False.
        modulated: Whether a deformable convolution is one of version 2. Defaults to False.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        *,
        bias: bool = False,
        deformable: bool = False,
        modulated: bool = False,
    ) -> None:
        super().__init__()
        if deformable:
            self.conv: nn.Conv2d = DeformableConv(
                in_channels, out_channels, kernel_size, bias=bias, modulated=modulated
            )
        else:
            padding = kernel_size // 2
            self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=padding, bias=bias)
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
        deformable: Convolutions that are deformable: "none", "last" or "all".
        modulated: Whether deformable convolutions are those of version 2.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        depth: int,
        *,
        axes: str = "",
        bias: bool = False,
        deformable: str = "none",
        modulated: bool = False,
    ) -> None:
        widths = [in_channels + len(axes)] + [channels] * (depth - 1)
        first_deformable = {"none": depth, "last": depth - 1, "all": 0}[deformable]
        super().__init__(
            *(
                ConvBlock(
                    width, channels, bias=bias, deformable=index >= first_deformable, modulated=modulated
                )
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
    channels = channels.expand(x.shape[0], -1, -1, -1).contiguous(memory_format=torch.channels_last)
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
    x, y = (_even_steps(length, feature.device) for length in (width, height))
    maps = {"x": x.expand(height, width), "y": y[:, None].expand(height, width)}
    return torch.stack([maps[axis] for axis in axes])[None].to(feature.dtype)


def _even_steps(count: int, device: torch.device) -> Tensor:
    """Return numbers (count,) float32 from -1 to 1."""
    if isinstance(count, int):
        return torch.linspace(-1, 1, count, dtype=torch.float32, device=device)
    # Linspace would fix a side that torch.export traces as a symbol to the size of the example.
    index = torch.arange(count, dtype=torch.float32, device=device)
    return 2 * index / index[-1:].clamp(min=1) - 1
