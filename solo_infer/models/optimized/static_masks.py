"""Masks of candidate cells with static shapes.

``models.solo.masks`` computes the masks of just the cells in use, for which the host must know levels and
cells. Here every shape is known beforehand: the mask branch runs on all levels, levels of equal size as one
batch, and index tensors select the map or the kernel of each cell. On a GPU that costs less than a host
synchronization, and it can be captured in a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import singledispatch
from itertools import groupby

import torch
from torch import Tensor, nn

from solo_infer.models.layers.resize import resize
from solo_infer.models.solo.head import BaseHead, DecoupledHead, SOLOHead, mask_size
from solo_infer.models.solo.masks import CandidateMasks
from solo_infer.models.solo.solov2_head import SOLOv2Head
from solo_infer.ops.mask_statistics import (
    MaskStatistics,
    axis_mask_scores,
    axis_mask_statistics,
    cell_mask_scores,
    cell_mask_statistics,
)

# Feature maps of some levels -> for each branch, its output for each of them.
Branches = Callable[[list[Tensor]], Sequence[list[Tensor]]]


@singledispatch
def static_masks(head: BaseHead, levels: Sequence[Tensor]) -> CandidateMasks:
    """Run the mask branch of a head on all levels, and return the masks of a batch.

    Args:
        head: Head of a SOLO network.
        levels: Five feature maps (N, C, h, w), finest first.
    """
    raise TypeError(f"{type(head).__name__}: expected a SOLOHead, a DecoupledHead or a SOLOv2Head.")


@static_masks.register
def _(head: SOLOHead, levels: Sequence[Tensor]) -> CandidateMasks:
    return StaticCellMasks(head, levels)


@static_masks.register
def _(head: DecoupledHead, levels: Sequence[Tensor]) -> CandidateMasks:
    return StaticAxisMasks(head, levels)


@static_masks.register
def _(head: SOLOv2Head, levels: Sequence[Tensor]) -> CandidateMasks:
    return StaticKernelMasks(head, levels)


def run_branches(branches: Branches, levels: Sequence[Tensor]) -> list[list[Tensor]]:
    """Run branches on all levels, adjacent levels of equal size as one batch.

    Returns:
        For each branch, its output for each level.
    """
    groups = [list(members) for _, members in groupby(levels, key=lambda level: level.shape)]
    outputs = branches([torch.cat(members) if len(members) > 1 else members[0] for members in groups])
    return [
        [level for batch, members in zip(output, groups, strict=True) for level in batch.chunk(len(members))]
        for output in outputs
    ]


class StaticCellMasks(CandidateMasks):
    """Masks of a ``SOLOHead``: each cell selects its row of the 1x1 convolution of its level.

    Args:
        head: Head of the network.
        levels: Five feature maps (N, C, h, w), finest first.
    """

    def __init__(self, head: SOLOHead, levels: Sequence[Tensor]) -> None:
        self.size, self._cells = mask_size(levels), head.cells
        (features,) = run_branches(lambda maps: [head.mask_convs(maps)], levels)
        self._levels = list(zip(head.conv_mask_list, features, strict=True))
        groups = groupby(range(len(features)), key=lambda level: features[level].shape[-2:])
        self._groups = [list(members) for _, members in groups]
        self._first_levels = tuple(members[0] for members in self._groups)
        self._sizes = [(features[level].shape[-2], features[level].shape[-1]) for level in self._first_levels]

    def scores(self, cells: Tensor) -> Tensor:
        """Return the mask scores (N, K, H/4, W/4), float32 in 0..1, of cells (N, K)."""
        levels = self._cells.level[cells]
        return cell_mask_scores(self._logits(cells), levels, self._sizes, self.size, self._first_levels)

    def statistics(self, cells: Tensor, threshold: float) -> MaskStatistics:
        """Return areas, sums of scores and packed bits of the masks of cells (N, K)."""
        return cell_mask_statistics(
            self._logits(cells),
            self._cells.level[cells],
            self._sizes,
            self.size,
            threshold,
            self._first_levels,
        )

    def _logits(self, cells: Tensor) -> Tensor:
        """Return the logits (N, K, pixels) of cells as if they were on each distinct level size in turn.

        Only the logits at the size of a cell's own level are meaningful.
        """
        level = self._cells.level[cells][..., None]
        maps = []
        for members in self._groups:
            logits = self._level_logits(members[0], cells)
            for other in members[1:]:
                logits = torch.where(level == other, self._level_logits(other, cells), logits)
            maps.append(logits)
        return torch.cat(maps, dim=2)

    def _level_logits(self, level: int, cells: Tensor) -> Tensor:
        """Return the logits (N, K, h * w) of cells as if all were on one level."""
        conv, feature = self._levels[level]
        weight, bias = conv.get_parameter("weight"), conv.get_parameter("bias")
        local = self._cells.local[cells].clamp(max=len(weight) - 1)
        return torch.baddbmm(bias[local][..., None], weight[:, :, 0, 0][local], feature.flatten(2))


class StaticAxisMasks(CandidateMasks):
    """Masks of a ``DecoupledHead``: the maps of all columns and rows, multiplied for each cell.

    Args:
        head: Head of the network.
        levels: Five feature maps (N, C, h, w), finest first.
    """

    def __init__(self, head: DecoupledHead, levels: Sequence[Tensor]) -> None:
        self.size, self._cells = mask_size(levels), head.cells
        features_x, features_y = run_branches(head.mask_features, levels)
        self._columns = self._scores_of_lines(head.conv_mask_list_x, features_x)
        self._rows = self._scores_of_lines(head.conv_mask_list_y, features_y)

    def _scores_of_lines(self, convs: nn.ModuleList, features: list[Tensor]) -> Tensor:
        """Return the scores (N, lines of all levels, H/4, W/4), float32 in 0..1."""
        maps = [
            resize(conv(x).float().sigmoid_(), self.size) for conv, x in zip(convs, features, strict=True)
        ]
        return torch.cat(maps, dim=1)

    def scores(self, cells: Tensor) -> Tensor:
        """Return the mask scores (N, K, H/4, W/4), float32 in 0..1, of cells (N, K)."""
        columns, rows = self._cells.column[cells], self._cells.row[cells]
        return axis_mask_scores(self._columns, self._rows, columns, rows)

    def statistics(self, cells: Tensor, threshold: float) -> MaskStatistics:
        """Return areas, sums of scores and packed bits of the masks of cells (N, K)."""
        columns, rows = self._cells.column[cells], self._cells.row[cells]
        return axis_mask_statistics(self._columns, self._rows, columns, rows, threshold)


class StaticKernelMasks(CandidateMasks):
    """Masks of a ``SOLOv2Head``: the kernels of the cells times the mask features, as one batched product.

    Args:
        head: Head of the network.
        levels: P2 to P6 (N, C, h, w).
    """

    def __init__(self, head: SOLOv2Head, levels: Sequence[Tensor]) -> None:
        self._kernels = torch.cat(
            [level.flatten(2) for level in head.kernels(levels)], dim=2
        )  # (N, E, cells)
        features = head.mask_features(levels)
        self.size = (features.shape[-2], features.shape[-1])
        self._features = features.flatten(2)

    def scores(self, cells: Tensor) -> Tensor:
        """Return the mask scores (N, K, H/4, W/4), float32 in 0..1, of cells (N, K)."""
        kernels = self._kernels.gather(2, cells[:, None].expand(-1, self._kernels.shape[1], -1))
        logits = torch.bmm(kernels.transpose(1, 2), self._features)
        return logits.float().sigmoid_().unflatten(2, self.size)
