"""Heads of SOLO, Decoupled SOLO and Decoupled Light SOLO (arXiv 1912.04488 and 2106.15947).

A head maps five feature maps to class logits on a grid of cells and to the mask logits of those cells.
``forward`` computes everything. ``class_logits`` and ``masks`` do the same in two steps, with the masks of
only some cells, for prediction and training. The head of SOLOv2 is in ``solov2_head``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, ClassVar, NamedTuple, cast

import torch
from torch import Tensor, nn

from solo_infer.config import SOLOConfig
from solo_infer.models.layers.conv_branch import ConvBranch
from solo_infer.models.layers.resize import resize, upsample
from solo_infer.models.layers.upsampled_conv import UpsampledConv2d
from solo_infer.models.solo.cells import CellTable, LevelCells, cell_table, split_cells
from solo_infer.models.solo.masks import AxisMasks, AxisScores, CandidateMasks, CellMasks, LevelMasks
from solo_infer.models.solo.neck import PyramidNeck, SOLONeck


class HeadOutput(NamedTuple):
    """Logits of a batch; each list has one entry per level, finest first."""

    class_logits: list[Tensor]  # (N, classes, g, g)
    # SOLO: one list of (N, g * g, 2h, 2w). Decoupled: two lists, of columns and of rows, (N, g, 2h, 2w).
    mask_logits: tuple[list[Tensor], ...]


class BaseHead(nn.Module, ABC):
    """Class branch and grid of all heads.

    Attributes:
        neck: Class of the feature pyramid that makes the inputs of the head.

    Args:
        config: Architecture of the network.
    """

    neck: ClassVar[type[PyramidNeck]] = SOLONeck

    def __init__(self, config: SOLOConfig) -> None:
        super().__init__()
        self.num_grids = config.num_grids
        self.cls_convs = self._branch(config)
        self.conv_cls = nn.Conv2d(config.head_channels, config.num_classes, 3, padding=1)
        # Constants of the grid move with the network but are not part of its state dict.
        for name, values in cell_table(config)._asdict().items():
            self.register_buffer(f"_cell_{name}", values, persistent=False)

    @staticmethod
    def _branch(config: SOLOConfig, axes: str = "", extra_channels: int = 0) -> ConvBranch:
        return ConvBranch(
            config.pyramid_channels + extra_channels,
            config.head_channels,
            config.stacked_convs,
            axes=axes,
            bias=config.head_bias,
            deformable=config.deformable_head,
            modulated=config.modulated,
        )

    @property
    def cells(self) -> CellTable:
        """Positions of the grid cells, on the device of the head."""
        return CellTable(*(self.get_buffer(f"_cell_{name}") for name in CellTable._fields))

    @abstractmethod
    def forward(self, levels: Sequence[Tensor]) -> Any:
        """Map five feature maps (N, C, h, w), finest first, to the raw outputs of the head."""

    def class_logits(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """Return the class logits (N, classes, g, g) of each level."""
        grids = [resize(x, (grid, grid)) for x, grid in zip(levels, self.num_grids, strict=True)]
        return [self.conv_cls(x) for x in self.cls_convs(grids)]

    @abstractmethod
    def masks(self, levels: Sequence[Tensor], cells: Sequence[Tensor]) -> Sequence[CandidateMasks]:
        """Run the mask branch where it is needed, and return the masks of each image.

        Args:
            levels: Five feature maps (N, C, h, w), finest first.
            cells: For each image, the cells (K,) int64, ascending, whose masks will be requested.
        """

    def _levels_in_use(self, levels: Sequence[Tensor], cells: Sequence[Tensor]) -> Iterator[_LevelInUse]:
        """Yield each level that holds any of the cells, with the images that have cells there."""
        by_level: dict[int, dict[int, LevelCells]] = {}
        for image, image_cells in enumerate(cells):
            for level_cells in split_cells(self.num_grids, image_cells):
                by_level.setdefault(level_cells.level, {})[image] = level_cells
        for level, members in sorted(by_level.items()):
            feature = levels[level] if len(members) == len(cells) else levels[level][list(members)]
            yield _LevelInUse(level, feature, members)


class _LevelInUse(NamedTuple):
    """Feature map (n, C, h, w) of one level, of the images that have cells there."""

    level: int
    feature: Tensor
    members: dict[int, LevelCells]  # {image: its cells}


class SOLOHead(BaseHead):
    """SOLO: one mask per grid cell."""

    def __init__(self, config: SOLOConfig) -> None:
        super().__init__(config)
        self.mask_convs = self._branch(config, axes="xy")
        self.conv_mask_list = nn.ModuleList(
            UpsampledConv2d(config.head_channels, grid**2, 1) for grid in self.num_grids
        )

    def forward(self, levels: Sequence[Tensor]) -> HeadOutput:
        """Map five feature maps (N, C, h, w), finest first, to all class and mask logits."""
        return HeadOutput(self.class_logits(levels), self.mask_logits(levels))

    def mask_logits(self, levels: Sequence[Tensor]) -> tuple[list[Tensor], ...]:
        """Return one list of mask logits (N, g * g, 2h, 2w)."""
        features = self.mask_convs(levels)
        return ([conv(x) for conv, x in zip(self.conv_mask_list, features, strict=True)],)

    def masks(self, levels: Sequence[Tensor], cells: Sequence[Tensor]) -> list[LevelMasks]:
        """Run the mask branch on the levels that hold any of the cells; see ``BaseHead.masks``."""
        in_use = list(self._levels_in_use(levels, cells))
        features = self.mask_convs([level.feature for level in in_use])
        of_images: list[dict[int, Tensor]] = [{} for _ in cells]
        for level, batch in zip(in_use, features, strict=True):
            for image, feature in zip(level.members, batch, strict=True):
                of_images[image][level.level] = feature
        size = mask_size(levels)
        return [
            CellMasks(self.num_grids, size, partial(self._cell_logits, features)) for features in of_images
        ]

    def _cell_logits(self, features: dict[int, Tensor], cells: LevelCells) -> Tensor:
        """Return the mask logits (k, 2h, 2w), float32, of cells of one level of an image."""
        feature = features[cells.level]  # (C, h, w)
        conv = self.conv_mask_list[cells.level]
        index = cells.rows * self.num_grids[cells.level] + cells.columns
        weight, bias = conv.get_parameter("weight")[index], conv.get_parameter("bias")[index]
        # A 1x1 convolution commutes with the up-sampling; before it, it costs a quarter.
        logits = torch.addmm(bias[:, None], weight.flatten(1), feature.flatten(1))
        return upsample(logits.float().view(1, -1, *feature.shape[1:]))[0]


class DecoupledHead(BaseHead):
    """Decoupled SOLO: the mask of a cell is the product of a mask of its column and one of its row."""

    def __init__(self, config: SOLOConfig) -> None:
        super().__init__(config)
        self._add_mask_branches(config)
        channels = config.head_channels
        self.conv_mask_list_x = nn.ModuleList(UpsampledConv2d(channels, grid, 3) for grid in self.num_grids)
        self.conv_mask_list_y = nn.ModuleList(UpsampledConv2d(channels, grid, 3) for grid in self.num_grids)

    def _add_mask_branches(self, config: SOLOConfig) -> None:
        self.mask_convs_x = self._branch(config, axes="x")
        self.mask_convs_y = self._branch(config, axes="y")

    def mask_features(self, maps: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Run the mask branches on maps (N, C, h, w); return features for columns and for rows."""
        return self.mask_convs_x(maps), self.mask_convs_y(maps)

    def forward(self, levels: Sequence[Tensor]) -> HeadOutput:
        """Map five feature maps (N, C, h, w), finest first, to all class and mask logits."""
        return HeadOutput(self.class_logits(levels), self.mask_logits(levels))

    def mask_logits(self, levels: Sequence[Tensor]) -> tuple[list[Tensor], ...]:
        """Return two lists of mask logits (N, g, 2h, 2w), of columns and of rows."""
        features_x, features_y = self.mask_features(levels)
        return (
            [conv(x) for conv, x in zip(self.conv_mask_list_x, features_x, strict=True)],
            [conv(x) for conv, x in zip(self.conv_mask_list_y, features_y, strict=True)],
        )

    def masks(self, levels: Sequence[Tensor], cells: Sequence[Tensor]) -> list[LevelMasks]:
        """Compute the columns and rows that hold any of the cells; see ``BaseHead.masks``."""
        in_use = list(self._levels_in_use(levels, cells))
        size = mask_size(levels)
        columns: list[dict[int, AxisScores]] = [{} for _ in cells]
        rows: list[dict[int, AxisScores]] = [{} for _ in cells]
        features = self.mask_features([level.feature for level in in_use])
        for level, features_x, features_y in zip(in_use, *features, strict=True):
            conv_x = cast(UpsampledConv2d, self.conv_mask_list_x[level.level])
            conv_y = cast(UpsampledConv2d, self.conv_mask_list_y[level.level])
            used_x = torch.cat([members.columns for members in level.members.values()]).unique()
            used_y = torch.cat([members.rows for members in level.members.values()]).unique()
            scores_x = conv_x.select(features_x, used_x).sigmoid_()  # (n, k, 2h, 2w)
            scores_y = conv_y.select(features_y, used_y).sigmoid_()
            for index, image in enumerate(level.members):
                columns[image][level.level] = AxisScores(used_x, scores_x[index], size)
                rows[image][level.level] = AxisScores(used_y, scores_y[index], size)
        return [AxisMasks(self.num_grids, size, x, y) for x, y in zip(columns, rows, strict=True)]


class DecoupledLightHead(DecoupledHead):
    """Decoupled Light SOLO: columns and rows are computed from one branch that reads x and y."""

    def _add_mask_branches(self, config: SOLOConfig) -> None:
        self.mask_convs = self._branch(config, axes="xy")

    def mask_features(self, maps: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Run the mask branch on maps (N, C, h, w); columns and rows share its features."""
        features = self.mask_convs(maps)
        return features, features


def mask_size(levels: Sequence[Tensor]) -> tuple[int, int]:
    """Return the (height, width) of all masks: twice the finest level, a quarter of the padded input."""
    height, width = levels[0].shape[-2:]
    return height * 2, width * 2
