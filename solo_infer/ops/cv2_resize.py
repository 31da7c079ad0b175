"""OpenCV's bilinear resize of uint8 images, bit for bit, without OpenCV.

``cv2.resize(..., INTER_LINEAR)`` computes in fixed point: weights have 11 bits, and the vertical pass drops 4
bits of the row sums before its multiplication and 16 bits after it. A reduction to exactly half in both
directions is the rounded mean of 2 x 2 pixels. There is no antialiasing.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

_ONE = 1 << 11  # OpenCV's INTER_RESIZE_COEF_SCALE


def resize_bilinear_uint8(image: Tensor, height: int, width: int) -> Tensor:
    """Resize an image as ``cv2.resize`` does with INTER_LINEAR.

    Args:
        image: (C, H, W) uint8, on any device. A view of an (H, W, C) array is fastest.
        height: New height in pixels, at least 1.
        width: New width in pixels, at least 1.

    Returns:
        (C, height, width) uint8.
    """
    old_height, old_width = image.shape[1:]
    if (height, width) == (old_height, old_width):
        return image
    if (height * 2, width * 2) == (old_height, old_width):
        return _halve(image)
    left, right, weight_left, weight_right = _columns(old_width, width, image.device)
    top, bottom, weight_top, weight_bottom = _rows(old_height, height, image.device)
    # Only source rows that contribute are read, which skips most rows of a large photo.
    used, position = torch.cat([top, bottom]).unique(return_inverse=True)
    rows = image.index_select(1, used)
    sums = rows.index_select(2, left).int().mul_(weight_left)  # (C, rows, width)
    sums.add_(rows.index_select(2, right).int().mul_(weight_right)).bitwise_right_shift_(4)
    upper = sums.index_select(1, position[:height]).mul_(weight_top).bitwise_right_shift_(16)
    lower = sums.index_select(1, position[height:]).mul_(weight_bottom).bitwise_right_shift_(16)
    return upper.add_(lower).add_(2).bitwise_right_shift_(2).to(torch.uint8)


def tables(old: tuple[int, int], new: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Return the indices and weights of the same resize, for a fused kernel.

    For equal sizes and for a reduction to exactly half, the general arithmetic gives the results of the
    special cases in ``resize_bilinear_uint8``.

    Args:
        old: (height, width) of the image.
        new: (height, width) of the result.

    Returns:
        Columns (4, width) int32 on the CPU: left neighbors, right neighbors, and their weights of 11 bits;
        rows (4, height) int32: upper neighbors, lower neighbors, and their weights.
    """
    cpu = torch.device("cpu")
    columns = [values.int().flatten() for values in _columns(old[1], new[1], cpu)]
    rows = [values.int().flatten() for values in _rows(old[0], new[0], cpu)]
    return torch.stack(columns), torch.stack(rows)


def _halve(image: Tensor) -> Tensor:
    """Return the means of 2 x 2 pixels of an image (C, H, W) uint8, with halves rounded up."""
    channels, height, width = image.shape
    squares = image.reshape(channels, height // 2, 2, width // 2, 2)
    return ((squares.sum(dim=(2, 4), dtype=torch.int32) + 2) >> 2).to(torch.uint8)


def _positions(old: int, new: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the index of the left neighbor of each new pixel, and the float32 distance from it."""
    scale = 1.0 / (new / old)  # float64, in OpenCV's order of operations
    position = ((np.arange(new) + 0.5) * scale - 0.5).astype(np.float32)
    index = np.floor(position)
    return index.astype(np.int64), position - index


def _fixed_point(fraction: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the weights of the left and the right neighbor, with halves rounded to even."""
    one = np.float32(1.0)
    left = np.rint((one - fraction) * _ONE)
    right = np.rint(fraction * _ONE)
    return left.astype(np.int32), right.astype(np.int32)


def _columns(old: int, new: int, device: torch.device) -> tuple[Tensor, ...]:
    """Return left and right neighbors and their weights, (new,) each; the fraction of edge pixels is 0."""
    index, fraction = _positions(old, new)
    outside = (index < 0) | (index >= old - 1)
    left, right = _fixed_point(np.where(outside, np.float32(0.0), fraction))
    neighbors = index.clip(0, old - 1), (index + 1).clip(0, old - 1)
    return tuple(torch.from_numpy(array).to(device) for array in (*neighbors, left, right))


def _rows(old: int, new: int, device: torch.device) -> tuple[Tensor, ...]:
    """Return upper and lower neighbors (new,) and their weights (new, 1); OpenCV clips indices only."""
    index, fraction = _positions(old, new)
    top, bottom = _fixed_point(fraction)
    neighbors = index.clip(0, old - 1), (index + 1).clip(0, old - 1)
    return tuple(torch.from_numpy(array).to(device) for array in (*neighbors, top[:, None], bottom[:, None]))
