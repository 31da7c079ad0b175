"""What each grid cell shall learn: mmdet's target assignment of the SOLO heads, vectorized.

An instance belongs to the levels whose scale range holds the root of its box area, and there to the
at most 3 x 3 cells around its center of mass (paper, section 3.3.1).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from solo_infer.models.target import Instances

CENTER_REGION = 0.2  # of a box's sides (paper, section 3.3.1; mmdet's pos_scale)


class LevelTargets(NamedTuple):
    """What one level shall say of one image."""

    labels: Tensor  # (g * g,) int64, ``background`` where a cell has no instance
    positive: Tensor  # (P,) int64, the cells that have one, ascending
    masks: Tensor  # (P, h, w) bool, their masks at twice the size of the level's map


def assign_targets(
    instances: Instances,
    num_grids: Sequence[int],
    strides: Sequence[int],
    scale_ranges: Sequence[tuple[float, float]],
    background: int,
) -> list[LevelTargets]:
    """Assign the instances of one image to the cells of all levels.

    Where two instances claim a cell the later one has it. Empty masks are skipped.

    Args:
        instances: The ground truth.
        num_grids: Cells along each side, by level.
        strides: Of the levels, in pixels; masks are wanted at half of it.
        scale_ranges: Least and greatest root of the box area, both included, by level.
        background: The label of cells without an instance.
    """
    boxes, masks = instances.boxes, instances.masks
    height, width = masks.shape[-2:]
    sizes = (boxes[:, 2:] - boxes[:, :2]).clamp(min=0)  # (n, 2) width, height
    scales = sizes.prod(dim=1).sqrt()
    filled = masks.flatten(1).any(dim=1)
    centers = centers_of_mass(masks)  # (n, 2) x, y
    extent = torch.tensor([width, height], dtype=torch.float32, device=masks.device)
    shrunk: dict[int, Tensor] = {}
    targets = []
    for grid, stride, (least, greatest) in zip(num_grids, strides, scale_ranges, strict=True):
        chosen = torch.nonzero((scales >= least) & (scales <= greatest) & filled).flatten()
        owners = _cell_owners(centers[chosen], sizes[chosen], extent, grid)
        positive = torch.nonzero(owners >= 0).flatten()
        labels = torch.full_like(owners, background)
        members = chosen[owners[positive]]
        labels[positive] = instances.labels[members]
        if stride not in shrunk:
            shrunk[stride] = shrink_masks(masks, stride // 2)
        targets.append(LevelTargets(labels, positive, shrunk[stride][members]))
    return targets


def centers_of_mass(masks: Tensor) -> Tensor:
    """Return the mean pixel index (n, 2) x, y of masks (n, H, W); of an empty mask 0, 0."""
    height, width = masks.shape[-2:]
    columns = masks.sum(dim=1, dtype=torch.float32)  # (n, W)
    rows = masks.sum(dim=2, dtype=torch.float32)  # (n, H)
    count = columns.sum(dim=1).clamp(min=1)
    x = (columns * torch.arange(width, device=masks.device)).sum(dim=1) / count
    y = (rows * torch.arange(height, device=masks.device)).sum(dim=1) / count
    return torch.stack([x, y], dim=1)


def _cell_owners(centers: Tensor, sizes: Tensor, extent: Tensor, grid: int) -> Tensor:
    """Return the last of the instances (n, 2) that claims each cell (g * g,), -1 where none does."""
    half = 0.5 * CENTER_REGION * sizes
    middle = _cell_of(centers, extent, grid)  # (n, 2) column, row
    first = torch.maximum(_cell_of(centers - half, extent, grid).clamp(min=0), middle - 1)
    last = torch.minimum(_cell_of(centers + half, extent, grid).clamp(max=grid - 1), middle + 1)
    steps = torch.arange(-1, 2, device=centers.device)
    claimed = middle[:, None] + steps[None, :, None]  # (n, 3, 2) columns and rows around the middle
    inside = (claimed >= first[:, None]) & (claimed <= last[:, None])
    cells = claimed[:, :, None, 1] * grid + claimed[:, None, :, 0]  # (n, 3 rows, 3 columns)
    wanted = inside[:, :, None, 1] & inside[:, None, :, 0]
    order = torch.arange(len(centers), device=centers.device)[:, None, None].expand_as(cells)
    owners = torch.full((grid * grid,), -1, dtype=torch.int64, device=centers.device)
    return owners.scatter_reduce(0, cells[wanted], order[wanted], "amax")


def _cell_of(points: Tensor, extent: Tensor, grid: int) -> Tensor:
    """Return the column and row of points (n, 2) in pixels; in float32 and in this order, as mmdet."""
    return torch.div(points / extent, 1.0 / grid, rounding_mode="trunc").long()


def shrink_masks(masks: Tensor, factor: int) -> Tensor:
    """Shrink bool masks (n, H, W) by an even factor: a pixel is set if two of its block's center four are.

    For 0 / 1 bitmaps this equals ``cv2.resize`` with INTER_LINEAR on uint8, which mmdet uses.
    """
    near, far = factor // 2 - 1, factor // 2
    count = sum(
        masks[:, row::factor, column::factor][:, : masks.shape[1] // factor, : masks.shape[2] // factor].to(
            torch.uint8
        )
        for row in (near, far)
        for column in (near, far)
    )
    return torch.as_tensor(count) >= 2
