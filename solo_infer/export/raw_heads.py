"""A SOLO network as engines run it: all that its heads compute, in fixed shapes; and masks from that.

    class_0 .. class_4      (N, classes, g, g)   class logits of each level, finest first
    mask_0 .. mask_4        (N, g * g, h, w)     "solo": mask logits of each grid cell, at the level's size
    mask_x_0 .. mask_x_4    (N, g, 2h, 2w)       decoupled: of each grid column, at twice the level's size
    mask_y_0 .. mask_y_4    (N, g, 2h, 2w)       decoupled: of each grid row

mmdet up-samples the maps of "solo" before its last convolution. The two commute, and so 3,872 maps are a
quarter of the size: 220 MB of output for 800 x 1344 pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from solo_infer.config import SOLOConfig
from solo_infer.config.solo import NUM_LEVELS
from solo_infer.errors import ExportError
from solo_infer.models.layers.conv_branch import through
from solo_infer.models.optimized.upsampled_conv import upsample
from solo_infer.models.solo.network import (
    DecoupledHead,
    LevelCells,
    PlainHead,
    SOLONetwork,
    resize,
    split_cells,
)


def output_names(config: SOLOConfig) -> list[str]:
    """Return the names of the outputs, in order: ten of a "solo" head, fifteen of the decoupled ones."""
    kinds = ("class", "mask") if config.head == "solo" else ("class", "mask_x", "mask_y")
    return [f"{kind}_{level}" for kind in kinds for level in range(NUM_LEVELS)]


class RawHeads(nn.Module):
    """A network that returns the logits of its heads, all of them.

    Args:
        network: Its weights are shared.
    """

    def __init__(self, network: SOLONetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Map normalized images (N, 3, H, W) to what ``output_names`` names."""
        levels, head = self.network.features(images), self.network.mask_head
        class_logits = head.class_logits(levels)
        if isinstance(head, PlainHead):
            towers = through(head.mask_convs, levels, "xy")
            return (*class_logits, *_each(head.conv_mask_list, towers))
        if not isinstance(head, DecoupledHead):
            raise ExportError(f"A {type(head).__name__} has no raw outputs that are known here.")
        of_columns, of_rows = ([upsample(tower) for tower in towers] for towers in head.mask_towers(levels))
        columns, rows = _each(head.conv_mask_list_x, of_columns), _each(head.conv_mask_list_y, of_rows)
        return (*class_logits, *columns, *rows)


def _each(convs: nn.ModuleList, maps: Sequence[Tensor]) -> list[Tensor]:
    return [conv(x) for conv, x in zip(convs, maps, strict=True)]


class RawCellMaps:
    """Masks of the raw outputs of a "solo" head.

    Args:
        num_grids: Grid cells along each side, of each level.
        maps: The mask logits (N, g * g, h, w) of each level.
    """

    def __init__(self, num_grids: Sequence[int], maps: Sequence[Tensor]) -> None:
        self.num_grids, self.maps = num_grids, maps
        height, width = maps[0].shape[-2:]
        self.size = (height * 2, width * 2)

    def scores(self, image: int, cells: Tensor) -> Tensor:
        """Return the mask scores (K, H/4, W/4), float32 in 0..1, of cells (K,) of one image."""
        out = torch.empty((len(cells), *self.size), device=cells.device)
        for part in split_cells(self.num_grids, cells):
            out[part.where] = resize(self.level_scores(image, part)[None], self.size)[0]
        return out

    def level_scores(self, image: int, part: LevelCells) -> Tensor:
        """Return the mask scores (k, 2h, 2w) of cells of one level."""
        index = part.rows * self.num_grids[part.level] + part.columns
        return upsample(self.maps[part.level][image, index].float()[None]).sigmoid()[0]


class RawAxisMaps:
    """Masks of the raw outputs of a decoupled head.

    Args:
        num_grids: Grid cells along each side, of each level.
        columns: The logits (N, g, 2h, 2w) of each level's columns.
        rows: The logits (N, g, 2h, 2w) of each level's rows.
    """

    def __init__(self, num_grids: Sequence[int], columns: Sequence[Tensor], rows: Sequence[Tensor]) -> None:
        self.num_grids, self.columns, self.rows = num_grids, columns, rows
        height, width = columns[0].shape[-2:]
        self.size = (height, width)

    def scores(self, image: int, cells: Tensor) -> Tensor:
        """Return the mask scores (K, H/4, W/4), float32 in 0..1, of cells (K,) of one image."""
        out = torch.empty((len(cells), *self.size), device=cells.device)
        for part in split_cells(self.num_grids, cells):
            x, y = (resize(maps[None], self.size)[0] for maps in self._axes(image, part))
            out[part.where] = x * y
        return out

    def level_scores(self, image: int, part: LevelCells) -> Tensor:
        """Return the mask scores (k, 2h, 2w) of cells of one level."""
        x, y = self._axes(image, part)
        return x * y

    def _axes(self, image: int, part: LevelCells) -> tuple[Tensor, Tensor]:
        """Return the scores (k, 2h, 2w) of the cells' columns and of their rows."""
        x = self.columns[part.level][image, part.columns]
        y = self.rows[part.level][image, part.rows]
        return x.float().sigmoid(), y.float().sigmoid()
