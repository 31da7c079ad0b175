"""Branches of the heads, run block by block over all levels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from solo_infer.models.layers.conv_branch import ConvBranch, append_channels, coordinates
from solo_infer.models.optimized.winograd_conv import WinogradConv2d


class LevelwiseConvBranch(nn.Module):
    """A ``ConvBranch`` that runs each block on all levels before the next block.

    Small levels then share the work of a ``WinogradConv2d``, which also keeps the coordinate channels apart
    from the others.

    Args:
        branch: Branch whose blocks are used as they are.
    """

    def __init__(self, branch: ConvBranch) -> None:
        super().__init__()
        self.blocks, self.axes = nn.ModuleList(branch), branch.axes

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Map feature maps (N, C, h, w) of several levels to (N, C', h, w) each."""
        outputs, axes = list(maps), self.axes
        block: Any
        for block in self.blocks:
            extra = [coordinates(x, axes) for x in outputs] if axes else []
            outputs, axes = self._convolve(block.conv, outputs, extra), ""
            outputs = [block.activate(block.gn(x)) for x in outputs]
        return outputs

    @staticmethod
    def _convolve(conv: nn.Module, maps: list[Tensor], extra: list[Tensor]) -> list[Tensor]:
        if isinstance(conv, WinogradConv2d):
            return conv.forward_levels(maps, extra)
        if extra:
            maps = [append_channels(x, channels) for x, channels in zip(maps, extra, strict=True)]
        return [conv(x) for x in maps]
