"""Masks of a fixed number of cells: nothing of their computation depends on how many there are.

``MaskMaps`` of ``models.solo`` computes what is asked for and no more, for which it must know on the host
which levels and cells that is. Here every shape is known before: all towers run, levels of equal size as one
batch, and each slot's map is picked by index tensors. That costs a GPU less than waiting for the answer, and
can be captured in a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby
from typing import NamedTuple, Protocol, cast

import torch
from torch import Tensor

from solo_infer.config import Architecture
from solo_infer.models.solo import (
    DecoupledHead,
    PlainHead,
    SOLOHead,
    SOLONetwork,
    quarter_size,
    resize,
    upsample,
)

Tower = Callable[[Tensor], tuple[Tensor, ...]]


class CellTable(NamedTuple):
    """Where each cell lies: (cells,) each, on the device of the network."""

    level: Tensor  # int64
    local: Tensor  # int64, row * grid + column within the level
    column: Tensor  # int64, among the columns of all levels
    row: Tensor  # int64, among the rows of all levels
    stride: Tensor  # float32, of the level, in input pixels

    @classmethod
    def of(cls, config: Architecture, device: torch.device) -> CellTable:
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


def slot_maps(network: SOLONetwork, levels: list[Tensor], table: CellTable) -> SlotMaps:
    """Run the mask branches of all levels."""
    head: SOLOHead = network.mask_head
    if isinstance(head, DecoupledHead):
        return DecoupledSlotMaps(head, levels, table)
    return PlainSlotMaps(cast(PlainHead, head), levels, table)


def run_towers(tower: Tower, levels: list[Tensor]) -> list[tuple[Tensor, ...]]:
    """Run a branch on each level, on neighbours of equal size as one batch."""
    found: list[tuple[Tensor, ...]] = []
    for _, members in groupby(levels, key=lambda level: level.shape):
        equal = list(members)
        outputs = tower(torch.cat(equal)) if len(equal) > 1 else tower(equal[0])
        found += zip(*(output.chunk(len(equal)) for output in outputs), strict=True)
    return found


class PlainSlotMaps:
    """Masks of a ``PlainHead``: each slot has its own row of the 1x1 convolution of its level."""

    def __init__(self, head: PlainHead, levels: list[Tensor], table: CellTable) -> None:
        self.size = quarter_size(levels)
        self._table = table
        towers = run_towers(lambda feature: (head.mask_tower(feature),), levels)
        self._levels = list(zip(head.conv_mask_list, (tower for (tower,) in towers), strict=True))

    def scores(self, cells: Tensor) -> Tensor:
        """Return the mask scores (N, K, H/4, W/4), float32 in 0..1, of cells (N, K)."""
        level = self._table.level[cells][..., None, None]
        out: Tensor | None = None
        numbered = enumerate(self._levels)
        for shape, members in groupby(numbered, key=lambda item: item[1][1].shape[-2:]):
            numbers, maps = [], None
            for number, (conv, tower) in members:
                own = self._logits(conv, tower, cells)  # (N, K, h * w)
                maps = own if maps is None else torch.where(level[..., 0] == number, own, maps)
                numbers.append(number)
            logits = cast(Tensor, maps).float().unflatten(2, shape)
            soft = resize(upsample(logits).sigmoid_(), self.size)
            among = (level >= numbers[0]) & (level <= numbers[-1])
            out = soft if out is None else torch.where(among, soft, out)
        return cast(Tensor, out)

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
        towers = run_towers(head.mask_towers, levels)
        self._columns = self._lines(head.conv_mask_list_x, [x for x, _ in towers])
        self._rows = self._lines(head.conv_mask_list_y, [y for _, y in towers])

    def _lines(self, convs: torch.nn.ModuleList, towers: list[Tensor]) -> Tensor:
        """Return the maps (N, lines of all levels, H/4, W/4), float32 in 0..1."""
        maps = [
            resize(conv(tower).float().sigmoid_(), self.size)
            for conv, tower in zip(convs, towers, strict=True)
        ]
        return torch.cat(maps, dim=1)

    def scores(self, cells: Tensor) -> Tensor:
        """Return the mask scores (N, K, H/4, W/4), float32 in 0..1, of cells (N, K)."""
        image = torch.arange(len(cells), device=cells.device)[:, None]
        columns, rows = self._table.column[cells], self._table.row[cells]
        return self._columns[image, columns].mul_(self._rows[image, rows])
