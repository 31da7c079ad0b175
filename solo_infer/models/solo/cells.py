"""Numbering of the grid cells.

Cells are numbered over all levels: level by level, finest first, row by row (mmdet's order).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from solo_infer.config import SOLOConfig


class CellTable(NamedTuple):
    """Position of every grid cell; each tensor is (cells,) int64."""

    level: Tensor  # level, finest 0
    local: Tensor  # row * grid + column within the level
    column: Tensor  # index among the columns of all levels
    row: Tensor  # index among the rows of all levels
    stride: Tensor  # stride of the level in input pixels


def cell_table(config: SOLOConfig) -> CellTable:
    """Return the positions of the grid cells of an architecture, on the CPU."""
    levels = []
    first_line = 0
    for level, (grid, stride) in enumerate(zip(config.num_grids, config.strides, strict=True)):
        local = torch.arange(grid * grid, dtype=torch.int64, device="cpu")
        column, row = local % grid, local.div(grid, rounding_mode="floor")
        levels.append(
            (
                torch.full_like(local, level),
                local,
                first_line + column,
                first_line + row,
                torch.full_like(local, stride),
            )
        )
        first_line += grid
    return CellTable(*(torch.cat(columns) for columns in zip(*levels, strict=True)))


class LevelCells(NamedTuple):
    """The cells of a list that belong to one level."""

    level: int
    slice_: slice  # their positions in the list
    rows: Tensor  # (k,) int64 grid rows
    columns: Tensor  # (k,) int64 grid columns


def split_cells(num_grids: Sequence[int], cells: Tensor) -> Iterator[LevelCells]:
    """Yield the cells (K,) int64, ascending, of each level that has any."""
    starts = [0, *accumulate(grid * grid for grid in num_grids)]
    bounds = torch.tensor(starts, dtype=torch.int64, device=cells.device)
    offsets = torch.searchsorted(cells, bounds).tolist()
    for level, grid in enumerate(num_grids):
        slice_ = slice(offsets[level], offsets[level + 1])
        if slice_.start < slice_.stop:
            local = cells[slice_] - starts[level]
            yield LevelCells(level, slice_, local.div(grid, rounding_mode="floor"), local % grid)
