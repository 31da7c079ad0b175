"""Masks of candidate cells, computed on request.

A network has thousands of grid cells, of which a few hundred hold candidates. ``CandidateMasks`` gives the
masks of those, in any number of steps, so that all masks never exist at the same time.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property

import torch
from torch import Tensor

from solo_infer.models.layers.resize import resize
from solo_infer.models.solo.cells import LevelCells, split_cells
from solo_infer.ops.kernel_mask_statistics import kernel_mask_scores, kernel_mask_statistics
from solo_infer.ops.mask_statistics import MaskStatistics, mask_statistics

# Bytes of float32 masks per step; a step needs about four times this. On the CPU they should stay in the
# cache, and the allocator should keep their memory.
CHUNK_BYTES = 64 << 20
CPU_CHUNK_BYTES = 16 << 20


class CandidateMasks(ABC):
    """Masks of grid cells, all of one size.

    Attributes:
        size: (height, width) of every mask, a quarter of the padded input.
    """

    size: tuple[int, int]

    @abstractmethod
    def scores(self, cells: Tensor) -> Tensor:
        """Return mask scores.

        Args:
            cells: (..., K) int64. ``LevelMasks`` takes (K,) of one image, ascending; static masks take
                (N, K) of a batch in any order.

        Returns:
            (..., K, H/4, W/4) float32 in 0..1.
        """

    def statistics(self, cells: Tensor, threshold: float) -> MaskStatistics:
        """Return areas, sums of scores and packed bits of the masks of cells (..., K), chunk by chunk.

        Args:
            cells: As for ``scores``.
            threshold: Mask score that a pixel of the mask must exceed, 0..1.
        """
        chunks = cells.split(self.chunk_length(cells), dim=-1)
        parts = [mask_statistics(self.scores(chunk), threshold) for chunk in chunks]
        areas, sums, packed = zip(*parts, strict=True)
        return MaskStatistics(torch.cat(areas, dim=-1), torch.cat(sums, dim=-1), torch.cat(packed, dim=-2))

    def chunk_length(self, cells: Tensor) -> int:
        """Return the number of cells, along the last axis, whose masks fit into one step."""
        limit = CPU_CHUNK_BYTES if cells.device.type == "cpu" else CHUNK_BYTES
        images = cells.numel() // max(cells.shape[-1], 1)
        return max(limit // (4 * self.size[0] * self.size[1] * max(images, 1)), 1)


class LevelMasks(CandidateMasks):
    """Base class of the masks of one image, computed level by level.

    Args:
        num_grids: Grid cells along each side, of each level.
        size: (height, width) of every mask.
    """

    def __init__(self, num_grids: Sequence[int], size: tuple[int, int]) -> None:
        self.num_grids, self.size = num_grids, size

    @abstractmethod
    def level_scores(self, cells: LevelCells) -> Tensor:
        """Return the mask scores (k, 2h, 2w), float32, of cells of one level of size h x w."""

    @abstractmethod
    def write_scores(self, cells: LevelCells, out: Tensor) -> None:
        """Write the mask scores of cells of one level to ``out`` (k, H/4, W/4) float32."""

    def scores(self, cells: Tensor) -> Tensor:
        """Return the mask scores (K, H/4, W/4), float32 in 0..1, of cells (K,), ascending."""
        out = torch.empty((len(cells), *self.size), dtype=torch.float32, device=cells.device)
        for level_cells in split_cells(self.num_grids, cells):
            self.write_scores(level_cells, out[level_cells.slice_])
        return out


class CellMasks(LevelMasks):
    """Masks of SOLO: one map of logits per cell.

    Args:
        num_grids: Grid cells along each side, of each level.
        size: (height, width) of every mask.
        level_logits: Returns the mask logits (k, 2h, 2w), float32, of cells of one level.
    """

    def __init__(
        self, num_grids: Sequence[int], size: tuple[int, int], level_logits: Callable[[LevelCells], Tensor]
    ) -> None:
        super().__init__(num_grids, size)
        self._level_logits = level_logits

    def level_scores(self, cells: LevelCells) -> Tensor:
        """Return the mask scores (k, 2h, 2w), float32, of cells of one level."""
        return self._level_logits(cells).sigmoid()

    def write_scores(self, cells: LevelCells, out: Tensor) -> None:
        """Write the mask scores of cells of one level to ``out`` (k, H/4, W/4) float32."""
        logits = self._level_logits(cells)
        if logits.shape[1:] == out.shape[1:] and not torch.is_grad_enabled():
            torch.sigmoid(logits, out=out)
        else:
            out.copy_(resize(logits.sigmoid()[None], self.size)[0])


class KernelMasks(CandidateMasks):
    """Masks of SOLOv2: the kernel of each cell, as a 1x1 convolution of the mask features.

    Args:
        features: (E, H/4, W/4) mask features of one image.
        cells: (K,) int64, ascending, the cells that have kernels.
        kernels: (K, E) their kernels.
    """

    def __init__(self, features: Tensor, cells: Tensor, kernels: Tensor) -> None:
        self.size = (features.shape[-2], features.shape[-1])
        self._features, self._cells, self._kernels = features, cells, kernels

    def scores(self, cells: Tensor) -> Tensor:
        """Return the mask scores (k, H/4, W/4), float32 in 0..1, of cells (k,) out of those with kernels."""
        scores = kernel_mask_scores(self._kernels_of(cells), self._features.flatten(1))
        return scores.view(len(cells), *self.size)

    def statistics(self, cells: Tensor, threshold: float) -> MaskStatistics:
        """Return areas, sums of scores and packed bits of the masks of cells (k,)."""
        if cells.device.type != "cpu":
            return super().statistics(cells, threshold)
        return kernel_mask_statistics(self._kernels_of(cells), self._features.flatten(1), threshold)

    def _kernels_of(self, cells: Tensor) -> Tensor:
        return self._kernels[torch.searchsorted(self._cells, cells)]


class AxisScores:
    """Mask scores of the columns (or rows) in use of one level, of one image.

    Args:
        lines: (k,) int64 columns or rows, ascending.
        scores: (k, 2h, 2w) float32 in 0..1.
        size: (height, width) of the masks.
    """

    def __init__(self, lines: Tensor, scores: Tensor, size: tuple[int, int]) -> None:
        self.lines, self.scores, self._size = lines, scores, size

    @cached_property
    def resized(self) -> Tensor:
        """Scores (k, H/4, W/4) at the size of the masks."""
        return resize(self.scores[None], self._size)[0]

    def index_of(self, lines: Tensor) -> Tensor:
        """Return the positions (K,) of columns or rows (K,) among those in use."""
        return torch.searchsorted(self.lines, lines)


class AxisMasks(LevelMasks):
    """Masks of Decoupled SOLO: the product of the scores of a column and of a row.

    Args:
        num_grids: Grid cells along each side, of each level.
        size: (height, width) of every mask.
        columns: Scores of the columns of each level in use.
        rows: Scores of the rows of each level in use.
    """

    def __init__(
        self,
        num_grids: Sequence[int],
        size: tuple[int, int],
        columns: Mapping[int, AxisScores],
        rows: Mapping[int, AxisScores],
    ) -> None:
        super().__init__(num_grids, size)
        self._columns, self._rows = columns, rows

    def level_scores(self, cells: LevelCells) -> Tensor:
        """Return the mask scores (k, 2h, 2w), float32, of cells of one level."""
        columns, rows = self._columns[cells.level], self._rows[cells.level]
        x = columns.scores.index_select(0, columns.index_of(cells.columns))
        return x * rows.scores.index_select(0, rows.index_of(cells.rows))

    def write_scores(self, cells: LevelCells, out: Tensor) -> None:
        """Write the mask scores of cells of one level to ``out`` (k, H/4, W/4) float32."""
        columns, rows = self._columns[cells.level], self._rows[cells.level]
        torch.index_select(columns.resized, 0, columns.index_of(cells.columns), out=out)
        out.mul_(rows.resized.index_select(0, rows.index_of(cells.rows)))
