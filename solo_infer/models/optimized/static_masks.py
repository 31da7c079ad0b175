"""Masks of a fixed number of cells: nothing of their computation depends on how many there are.

``MaskMaps`` of ``models.solo`` computes what is asked for and no more, for which it must know on the host
which levels and cells that is. Here every shape is known before: all towers run, levels of equal size as one
batch, and each slot's map is picked by index tensors. That costs a GPU less than waiting for the answer, and
can be captured in a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import NamedTuple, Protocol, cast

import torch
from torch import Tensor

from solo_infer.config import SOLOConfig
from solo_infer.models.optimized.upsampled_conv import upsample
from solo_infer.models.solo.network import (
    DecoupledHead,
    PlainHead,
    SOLOHead,
    SOLONetwork,
    quarter_size,
    resize,
)
from solo_infer.ops.mask_statistics import (
    MaskStatistics,
    axis_mask_scores,
    axis_mask_statistics,
    cell_mask_scores,
    cell_mask_statistics,
)

# Maps of some levels -> for each branch, what it makes of each of them.
Branches = Callable[[list[Tensor]], Sequence[list[Tensor]]]


class CellTable(NamedTuple):
    """Where each cell lies: (cells,) each, on the device of the network."""

    level: Tensor  # int64
    local: Tensor  # int64, row * grid + column within the level
    column: Tensor  # int64, among the columns of all levels
    row: Tensor  # int64, among the rows of all levels
    stride: Tensor  # float32, of the level, in input pixels

    @classmethod
    def of(cls, config: SOLOConfig, device: torch.device) -> CellTable:
        """Build the table of an architecture."""
        parts = []
        start = 0
        for level, (grid, stride) in enumerate(zip(config.num_grids, config.strides, strict=True)):
            local = torch.arange(grid * grid)
            levels = torch.full_like(local, level)
            columns, rows = start + local % grid, start + local // grid
            parts.append((levels, local, columns, rows, torch.full(local.shape, float(stride))))
            start += grid
        return cls(*(torch.cat(part).to(device) for part in zip(*parts, strict=True)))


class SlotMaps(Protocol):
    """Masks of slots, of every image of a batch at once."""

    size: tuple[int, int]  # of each mask, (H/4, W/4)

    def scores(self, cells: Tensor) -> Tensor:
        """Return the mask scores (N, K, H/4, W/4), float32 in 0..1, of cells (N, K), K of each image."""

    def statistics(self, cells: Tensor, threshold: float) -> MaskStatistics:
        """Return the statistics (N, K) of the masks of cells (N, K)."""


def slot_maps(network: SOLONetwork, levels: list[Tensor], table: CellTable) -> SlotMaps:
    """Run the mask branches of all levels."""
    head: SOLOHead = network.mask_head
    if isinstance(head, DecoupledHead):
        return DecoupledSlotMaps(head, levels, table)
    return PlainSlotMaps(cast(PlainHead, head), levels, table)


def run_towers(branches: Branches, levels: list[Tensor]) -> list[list[Tensor]]:
    """Run branches on each level, on neighbors of equal size as one batch; return each branch's towers."""
    groups = [list(members) for _, members in groupby(levels, key=lambda level: level.shape)]
    outputs = branches([torch.cat(members) if len(members) > 1 else members[0] for members in groups])
    return [
        [
            tower
            for output, members in zip(towers, groups, strict=True)
            for tower in output.chunk(len(members))
        ]
        for towers in outputs
    ]


class PlainSlotMaps:
    """Masks of a ``PlainHead``: each slot has its own row of the 1x1 convolution of its level."""

    def __init__(self, head: PlainHead, levels: list[Tensor], table: CellTable) -> None:
        self.size = quarter_size(levels)
        self._table = table
        (towers,) = run_towers(lambda maps: [head.mask_towers(maps)], levels)
        self._levels = list(zip(head.conv_mask_list, towers, strict=True))

    def scores(self, cells: Tensor) -> Tensor:
        """Return the mask scores (N, K, H/4, W/4), float32 in 0..1, of cells (N, K)."""
        first_levels, sizes, logits = zip(*self._logits_by_size(cells), strict=True)
        return cell_mask_scores(
            torch.cat(logits, dim=2), self._table.level[cells], sizes, self.size, first_levels
        )

    def statistics(self, cells: Tensor, threshold: float) -> MaskStatistics:
        """See ``SlotMaps``."""
        first_levels, sizes, logits = zip(*self._logits_by_size(cells), strict=True)
        return cell_mask_statistics(
            torch.cat(logits, dim=2), self._table.level[cells], sizes, self.size, threshold, first_levels
        )

    def _logits_by_size(self, cells: Tensor) -> Iterator[tuple[int, tuple[int, int], Tensor]]:
        """Yield for levels of equal size the first one, their size, and the cells' logits (N, K, h * w).

        The logits of cells of other levels mean nothing.
        """
        level = self._table.level[cells][..., None]
        for shape, members in groupby(enumerate(self._levels), key=lambda item: item[1][1].shape[-2:]):
            (first, (conv, tower)), *others = members
            maps = self._logits(conv, tower, cells)
            for number, (conv, tower) in others:
                maps = torch.where(level == number, self._logits(conv, tower, cells), maps)
            yield first, (shape[0], shape[1]), maps

    def _logits(self, conv: torch.nn.Module, tower: Tensor, cells: Tensor) -> Tensor:
        """Return (N, K, h * w) as if all cells lay on this level; those of others are to be overwritten."""
        weight, bias = conv.get_parameter("weight"), conv.get_parameter("bias")
        local = self._table.local[cells].clamp(max=len(weight) - 1)
        return torch.baddbmm(bias[local][..., None], weight[:, :, 0, 0][local], tower.flatten(2))


class DecoupledSlotMaps:
    """Masks of a ``DecoupledHead``: the maps of all columns and rows, multiplied for each slot."""

    def __init__(self, head: DecoupledHead, levels: list[Tensor], table: CellTable) -> None:
        self.size = quarter_size(levels)
        self._table = table
        x, y = run_towers(head.mask_towers, levels)
        self._columns = self._lines(head.conv_mask_list_x, x)
        self._rows = self._lines(head.conv_mask_list_y, y)

    def _lines(self, convs: torch.nn.ModuleList, towers: list[Tensor]) -> Tensor:
        """Return the maps (N, lines of all levels, H/4, W/4), float32 in 0..1."""
        maps = [
            resize(conv(upsample(tower)).float().sigmoid_(), self.size)
            for conv, tower in zip(convs, towers, strict=True)
        ]
        return torch.cat(maps, dim=1)

    def scores(self, cells: Tensor) -> Tensor:
        """Return the mask scores (N, K, H/4, W/4), float32 in 0..1, of cells (N, K)."""
        columns, rows = self._table.column[cells], self._table.row[cells]
        return axis_mask_scores(self._columns, self._rows, columns, rows)

    def statistics(self, cells: Tensor, threshold: float) -> MaskStatistics:
        """See ``SlotMaps``."""
        columns, rows = self._table.column[cells], self._table.row[cells]
        return axis_mask_statistics(self._columns, self._rows, columns, rows, threshold)
