"""Target assignment of SOLO and SOLOv2, vectorized from mmdet's.

An instance belongs to the levels whose scale range contains the square root of its box area, and there to at
most 3 x 3 cells around its center of mass (paper, section 3.3.1).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from solo_infer.config import SOLOConfig
from solo_infer.models.solo.cells import LevelCells
from solo_infer.models.target import (
    Instances,
    Target,
    check_targets,
    crowd_mask,
    non_crowd_instances,
    unlabelled_classes,
)

CENTER_REGION = 0.2  # size of the region of positive cells relative to the box (mmdet's pos_scale)


class LevelTargets(NamedTuple):
    """Targets of one level of one image."""

    level: int
    first_cell: int  # number of the first cell of the level among those of all levels
    labels: Tensor  # (g * g,) int64, the number of classes (background) where a cell has no instance
    # (P,) int64, the cell of each mask. SOLO: one mask for each cell that has an instance, ascending. SOLOv2:
    # a cell that several instances claim is repeated, in the order instance, row, column.
    positive: Tensor
    masks: Tensor  # (P, h, w) bool, the masks at the size of the predicted ones of the level

    @property
    def cells(self) -> LevelCells:
        """Grid position of the cell of each mask."""
        grid = round(len(self.labels) ** 0.5)
        rows = self.positive.div(grid, rounding_mode="floor")
        return LevelCells(self.level, slice(0, len(self.positive)), rows, self.positive % grid)


class BatchTargets(NamedTuple):
    """Targets of a batch."""

    images: list[list[LevelTargets]]  # for each image, its levels, finest first
    cells: list[Tensor]  # for each image, the distinct positive cells (P,) int64 over all levels, ascending
    labels: Tensor  # (N, cells) int64
    ignored: Tensor  # (N, cells, classes) bool, pairs that are left out of the class loss


def assign_batch(targets: list[Target] | None, images: Tensor, config: SOLOConfig) -> BatchTargets:
    """Assign the instances of a batch to grid cells.

    Args:
        targets: Ground truth of each image.
        images: (N, 3, H, W) network inputs.
        config: Architecture of the network.

    Raises:
        ConfigError: Targets are missing or do not match the images or the classes.
    """
    targets = check_targets(targets, images, config.num_classes)
    size = (images.shape[-2], images.shape[-1])
    assigned = [assign_targets(non_crowd_instances(target, size), config) for target in targets]
    return BatchTargets(
        images=assigned,
        cells=[mask_cells(levels).unique() for levels in assigned],
        labels=torch.stack([torch.cat([level.labels for level in levels]) for levels in assigned]),
        ignored=torch.stack([_ignored_pairs(target, config, size) for target in targets]),
    )


def mask_cells(levels: Sequence[LevelTargets]) -> Tensor:
    """Return the cell (P,) int64 of each mask of one image, numbered over all levels."""
    return torch.cat([level.positive + level.first_cell for level in levels])


def assign_targets(instances: Instances, config: SOLOConfig) -> list[LevelTargets]:
    """Assign the instances of one image to the cells of all levels.

    If several instances claim a cell, its label is that of the last one. In SOLO its mask is that of the last
    one, too; in SOLOv2 all their masks are targets of the cell. Instances with an empty mask are skipped.

    Args:
        instances: Ground truth without crowd regions.
        config: Architecture of the network.
    """
    boxes, masks = instances.boxes, instances.masks
    height, width = masks.shape[-2:]
    sizes = (boxes[:, 2:] - boxes[:, :2]).clamp(min=0)  # (n, 2) width, height
    scales = sizes.prod(dim=1).sqrt()
    filled = masks.flatten(1).any(dim=1)
    centers = centers_of_mass(masks)  # (n, 2) x, y
    extent = torch.tensor([width, height], dtype=torch.float32, device=masks.device)
    downsampled = {factor: downsample_masks(masks, factor) for factor in set(config.mask_strides)}
    targets: list[LevelTargets] = []
    first_cell = 0
    levels = zip(config.num_grids, config.mask_strides, config.scale_ranges, strict=True)
    for level, (grid, mask_stride, (least, greatest)) in enumerate(levels):
        in_range = torch.nonzero((scales >= least) & (scales <= greatest) & filled).flatten()
        cells, owners = _claimed_cells(centers[in_range], sizes[in_range], extent, grid)
        last_owners = _last_owners(cells, owners, grid)
        labels = torch.full_like(last_owners, config.num_classes)
        positive = torch.nonzero(last_owners >= 0).flatten()
        labels[positive] = instances.labels[in_range[last_owners[positive]]]
        if config.head != "solov2":
            cells, owners = positive, last_owners[positive]
        mask_targets = downsampled[mask_stride][in_range[owners]]
        targets.append(LevelTargets(level, first_cell, labels, cells, mask_targets))
        first_cell += grid * grid
    return targets


def centers_of_mass(masks: Tensor) -> Tensor:
    """Return the mean pixel index (n, 2) x, y of masks (n, H, W); 0, 0 for an empty mask."""
    height, width = masks.shape[-2:]
    columns = masks.sum(dim=1, dtype=torch.float32)  # (n, W)
    rows = masks.sum(dim=2, dtype=torch.float32)  # (n, H)
    count = columns.sum(dim=1).clamp(min=1)
    x = (columns * torch.arange(width, dtype=torch.float32, device=masks.device)).sum(dim=1) / count
    y = (rows * torch.arange(height, dtype=torch.float32, device=masks.device)).sum(dim=1) / count
    return torch.stack([x, y], dim=1)


def _claimed_cells(centers: Tensor, sizes: Tensor, extent: Tensor, grid: int) -> tuple[Tensor, Tensor]:
    """Return the cells (K,) that instances (n, 2) claim, by instance, row and column, and their instances."""
    half = 0.5 * CENTER_REGION * sizes
    middle = _cell_of(centers, extent, grid)  # (n, 2) column, row
    first = torch.maximum(_cell_of(centers - half, extent, grid).clamp(min=0), middle - 1)
    last = torch.minimum(_cell_of(centers + half, extent, grid).clamp(max=grid - 1), middle + 1)
    steps = torch.arange(-1, 2, dtype=torch.int64, device=centers.device)
    claimed = middle[:, None] + steps[None, :, None]  # (n, 3, 2) columns and rows around the middle
    inside = (claimed >= first[:, None]) & (claimed <= last[:, None])
    cells = claimed[:, :, None, 1] * grid + claimed[:, None, :, 0]  # (n, 3 rows, 3 columns)
    valid = inside[:, :, None, 1] & inside[:, None, :, 0]
    order = torch.arange(len(centers), dtype=torch.int64, device=centers.device)
    order = order[:, None, None].expand_as(cells)
    return cells[valid], order[valid]


def _last_owners(cells: Tensor, owners: Tensor, grid: int) -> Tensor:
    """Return the last of the owners (K,) of each cell (g * g,), -1 where it has none."""
    last = torch.full((grid * grid,), -1, dtype=torch.int64, device=cells.device)
    return last.scatter_reduce(0, cells, owners, "amax")


def _cell_of(points: Tensor, extent: Tensor, grid: int) -> Tensor:
    """Return the column and row of points (n, 2) in pixels, in float32 and in mmdet's order."""
    return torch.div(points / extent, 1.0 / grid, rounding_mode="trunc").long()


def downsample_masks(masks: Tensor, factor: int) -> Tensor:
    """Downsample bool masks (n, H, W) by an even factor.

    A pixel is set if at least two of the four center pixels of its block are. For binary masks this equals
    ``cv2.resize`` with INTER_LINEAR on uint8, which mmdet uses.
    """
    near, far = factor // 2 - 1, factor // 2
    height, width = masks.shape[1] // factor, masks.shape[2] // factor
    count = masks.new_zeros((len(masks), height, width), dtype=torch.uint8)
    for row in (near, far):
        for column in (near, far):
            count += masks[:, row::factor, column::factor][:, :height, :width].to(torch.uint8)
    return count >= 2


def _ignored_pairs(target: Target, config: SOLOConfig, size: tuple[int, int]) -> Tensor:
    """Return the (cell, class) pairs (cells, classes), bool, of an image that are not learned."""
    unlabelled = unlabelled_classes(target, config.num_classes)
    ignored = [unlabelled.repeat(grid * grid, 1) for grid in config.num_grids]
    for index in torch.nonzero(crowd_mask(target)).flatten():
        mask, label = target["masks"][index].bool(), target["labels"][index]
        for grid, cells in zip(config.num_grids, ignored, strict=True):
            cells[:, label] |= _cells_inside(mask, grid, size)
    return torch.cat(ignored)


def _cells_inside(mask: Tensor, grid: int, size: tuple[int, int]) -> Tensor:
    """Return the cells (g * g,), bool, with their center inside a mask (h, w) of the input's top left."""
    centers = (torch.arange(grid, dtype=torch.float32, device=mask.device) + 0.5) / grid
    rows, columns = (centers * size[0]).long(), (centers * size[1]).long()
    padded = pad(mask, (0, size[1] - mask.shape[1], 0, size[0] - mask.shape[0]))
    return padded[rows][:, columns].flatten()
