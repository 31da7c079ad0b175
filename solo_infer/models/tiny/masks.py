"""Boxes and masks of cells from their predictions.

The mask logit of a cell at a pixel is the product of its kernel with the mask features there, plus a
quadratic function of the pixel's position in the box of the cell. With a kernel of zeros, as at the start of
training, the mask is an ellipse in the box. The sum is one dynamic 1x1 convolution, as in SOLOv2 (arXiv
2003.10152), of the mask features and six maps of coordinates: 1, x, y, x^2, y^2, xy.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import softplus

from solo_infer.config.tiny import TINY_STRIDES

NUM_SHAPE_TERMS = 6  # numbers of a kernel that shape the quadratic function
MASK_STRIDE = 4  # input pixels per pixel of the mask features
COORDINATE_UNIT = 64.0  # input pixels per unit of the coordinate maps, which keeps their squares small
_MIN_HALF_SIDE = 3.0  # input pixels; smaller boxes give masks of this half width or height
_START = 2.0  # logit in the center of a box at the start, and what softplus takes to fall to 0 at its border


def cell_points(sizes: Sequence[tuple[int, int]], device: torch.device) -> Tensor:
    """Return x, y and stride of each cell, (cells, 3) float32, in input pixels.

    Args:
        sizes: (height, width) of the feature map of each level, finest first.
        device: Device of the result.
    """
    points = []
    for (height, width), stride in zip(sizes, TINY_STRIDES, strict=True):
        rows = torch.arange(height, dtype=torch.float32, device=device)
        columns = torch.arange(width, dtype=torch.float32, device=device)
        y, x = torch.meshgrid(rows * stride, columns * stride, indexing="ij")
        points.append(torch.stack([x, y, torch.full_like(x, stride)], dim=-1).flatten(0, 1))
    return torch.cat(points)


def decode_boxes(distance_logits: Tensor, points: Tensor) -> Tensor:
    """Return the boxes (..., K, 4) float32 x1 y1 x2 y2 of cells in input pixels.

    Args:
        distance_logits: (..., K, 4 * bins): logits of the distances to the left, top, right and bottom side.
        points: (..., K, 3) x, y and stride of the cells.
    """
    probabilities = distance_logits.float().unflatten(-1, (4, -1)).softmax(dim=-1)
    bins = torch.arange(probabilities.shape[-1], dtype=torch.float32, device=points.device)
    distances = (probabilities @ bins) * points[..., 2:]
    centers = points[..., :2]
    return torch.cat([centers - distances[..., :2], centers + distances[..., 2:]], dim=-1)


def mask_logits(kernels: Tensor, boxes: Tensor, features: Tensor) -> Tensor:
    """Return the mask logits (..., K, h, w) float32 of cells of one image, or of a batch.

    Args:
        kernels: (..., K, C + 6) predicted kernels.
        boxes: (..., K, 4) float32 x1 y1 x2 y2 in input pixels.
        features: (..., C, h, w) mask features of the images.
    """
    height, width = features.shape[-2:]
    coordinates = coordinate_maps(height, width, features.device).expand(*features.shape[:-3], -1, -1, -1)
    maps = torch.cat([features.float(), coordinates], dim=-3)
    return (mask_weights(kernels, boxes) @ maps.flatten(-2)).unflatten(-1, (height, width))


def mask_weights(kernels: Tensor, boxes: Tensor) -> Tensor:
    """Return the weights (..., K, C + 6) float32 of mask features and coordinate maps.

    Args:
        kernels: (..., K, C + 6) predicted kernels.
        boxes: (..., K, 4) float32 x1 y1 x2 y2 in input pixels.
    """
    weights, terms = kernels.float().tensor_split([-NUM_SHAPE_TERMS], dim=-1)
    return torch.cat([weights, shape_weights(terms, boxes)], dim=-1)


def coordinate_maps(height: int, width: int, device: torch.device) -> Tensor:
    """Return the maps 1, x, y, x^2, y^2, xy of the centers of pixels, (6, height, width) float32.

    Args:
        height: Height of the mask features.
        width: Width of the mask features.
        device: Device of the result.
    """
    scale = MASK_STRIDE / COORDINATE_UNIT
    x = ((torch.arange(width, dtype=torch.float32, device=device) + 0.5) * scale).expand(height, width)
    y = ((torch.arange(height, dtype=torch.float32, device=device) + 0.5) * scale)[:, None].expand_as(x)
    return torch.stack([torch.ones_like(x), x, y, x * x, y * y, x * y])


def shape_weights(terms: Tensor, boxes: Tensor) -> Tensor:
    """Return the weights (..., K, 6) float32 of the coordinate maps.

    In the coordinates u, v of a box, which are -1 and 1 at its sides, the function is
    ``2 + t0 + t1 u + t2 v - softplus(2 + t3) u^2 - softplus(2 + t4) v^2 + t5 u v``.

    Args:
        terms: (..., K, 6) last numbers of the kernels.
        boxes: (..., K, 4) float32 x1 y1 x2 y2 in input pixels.
    """
    t0, t1, t2, t3, t4, t5 = terms.float().unbind(dim=-1)
    center = (boxes[..., :2] + boxes[..., 2:]) / (2 * COORDINATE_UNIT)
    half_sides = ((boxes[..., 2:] - boxes[..., :2]) / 2).clamp(min=_MIN_HALF_SIDE) / COORDINATE_UNIT
    # u = a x + b and v = c y + d
    (a, c), (b, d) = (1 / half_sides).unbind(dim=-1), (-center / half_sides).unbind(dim=-1)
    p, q = softplus(_START + t3), softplus(_START + t4)
    return torch.stack(
        [
            _START + t0 + t1 * b + t2 * d - p * b * b - q * d * d + t5 * b * d,
            a * (t1 - 2 * p * b + t5 * d),
            c * (t2 - 2 * q * d + t5 * b),
            -p * a * a,
            -q * c * c,
            t5 * a * c,
        ],
        dim=-1,
    )


def pixels_in_boxes(boxes: Tensor, height: int, width: int) -> Tensor:
    """Return which pixels of the mask features have their center in boxes, (..., K, height, width) bool.

    Args:
        boxes: (..., K, 4) float32 x1 y1 x2 y2 in input pixels.
        height: Height of the mask features.
        width: Width of the mask features.
    """
    x = (torch.arange(width, dtype=torch.float32, device=boxes.device) + 0.5) * MASK_STRIDE
    y = (torch.arange(height, dtype=torch.float32, device=boxes.device) + 0.5) * MASK_STRIDE
    left, top, right, bottom = boxes[..., None].unbind(dim=-2)
    return ((y > top) & (y < bottom))[..., None] & ((x > left) & (x < right))[..., None, :]
