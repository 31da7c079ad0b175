"""Anchor boxes of YOLACT, and boxes relative to them.

Anchors are boxes x1 y1 x2 y2 in pixels of the network input, ordered by level (finest first), row, column and
shape.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from solo_infer.runtime.neutral_state import neutral_state

RATIOS = (0.5, 1.0, 2.0)  # height / width of mmdet's three anchors per cell
_ORIGINAL_RATIOS = (1.0, 0.5, 2.0)  # their square roots scale both sides of the original square anchors
_VARIANCES = (0.1, 0.1, 0.2, 0.2)  # cx, cy, w, h (SSD's; mmdet's target_stds)
_MAX_LOG_SCALE = abs(math.log(16 / 1000))  # greatest change of size (mmdet's wh_ratio_clip)
_CACHE_SIZE = 32  # sets of anchors kept, least recently used dropped first

LevelSizes = tuple[tuple[int, int], ...]


def strided_anchors(
    levels: LevelSizes, sizes: tuple[float, ...], strides: tuple[float, ...], device: torch.device
) -> Tensor:
    """Return mmdet's anchors: three of equal area at the center of each cell, with fixed strides.

    Args:
        levels: (height, width) of the feature map of each level.
        sizes: Square root of the area of the anchors of each level, in pixels.
        strides: Stride of each level in pixels.
        device: Device of the anchors.

    Returns:
        (A, 4) float32. The tensor is cached and shared: do not modify it.
    """
    roots = _on_cpu(RATIOS).sqrt()
    shapes = torch.stack([1 / roots, roots], dim=1).tolist()
    steps = tuple((stride, stride) for stride in strides)
    return _anchors(levels, sizes, tuple(map(tuple, shapes)), steps, device)


def square_anchors(
    levels: LevelSizes, sizes: tuple[float, ...], input_size: tuple[int, int], device: torch.device
) -> Tensor:
    """Return the original anchors: three squares at the center of each of the cells that divide the input.

    They were meant to differ in shape, but the original code sets the height to the width
    (``use_square_anchors``), and its models were trained so.

    Args:
        levels: (height, width) of the feature map of each level.
        sizes: Side of the middle anchor of each level in pixels.
        input_size: (height, width) of the network input in pixels.
        device: Device of the anchors.

    Returns:
        (A, 4) float32. The tensor is cached and shared: do not modify it.
    """
    shapes = tuple((math.sqrt(ratio), math.sqrt(ratio)) for ratio in _ORIGINAL_RATIOS)
    steps = tuple((input_size[0] / height, input_size[1] / width) for height, width in levels)
    return _anchors(levels, sizes, shapes, steps, device)


@functools.lru_cache(maxsize=_CACHE_SIZE)
@neutral_state()
def _anchors(
    levels: LevelSizes,
    sizes: tuple[float, ...],
    shapes: tuple[tuple[float, float], ...],
    steps: tuple[tuple[float, float], ...],
    device: torch.device,
) -> Tensor:
    """Return anchors (A, 4).

    Args:
        levels: (height, width) of the feature map of each level.
        sizes: Size of each level in pixels.
        shapes: (width, height) of the anchors of a cell, in sizes.
        steps: (y, x) stride of each level in pixels.
        device: Device of the anchors.
    """
    # In float32 and in mmdet's order: the last bit often decides which anchor overlaps a box most.
    boxes = [_level_anchors(*level, shapes) for level in zip(levels, sizes, steps, strict=True)]
    # A blocking copy: every user of the cached tensor, on any stream, finds it filled.
    return torch.cat(boxes).to(device)


def _level_anchors(
    level: tuple[int, int],
    size: float,
    step: tuple[float, float],
    shapes: tuple[tuple[float, float], ...],
) -> Tensor:
    """Return the anchors (h * w * shapes, 4) of one level; see ``_anchors``."""
    height, width = level
    step_y, step_x = step
    halves = _on_cpu(shapes) * size * 0.5  # (3, 2)
    middle = _on_cpu([step_x * 0.5, step_y * 0.5])
    boxes = torch.cat([middle - halves, middle + halves], dim=1)  # (3, 4), of the first cell
    rows = torch.arange(height, dtype=torch.float32, device="cpu") * step_y
    columns = torch.arange(width, dtype=torch.float32, device="cpu") * step_x
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    shifts = torch.stack([x, y, x, y], dim=-1)  # (h, w, 4)
    return (shifts[:, :, None] + boxes).reshape(-1, 4)


def _on_cpu(values: Sequence[Any]) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device="cpu")


def decode(deltas: Tensor, anchors: Tensor, size: tuple[int, int] | None) -> Tensor:
    """Return the boxes (K, 4) x1 y1 x2 y2 in pixels that deltas describe.

    Args:
        deltas: (K, 4) outputs of the network.
        anchors: (K, 4) x1 y1 x2 y2.
        size: (height, width) that boxes are clipped to, with mmdet's limit of the change of size. None for
            neither (original implementation).
    """
    from torchvision.ops import (  # here, because torchvision takes seconds to import
        box_convert,
        clip_boxes_to_image,
    )

    deltas = deltas * deltas.new_tensor(_VARIANCES)
    logs = deltas[:, 2:] if size is None else deltas[:, 2:].clamp(-_MAX_LOG_SCALE, _MAX_LOG_SCALE)
    centers, sides = box_convert(anchors, "xyxy", "cxcywh").split(2, dim=1)
    moved = torch.cat([centers + deltas[:, :2] * sides, sides * logs.exp()], dim=1)
    boxes = box_convert(moved, "cxcywh", "xyxy")
    return boxes if size is None else clip_boxes_to_image(boxes, size)


def encode(boxes: Tensor, anchors: Tensor) -> Tensor:
    """Return the deltas (K, 4) that ``decode`` turns into boxes (K, 4) x1 y1 x2 y2."""
    from torchvision.ops import box_convert

    centers, sides = box_convert(anchors, "xyxy", "cxcywh").split(2, dim=1)
    box_centers, box_sides = box_convert(boxes, "xyxy", "cxcywh").split(2, dim=1)
    deltas = torch.cat([(box_centers - centers) / sides, (box_sides / sides).log()], dim=1)
    return deltas / boxes.new_tensor(_VARIANCES)


def level_sizes(maps: Sequence[Tensor]) -> LevelSizes:
    """Return the (height, width) of each of several feature maps."""
    return tuple((feature.shape[-2], feature.shape[-1]) for feature in maps)
