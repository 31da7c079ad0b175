"""3x3 convolutions by Winograd's F(4x4, 3x3): 2.25 multiplications for an output pixel in place of 9.

Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (arXiv 1509.09308), section 4. The
convolution becomes 36 matrix products over tiles of 6 x 6 input and 4 x 4 output pixels. In float32 its
rounding error is about four times that of a direct convolution.
"""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

_TILE, _PATCH = 4, 6  # output and input pixels along a side of a tile
# Tiles that are transformed together: few enough that all they need stays in a processor's cache.
_TILES_AT_ONCE = 192

_INPUT = (
    (4, 0, -5, 0, 1, 0),
    (0, -4, -4, 1, 1, 0),
    (0, 4, -4, -1, 1, 0),
    (0, -2, -1, 2, 1, 0),
    (0, 2, -1, -2, 1, 0),
    (0, 4, 0, -5, 0, 1),
)
_WEIGHT = (
    (1 / 4, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0, 0, 1),
)
_OUTPUT = (
    (1, 1, 1, 1, 1, 0),
    (0, 1, -1, 2, -2, 0),
    (0, 1, 1, 4, 4, 0),
    (0, 1, -1, 8, -8, 1),
)


@cache
def _both_ways(matrix: tuple[tuple[float, ...], ...]) -> Tensor:
    """Return the matrix that transforms flattened patches along both sides."""
    single = torch.tensor(matrix, dtype=torch.float64)
    return torch.kron(single, single).float()


def transform_weight(weight: Tensor) -> Tensor:
    """Return the weight (K, C, 3, 3) of a convolution as ``convolve`` takes it, (36, C, K) float32."""
    taps = weight.float().permute(2, 3, 1, 0).reshape(9, -1)  # (9, C * K)
    return (_both_ways(_WEIGHT) @ taps).view(_PATCH**2, weight.shape[1], weight.shape[0])


def convolve(x: Tensor, transformed: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return the 3x3 convolution of x with stride 1 and a padding of 1.

    Args:
        x: (N, C, H, W) float32 on the CPU, best in channels_last.
        transformed: From ``transform_weight``.
        bias: (K,) float32.

    Returns:
        (N, K, H, W) float32 in channels_last.
    """
    count, channels, height, width = x.shape
    rows, columns = -(-height // _TILE), -(-width // _TILE)
    outputs = transformed.shape[2]
    padded = F.pad(x, (1, columns * _TILE + 1 - width, 1, rows * _TILE + 1 - height))
    padded = padded.permute(0, 2, 3, 1)  # (N, 4 rows + 2, 4 columns + 2, C)
    out = x.new_empty((count, rows * _TILE, columns * _TILE, outputs))
    at_once = max(_TILES_AT_ONCE // columns, 1)
    for image in range(count):
        for first in range(0, rows, at_once):
            some = min(at_once, rows - first)
            patches = _patches(padded[image, first * _TILE :], some, columns)  # (36, tiles * C)
            spectra = torch.mm(_both_ways(_INPUT), patches).view(-1, some * columns, channels)
            products = torch.bmm(spectra, transformed)  # (36, tiles, K)
            tiles = torch.mm(_both_ways(_OUTPUT), products.flatten(1))
            place = out[image, first * _TILE : (first + some) * _TILE].view(
                some, _TILE, columns, _TILE, outputs
            )
            place.copy_(tiles.view(_TILE, _TILE, some, columns, outputs).permute(2, 0, 3, 1, 4))
    if bias is not None:
        out += bias
    return out[:, :height, :width].permute(0, 3, 1, 2)


def _patches(padded: Tensor, rows: int, columns: int) -> Tensor:
    """Return the overlapping patches (36, tiles * C) of the first rows of tiles of one image (h, w, C)."""
    down, right, channel = padded.stride()
    patches = padded.as_strided(
        (_PATCH, _PATCH, rows, columns, padded.shape[2]),
        (down, right, _TILE * down, _TILE * right, channel),
        padded.storage_offset(),
    )
    return patches.reshape(_PATCH**2, -1)
