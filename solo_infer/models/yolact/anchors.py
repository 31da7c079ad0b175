"""YOLACT's anchor boxes, and boxes as the network tells them: relative to an anchor.

Anchors are boxes x1 y1 x2 y2 in pixels of the network input, ordered by level (finest first), row, column and
shape.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import box_convert

RATIOS = (0.5, 1.0, 2.0)  # height over width of mmdet's three shapes
AUTHORS_RATIOS = (1.0, 0.5, 2.0)  # whose root scales both sides of the author's square anchors
_VARIANCES = (0.1, 0.1, 0.2, 0.2)  # of cx, cy, w, h (SSD's; mmdet's target_stds)
_LARGEST_LOG = abs(math.log(16 / 1000))  # of a change of size (mmdet's wh_ratio_clip)
_CACHED = 32  # sets of anchors that are kept, of the sizes, architectures and devices used last

Sizes = tuple[tuple[int, int], ...]


def strided_anchors(
    levels: Sizes, sizes: tuple[float, ...], strides: tuple[float, ...], device: torch.device
) -> Tensor:
    """Return mmdet's anchors: three of equal area in the middle of each cell of a fixed stride.

    Args:
        levels: (height, width) of the feature map of each level.
        sizes: Root of the anchors' area by level, in pixels.
        strides: By level, in pixels.
        device: Where they shall lie.

    Returns:
        (A, 4) float32; shared, not to be changed.
    """
    roots = torch.tensor(RATIOS).sqrt()
    shapes = torch.stack([1 / roots, roots], dim=1).tolist()
    steps = tuple((stride, stride) for stride in strides)
    return _anchors(levels, sizes, tuple(map(tuple, shapes)), steps, device)


def square_anchors(
    levels: Sizes, sizes: tuple[float, ...], input_size: tuple[int, int], device: torch.device
) -> Tensor:
    """Return the author's anchors: three squares in the middle of each of the cells that share the input.

    He meant them to differ in shape. His code sets the height to the width (``use_square_anchors``), with
    which his models were trained.

    Args:
        levels: (height, width) of the feature map of each level.
        sizes: Side of the middle anchor by level, in pixels.
        input_size: Height and width of the network input in pixels.
        device: Where they shall lie.

    Returns:
        As ``strided_anchors``.
    """
    shapes = tuple((math.sqrt(ratio), math.sqrt(ratio)) for ratio in AUTHORS_RATIOS)
    steps = tuple((input_size[0] / height, input_size[1] / width) for height, width in levels)
    return _anchors(levels, sizes, shapes, steps, device)


@functools.lru_cache(maxsize=_CACHED)
def _anchors(
    levels: Sizes,
    sizes: tuple[float, ...],
    shapes: tuple[tuple[float, float], ...],
    steps: tuple[tuple[float, float], ...],
    device: torch.device,
) -> Tensor:
    """Return anchors (A, 4): ``shapes`` are (width, height) in sizes, ``steps`` (y, x) in pixels by level."""
    # In float32 and in mmdet's order: the last bit often decides which anchor overlaps a box most.
    parts = []
    for (height, width), size, (step_y, step_x) in zip(levels, sizes, steps, strict=True):
        halves = torch.tensor(shapes) * size * 0.5  # (3, 2)
        middle = torch.tensor([step_x * 0.5, step_y * 0.5])
        boxes = torch.cat([middle - halves, middle + halves], dim=1)  # (3, 4), of the first cell
        y, x = torch.meshgrid(torch.arange(height) * step_y, torch.arange(width) * step_x, indexing="ij")
        shifts = torch.stack([x, y, x, y], dim=-1)  # (h, w, 4)
        parts.append((shifts[:, :, None] + boxes).reshape(-1, 4))
    # A blocking copy: whoever is given the cached tensor, on whatever stream, finds it filled.
    return torch.cat(parts).to(device)


def decode(deltas: Tensor, anchors: Tensor, size: tuple[int, int] | None) -> Tensor:
    """Return the boxes (K, 4) x1 y1 x2 y2 in pixels that deltas (K, 4) make of anchors (K, 4).

    Args:
        deltas: Of the network.
        anchors: Of the same places.
        size: Height and width to clip boxes to, with mmdet's limit of a change of size; None for neither.
    """
    deltas = deltas * deltas.new_tensor(_VARIANCES)
    logs = deltas[:, 2:] if size is None else deltas[:, 2:].clamp(-_LARGEST_LOG, _LARGEST_LOG)
    centers, sides = box_convert(anchors, "xyxy", "cxcywh").split(2, dim=1)
    moved = torch.cat([centers + deltas[:, :2] * sides, sides * logs.exp()], dim=1)
    boxes = box_convert(moved, "cxcywh", "xyxy")
    return boxes if size is None else clip(boxes, size)


def clip(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Clip boxes (K, 4) to an image (height, width)."""
    height, width = size
    return torch.minimum(boxes.clamp(min=0), boxes.new_tensor([width, height, width, height]))


def encode(boxes: Tensor, anchors: Tensor) -> Tensor:
    """Return the deltas (K, 4) that ``decode`` makes these boxes (K, 4) x1 y1 x2 y2 of."""
    centers, sides = box_convert(anchors, "xyxy", "cxcywh").split(2, dim=1)
    wanted_centers, wanted_sides = box_convert(boxes, "xyxy", "cxcywh").split(2, dim=1)
    deltas = torch.cat([(wanted_centers - centers) / sides, (wanted_sides / sides).log()], dim=1)
    return deltas / boxes.new_tensor(_VARIANCES)


def level_sizes(maps: Sequence[Tensor]) -> Sizes:
    """Return (height, width) of feature maps."""
    return tuple((feature.shape[-2], feature.shape[-1]) for feature in maps)
