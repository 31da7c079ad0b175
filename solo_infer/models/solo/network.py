"""SOLO, Decoupled SOLO and Decoupled Light SOLO (Wang et al., arXiv 1912.04488 and 2106.15947).

The network is used in three steps, so that no mask is computed that nobody needs:

    levels = network.features(images)            five feature maps
    scores = network.class_scores(levels)        (N, classes, cells)
    maps = network.mask_maps(levels, cells)      lazy masks of just the cells that hold candidates
    maps.scores(image, cells)                    (K, H/4, W/4)

Cells are numbered over all levels: level by level, finest first, row by row (mmdet's order).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from itertools import accumulate
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from solo_infer.config import SOLOConfig
from solo_infer.config.solo import LITE0
from solo_infer.models.backbones.efficientnet_lite import EfficientNetLite0
from solo_infer.models.backbones.resnet import ResNet
from solo_infer.models.base import SegmentationNetwork
from solo_infer.models.layers.conv_branch import ConvBlock, branch, through
from solo_infer.models.layers.deform_conv import DeformableConv
from solo_infer.models.optimized.upsampled_conv import upsample, upsampled_convolution
from solo_infer.models.solo.neck import FeaturePyramid
from solo_infer.models.solo.objective import solo_losses
from solo_infer.models.target import Target

FOCAL_PRIOR = 0.01  # initial probability of an object in a cell (RetinaNet; mmdet's bias_prob)
INIT_STD = 0.01  # standard deviation of the initial weights of the head (mmdet's SOLO heads)


class MaskMaps(Protocol):
    """Masks of a batch that are computed when they are asked for."""

    size: tuple[int, int]  # of each mask, (H/4, W/4)

    def scores(self, image: int, cells: Tensor) -> Tensor:
        """Return the mask scores (K, H/4, W/4), float32 in 0..1, of cells (K,) of one image.

        The cells come level by level; so does the result.
        """

    def level_scores(self, image: int, part: LevelCells) -> Tensor:
        """Return the mask scores (k, 2h, 2w) of cells of one level, at twice the size of its map."""


def resize(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize maps (N, C, H, W) bilinearly, leaving them alone if they have that size."""
    if maps.shape[-2:] == size:
        return maps
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)


def keep_local_maxima(scores: Tensor) -> Tensor:
    """Zero the scores (N, C, g, g) that a left, upper or upper-left neighbor exceeds.

    This is mmdet's ``points_nms``; equal neighbors are all kept.
    """
    highest = F.max_pool2d(scores, kernel_size=2, stride=1, padding=1)[:, :, :-1, :-1]
    return scores * (highest == scores)


class LevelCells(NamedTuple):
    """The part of a list of cells that lies on one level."""

    level: int
    where: slice  # its place in the list
    rows: Tensor  # (k,) grid rows
    columns: Tensor  # (k,) grid columns


def split_cells(num_grids: Sequence[int], cells: Tensor) -> Iterator[LevelCells]:
    """Yield the cells (K,) of each level that has any; they come level by level."""
    starts = [0, *accumulate(grid * grid for grid in num_grids)]
    places = torch.searchsorted(cells, torch.tensor(starts, device=cells.device)).tolist()
    for level, grid in enumerate(num_grids):
        where = slice(places[level], places[level + 1])
        if where.start < where.stop:
            local = cells[where] - starts[level]
            yield LevelCells(level, where, local // grid, local % grid)


def scores_of(class_logits: Sequence[Tensor]) -> Tensor:
    """Return scores (N, cells, classes), float32 in 0..1, of class logits (N, classes, g, g) of each level.

    They are zero where not a local maximum.
    """
    scores = [keep_local_maxima(logits.float().sigmoid()).flatten(2) for logits in class_logits]
    return torch.cat(scores, dim=2).transpose(1, 2)


class SOLOHead(nn.Module, ABC):
    """What the three heads share: the class branch and the numbering of cells."""

    def __init__(self, config: SOLOConfig) -> None:
        super().__init__()
        self.num_grids = config.num_grids
        self.cls_convs = branch(config)
        self.conv_cls = nn.Conv2d(config.head_channels, config.num_classes, 3, padding=1)

    def class_logits(self, levels: list[Tensor]) -> list[Tensor]:
        """Return class logits (N, classes, g, g) of each level."""
        cells = [resize(x, (grid, grid)) for x, grid in zip(levels, self.num_grids, strict=True)]
        return [self.conv_cls(x) for x in through(self.cls_convs, cells)]  # from (N, C, g, g)

    def split_cells(self, cells: Tensor) -> Iterator[LevelCells]:
        """Yield the cells (K,) of each level that has any; they come level by level."""
        return split_cells(self.num_grids, cells)

    @abstractmethod
    def mask_maps(self, levels: list[Tensor], cells: Tensor) -> MaskMaps:
        """Prepare the masks of the cells (K,); levels that hold none of them cost nothing."""


class PlainHead(SOLOHead):
    """SOLO: one mask map for each grid cell."""

    def __init__(self, config: SOLOConfig) -> None:
        super().__init__(config)
        width = config.head_channels
        self.mask_convs = branch(config, coordinate_channels=2)
        self.conv_mask_list = nn.ModuleList(nn.Conv2d(width, grid**2, 1) for grid in self.num_grids)

    def mask_towers(self, features: list[Tensor]) -> list[Tensor]:
        """Run the mask branch on some levels: each (N, C, h, w) to (N, C', h, w)."""
        return through(self.mask_convs, features, "xy")

    def mask_maps(self, levels: list[Tensor], cells: Tensor) -> PlainMaskMaps:
        """Run the mask branch of the levels that hold any of the cells."""
        used = [part.level for part in self.split_cells(cells)]
        towers = self.mask_towers([levels[level] for level in used])
        return PlainMaskMaps(self, dict(zip(used, towers, strict=True)), quarter_size(levels))


class PlainMaskMaps:
    """Masks of a ``PlainHead``: a cell's map is one row of a 1x1 convolution."""

    def __init__(self, head: PlainHead, towers: dict[int, Tensor], size: tuple[int, int]) -> None:
        self.head, self.towers, self.size = head, towers, size

    def scores(self, image: int, cells: Tensor) -> Tensor:
        """Return the mask scores (K, H/4, W/4), float32 in 0..1, of cells (K,) of one image."""
        out = torch.empty((len(cells), *self.size), device=cells.device)
        for part in self.head.split_cells(cells):
            place, logits = out[part.where], self._level_logits(image, part)
            if logits.shape[1:] == place.shape[1:] and not torch.is_grad_enabled():
                torch.sigmoid(logits, out=place)
            else:
                place.copy_(resize(logits.sigmoid()[None], self.size)[0])
        return out

    def level_scores(self, image: int, part: LevelCells) -> Tensor:
        """Return the mask scores (k, 2h, 2w) of cells of one level."""
        return self._level_logits(image, part).sigmoid()

    def _level_logits(self, image: int, part: LevelCells) -> Tensor:
        """Return the mask logits (k, 2h, 2w), float32, of cells of one level."""
        tower = self.towers[part.level][image]  # (C, h, w)
        index = part.rows * self.head.num_grids[part.level] + part.columns
        weight, bias = rows_of(self.head.conv_mask_list[part.level], index)
        # The 1x1 convolution commutes with the up-sampling: first it costs a quarter. As a product it
        # gives each cell's map in one piece, which all that follows is faster with.
        logits = torch.addmm(bias[:, None], weight.flatten(1), tower.flatten(1))
        return upsample(logits.float().view(1, -1, *tower.shape[1:]))[0]


class DecoupledHead(SOLOHead):
    """Decoupled SOLO: a cell's mask is the map of its column times the map of its row."""

    def __init__(self, config: SOLOConfig) -> None:
        super().__init__(config)
        width = config.head_channels
        self.mask_convs_x = branch(config, coordinate_channels=1)
        self.mask_convs_y = branch(config, coordinate_channels=1)
        self.conv_mask_list_x = nn.ModuleList(axis_conv(width, grid) for grid in self.num_grids)
        self.conv_mask_list_y = nn.ModuleList(axis_conv(width, grid) for grid in self.num_grids)

    def mask_towers(self, features: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Run both mask branches on some levels: each (N, C, h, w) to (N, C', h, w)."""
        return (
            through(self.mask_convs_x, features, "x"),
            through(self.mask_convs_y, features, "y"),
        )

    def mask_maps(self, levels: list[Tensor], cells: Tensor) -> DecoupledMaskMaps:
        """Compute the maps of the columns and rows that hold any of the cells."""
        parts, size = list(self.split_cells(cells)), quarter_size(levels)
        towers = zip(*self.mask_towers([levels[part.level] for part in parts]), strict=True)
        columns, rows = {}, {}
        for part, (tower_x, tower_y) in zip(parts, towers, strict=True):
            level = part.level
            columns[level] = AxisMaps(tower_x, self.conv_mask_list_x[level], part.columns, size)
            rows[level] = AxisMaps(tower_y, self.conv_mask_list_y[level], part.rows, size)
        return DecoupledMaskMaps(self, columns, rows, size)


class DecoupledLightHead(DecoupledHead):
    """Decoupled Light SOLO: both maps are read from one branch that gets x and y."""

    def __init__(self, config: SOLOConfig) -> None:
        super().__init__(config)
        del self.mask_convs_x, self.mask_convs_y
        self.mask_convs = branch(config, coordinate_channels=2)

    def mask_towers(self, features: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Run the mask branch on some levels: each (N, C, h, w) to the same (N, C', h, w) twice."""
        towers = through(self.mask_convs, features, "xy")
        return towers, towers


def axis_conv(channels: int, grid: int) -> nn.Conv2d:
    """Return the 3x3 convolution that gives the map of each column, or of each row."""
    return nn.Conv2d(channels, grid, 3, padding=1)


def rows_of(conv: nn.Module, index: Tensor) -> tuple[Tensor, Tensor]:
    """Return weight and bias of some output channels (K,) of a convolution."""
    return conv.get_parameter("weight")[index], conv.get_parameter("bias")[index]


class AxisMaps:
    """The maps of the columns (or rows) in use of one level, float32 in 0..1."""

    def __init__(self, tower: Tensor, conv: nn.Module, lines: Tensor, size: tuple[int, int]) -> None:
        self.used = lines.unique()
        weight, bias = rows_of(conv, self.used)
        self.level_scores = upsampled_convolution(tower, weight, bias).sigmoid_()  # (N, K, 2h, 2w)
        self._size = size

    @cached_property
    def quarter_scores(self) -> Tensor:
        """The maps (N, K, H/4, W/4)."""
        return resize(self.level_scores, self._size)

    def positions(self, lines: Tensor) -> Tensor:
        """Return where the maps of some columns or rows (k,) are among those in use."""
        return torch.searchsorted(self.used, lines)


class DecoupledMaskMaps:
    """Masks of a ``DecoupledHead``: products of two axis maps."""

    def __init__(
        self,
        head: SOLOHead,
        columns: dict[int, AxisMaps],
        rows: dict[int, AxisMaps],
        size: tuple[int, int],
    ) -> None:
        self.head, self.columns, self.rows, self.size = head, columns, rows, size

    def scores(self, image: int, cells: Tensor) -> Tensor:
        """Return the mask scores (K, H/4, W/4), float32 in 0..1, of cells (K,) of one image."""
        out = torch.empty((len(cells), *self.size), device=cells.device)
        for part in self.head.split_cells(cells):
            columns, rows = self.columns[part.level], self.rows[part.level]
            x = columns.quarter_scores[image, columns.positions(part.columns)]
            y = rows.quarter_scores[image, rows.positions(part.rows)]
            out[part.where] = x * y
        return out

    def level_scores(self, image: int, part: LevelCells) -> Tensor:
        """Return the mask scores (k, 2h, 2w) of cells of one level."""
        columns, rows = self.columns[part.level], self.rows[part.level]
        x = columns.level_scores[image, columns.positions(part.columns)]
        y = rows.level_scores[image, rows.positions(part.rows)]
        return x * y


def quarter_size(levels: list[Tensor]) -> tuple[int, int]:
    """Return the size of all mask maps: twice the finest level, a quarter of the padded input."""
    height, width = levels[0].shape[-2:]
    return height * 2, width * 2


_HEADS: dict[str, Callable[[SOLOConfig], SOLOHead]] = {
    "solo": PlainHead,
    "decoupled": DecoupledHead,
    "decoupled_light": DecoupledLightHead,
}


class SOLONetwork(SegmentationNetwork):
    """Backbone, feature pyramid and one of the three heads."""

    losses = ("loss_cls", "loss_mask")  # of train mode

    def __init__(self, config: SOLOConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = EfficientNetLite0() if config.backbone == LITE0 else ResNet(config.backbone)
        if isinstance(self.backbone, ResNet):
            self.backbone.make_deformable(config.deformable_stages)
        self.neck = FeaturePyramid(
            self.backbone.out_channels, config.pyramid_channels, config.extra_level == "conv"
        )
        self.mask_head = _HEADS[config.head](config)

    def features(self, images: Tensor) -> list[Tensor]:
        """Map normalized images (N, 3, H, W) to the five level inputs at strides 8, 8, 16, 32, 32."""
        return self.neck.solo_levels(self.backbone(images))

    def class_scores(self, levels: list[Tensor]) -> Tensor:
        """Return scores (N, cells, classes), float32 in 0..1, zero where not a local maximum."""
        return scores_of(self.mask_head.class_logits(levels))

    def mask_maps(self, levels: list[Tensor], cells: Tensor) -> MaskMaps:
        """Prepare the masks of the cells (K,) int64, all that any image of the batch will ask for."""
        return self.mask_head.mask_maps(levels, cells)

    def class_rows(self, labels: Sequence[int]) -> dict[str, list[int]]:
        """Return the output channels of each layer that a network of only these classes has, in its order."""
        return {"mask_head.conv_cls": list(labels)}

    def init_weights(self) -> None:
        """Initialize neck and head for training, as mmdet does; the backbone stays as it is."""
        for module in self.mask_head.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=INIT_STD)
                if module.bias is not None:
                    nn.init.constant_(module.bias, -math.log((1 - FOCAL_PRIOR) / FOCAL_PRIOR))
        for module in self.mask_head.modules():
            if isinstance(module, ConvBlock) and module.conv.bias is not None:
                nn.init.zeros_(module.conv.bias)
            if isinstance(module, DeformableConv):
                module.reset_offsets()
        for module in self.neck.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)

    def forward(self, images: Tensor, targets: list[Target] | None = None) -> Any:
        """Run the network on normalized images (N, 3, H, W).

        Args:
            images: All of one padded size.
            targets: In train mode the ground truth of each image; see ``models.objective.Target``.

        Returns:
            In eval mode the level inputs and the class scores; in train mode the losses
            {"loss_cls": scalar, "loss_mask": scalar}.

        Raises:
            ConfigError: Train mode without targets, or targets that do not fit the images.
        """
        if self.training:
            return solo_losses(self, images, targets)
        levels = self.features(images)
        return levels, self.class_scores(levels)
