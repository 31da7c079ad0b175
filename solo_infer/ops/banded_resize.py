"""Soft masks to packed masks at the size of the image file, as two products with narrow matrices.

mmdet up-samples each soft mask to the padded input, cuts off the padding and resizes the rest to the size of
the file, all bilinearly. Each of these steps acts on rows and on columns apart and is linear, so all of
them are one matrix for rows and one for columns, of which a row has two or three entries.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from solo_infer.ops import packed_masks

# Output rows or columns of one product: so few that it needs few inputs, so many that it is a product.
_BAND = 32
_MOST_BYTES = 4 << 20


class Band(NamedTuple):
    """Some consecutive outputs of a resize, and the inputs that they are made of."""

    outputs: slice
    inputs: slice
    matrix: Tensor  # (outputs, inputs) float32


def resize_matrix(soft: int, padded: int, resized: int, original: int) -> Tensor:
    """Return the matrix (original, soft), float32, of one side of the way from soft masks to the file.

    Args:
        soft: Length of the side of the soft masks.
        padded: Of the network input.
        resized: Of the part of it that the image fills.
        original: Of the file.
    """
    impulses = torch.eye(soft)[:, None]
    enlarged = F.interpolate(impulses, size=padded, mode="linear", align_corners=False)[..., :resized]
    return F.interpolate(enlarged, size=original, mode="linear", align_corners=False)[:, 0].T.contiguous()


@lru_cache(maxsize=32)
def _bands(soft: int, padded: int, resized: int, original: int, multiple: int) -> tuple[int, list[Band]]:
    """Return the length of a side, rounded up to a multiple (with zeros), and its bands."""
    matrix = resize_matrix(soft, padded, resized, original)
    matrix = F.pad(matrix, (0, 0, 0, -original % multiple))
    bands = []
    for start in range(0, len(matrix), _BAND):
        rows = matrix[start : start + _BAND]
        used = torch.nonzero(rows.any(dim=0)).flatten()
        inputs = slice(int(used[0]), int(used[-1]) + 1)
        bands.append(Band(slice(start, start + len(rows)), inputs, rows[:, inputs].contiguous()))
    return len(matrix), bands


def packed_at_file_size(
    soft: Tensor,
    padded: tuple[int, int],
    resized: tuple[int, int],
    original: tuple[int, int],
    mask_thr: float,
) -> Tensor:
    """Resize soft masks, apply the threshold and pack the bits.

    Args:
        soft: (K, h, w) float32 in 0..1 on the CPU.
        padded: Height and width of the network input.
        resized: Of the part of it that the image fills.
        original: Of the file: H, W.
        mask_thr: A pixel belongs to the mask above this, at least 0.

    Returns:
        (K, H, ceil(W / 8)) uint8.
    """
    (_, rows), (width, columns) = (
        _bands(soft.shape[1 + side], padded[side], resized[side], original[side], multiple)
        for side, multiple in ((0, 1), (1, 8))
    )
    packed = torch.empty((len(soft), original[0], width // 8), dtype=torch.uint8)
    most = max(_MOST_BYTES // (4 * soft.shape[1] * width), 1)
    for start in range(0, len(soft), most):
        some = soft[start : start + most]
        # Rows outermost, so that a band of rows of all masks is one matrix.
        lines = some.transpose(0, 1).reshape(-1, soft.shape[2])
        stretched = torch.empty((len(lines), width))
        for band in columns:
            torch.mm(lines[:, band.inputs], band.matrix.T, out=stretched[:, band.outputs])
        stretched = stretched.view(soft.shape[1], -1)
        for band in rows:
            masks = torch.mm(band.matrix, stretched[band.inputs]) > mask_thr
            few = packed_masks.pack(masks.view(-1, len(some), width))
            packed[start : start + most, band.outputs] = few.transpose(0, 1)
    return packed
