"""Soft masks at a fraction of the network input's size to packed masks at the original size of an image.

mmdet up-samples each soft mask to the padded network input, crops the padding and resizes the rest to the
original size of the image, all bilinearly.

On the CPU this is computed as two matrix products. Each step is linear and acts on rows and columns
separately, so that all steps together are one matrix for the rows and one for the columns. A row of such a
matrix has two or three nonzero entries, so the products are restricted to bands of the matrices.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from solo_infer.ops import packed_masks
from solo_infer.ops.dispatch import triton_kernel
from solo_infer.runtime.neutral_state import neutral_state

# Bytes of float32 maps in one chunk; a chunk needs about four times this.
_CHUNK_BYTES = 64 << 20
# Bytes of the float32 pixels of one tile of several masks: they stay in the cache.
_TILE_BYTES = 2 << 20
# Least output rows and columns of a tile, multiples of 8, and its least inputs along a side: small enough to
# skip the background of a mask, large enough to be efficient.
_TILE_ROWS, _TILE_COLUMNS = 64, 128
_TILE_INPUTS = 8

Size = tuple[int, int]  # (height, width) in pixels


class PastedMasks(NamedTuple):
    """Masks at the original size of an image."""

    packed: Tensor  # (K, height, ceil(width / 8)) uint8, see packed_masks
    boxes: Tensor  # (K, 4) float32 x1 y1 x2 y2, exclusive right and bottom edges; zeros for empty masks


@triton_kernel("mask pasting", "solo_infer.ops.triton.paste_masks:paste_masks")
def paste_masks(soft: Tensor, padded: Size, resized: Size, original: Size, threshold: float) -> PastedMasks:
    """Up-sample soft masks to the network input, crop, resize to the original size, threshold and pack.

    The Triton kernel and the PyTorch implementation may decide differently on pixels whose score is within
    1e-5 of the threshold, because PyTorch may fuse multiplications and additions.

    Args:
        soft: (K, h, w) float32 in 0..1.
        padded: (height, width) of the network input, to which masks are up-sampled.
        resized: (height, width) of the part of the network input that the image fills.
        original: (height, width) of the image.
        threshold: Pixels with a greater score are inside, at least 0.
    """
    paste = _paste_by_bands if soft.device.type == "cpu" else _paste_by_interpolation
    packed = paste(soft, padded, resized, original, threshold)
    return PastedMasks(packed, packed_masks.mask_boxes(packed, original[1]))


def _paste_by_interpolation(
    soft: Tensor, padded: Size, resized: Size, original: Size, threshold: float
) -> Tensor:
    """Return packed masks, computed by ``F.interpolate``."""
    largest = max(padded[0] * padded[1], original[0] * original[1])
    packed = [torch.zeros((0, original[0], (original[1] + 7) // 8), dtype=torch.uint8, device=soft.device)]
    for chunk in soft.split(max(_CHUNK_BYTES // (4 * largest), 1)) if len(soft) else ():
        maps = F.interpolate(chunk[None], size=padded, mode="bilinear", align_corners=False)
        maps = maps[:, :, : resized[0], : resized[1]]
        if resized != original:
            maps = F.interpolate(maps, size=original, mode="bilinear", align_corners=False)
        packed.append(packed_masks.pack(maps[0] > threshold))
    return torch.cat(packed)


def _paste_by_bands(soft: Tensor, padded: Size, resized: Size, original: Size, threshold: float) -> Tensor:
    """Return packed masks, computed by products with banded matrices, for one tile of all masks at a time.

    An output pixel is a mean of inputs, so that only outputs near an input above the threshold can be inside.
    """
    _, rows = _bands(soft.shape[1], padded[0], resized[0], original[0], multiple=1)
    width, columns = _bands(soft.shape[2], padded[1], resized[1], original[1], multiple=8)
    packed = torch.zeros((len(soft), original[0], width // 8), dtype=torch.uint8, device=soft.device)
    above = soft > threshold
    for band in rows:
        strip = above[:, band.inputs].any(dim=1)
        for column_band in columns:
            used = torch.nonzero(strip[:, column_band.inputs].any(dim=1)).flatten()
            length = max(_TILE_BYTES // (4 * len(band.matrix) * len(column_band.matrix)), 1)
            for masks in used.split(length) if len(used) else ():
                _paste_tile(soft, masks, band, column_band, threshold, packed)
    return packed


def _paste_tile(
    soft: Tensor, masks: Tensor, rows: _Band, columns: _Band, threshold: float, packed: Tensor
) -> None:
    """Write the pixels of a band of rows and a band of columns of some masks (k,) int64."""
    index = slice(None) if len(masks) == len(soft) else masks  # a slice copies nothing
    widened = torch.matmul(soft[index, rows.inputs, columns.inputs], columns.matrix.T)
    inside = torch.matmul(rows.matrix, widened) > threshold
    outputs = slice(columns.outputs.start // 8, columns.outputs.stop // 8)
    packed[index, rows.outputs, outputs] = packed_masks.pack(inside)


class _Band(NamedTuple):
    """Consecutive outputs of a resize, with the inputs that contribute to them."""

    outputs: slice
    inputs: slice
    matrix: Tensor  # (outputs, inputs) float32


@lru_cache(maxsize=32)
@neutral_state()
def _bands(soft: int, padded: int, resized: int, original: int, multiple: int) -> tuple[int, list[_Band]]:
    """Return the output length, zero-padded to a multiple (1 for rows, 8 for columns), and the bands."""
    matrix = _resize_matrix(soft, padded, resized, original)
    matrix = F.pad(matrix, (0, 0, 0, -original % multiple))
    length = max(_TILE_COLUMNS if multiple > 1 else _TILE_ROWS, _TILE_INPUTS * original // soft // 8 * 8)
    bands = []
    for start in range(0, len(matrix), length):
        rows = matrix[start : start + length]
        used = torch.nonzero(rows.any(dim=0)).flatten()
        inputs = slice(int(used[0]), int(used[-1]) + 1)
        bands.append(_Band(slice(start, start + len(rows)), inputs, rows[:, inputs].contiguous()))
    return len(matrix), bands


def _resize_matrix(soft: int, padded: int, resized: int, original: int) -> Tensor:
    """Return the matrix (original, soft) float32 that pastes one side of the masks.

    Args:
        soft: Length of the side of the soft masks.
        padded: Length of the side of the network input.
        resized: Length of the part of the network input that the image fills.
        original: Length of the side of the image.
    """
    impulses = torch.eye(soft, dtype=torch.float32, device="cpu")[:, None]
    maps = F.interpolate(impulses, size=padded, mode="linear", align_corners=False)[..., :resized]
    return F.interpolate(maps, size=original, mode="linear", align_corners=False)[:, 0].T.contiguous()
