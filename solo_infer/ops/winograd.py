"""Convolutions with fewer multiplications, by the method of Winograd, Cook and Toom.

Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (arXiv 1509.09308). A tile of outputs is
computed from the values of polynomials at a few points: as many matrix products over all tiles as a patch of
inputs has pixels. With 3x3 taps and tiles of 4 x 4 that is 2.25 multiplications for an output instead of 9.
Its rounding error in float32 is about four times that of a direct convolution.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

_TILE = 4  # outputs along a side of a tile
# Tiles that are transformed together: few enough that all they need stays in a processor's cache.
_TILES_AT_ONCE = 192
_POINTS = {3: (0, 1, -1, 2, -2), 2: (0, 1, -1, 2)}  # by the number of taps; infinity is one more


class _Transforms(NamedTuple):
    """Matrices that act on both sides of a patch at once, float32; n is the side of a patch of inputs."""

    inputs: Tensor  # (n * n, n * n)
    weight: Tensor  # (n * n, taps * taps)
    outputs: Tensor  # (16, n * n)


@cache
def _transforms(taps: int) -> _Transforms:
    single = _cook_toom(_TILE, taps, _POINTS[taps])
    return _Transforms(*(torch.from_numpy(np.kron(matrix, matrix)).float() for matrix in single))


def _cook_toom(tile: int, taps: int, points: Sequence[float]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return B, G, A of a correlation in one dimension: outputs = A @ ((G @ taps) * (B @ inputs))."""
    side = tile + taps - 1
    at = np.array(points, dtype=np.float64)
    others = [np.delete(at, index) for index in range(len(at))]
    inputs, weight, outputs = np.zeros((side, side)), np.zeros((side, taps)), np.zeros((tile, side))
    for index, rest in enumerate(others):
        inputs[index, :-1] = np.poly(rest)[::-1]
        weight[index] = at[index] ** np.arange(taps) / np.prod(at[index] - rest)
        outputs[:, index] = at[index] ** np.arange(tile)
    inputs[-1] = np.poly(at)[::-1]
    weight[-1, -1] = outputs[-1, -1] = 1.0
    return inputs, weight, outputs


def transform_weight(weight: Tensor) -> Tensor:
    """Return the weight (K, C, 3, 3) of a convolution as ``convolve`` takes it, (36, C, K) float32."""
    taps = weight.float().permute(2, 3, 1, 0)
    return (_transforms(3).weight @ taps.reshape(9, -1)).view(36, *taps.shape[2:])


def convolve(x: Tensor, transformed: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return the 3x3 convolution of x with stride 1 and a padding of 1.

    Args:
        x: (N, C, H, W) float32 on the CPU, best in channels_last.
        transformed: From ``transform_weight``.
        bias: (K,) float32.

    Returns:
        (N, K, H, W) float32 in channels_last.
    """
    return _convolve(x, transformed, bias, stride=1)


def transform_halving_weight(weight: Tensor) -> Tensor:
    """Return the weight (K, C, 4, 4) of a convolution as ``convolve_halving`` takes it, (25, 4 * C, K)."""
    outputs, channels = weight.shape[:2]
    # A step of two sees each of the four phases of the image through 2x2 taps.
    phases = weight.float().view(outputs, channels, 2, 2, 2, 2).permute(2, 4, 3, 5, 1, 0)
    taps = phases.reshape(4, 4 * channels * outputs)
    return (_transforms(2).weight @ taps).view(25, 4 * channels, outputs)


def convolve_halving(x: Tensor, transformed: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return the 4x4 convolution of x with stride 2 and a padding of 1.

    Args:
        x: (N, C, H, W) float32 on the CPU, best in channels_last; H and W even.
        transformed: From ``transform_halving_weight``.
        bias: (K,) float32.

    Returns:
        (N, K, H / 2, W / 2) float32 in channels_last.
    """
    return _convolve(x, transformed, bias, stride=2)


def _convolve(x: Tensor, transformed: Tensor, bias: Tensor | None, stride: int) -> Tensor:
    matrices = _transforms(4 - stride)
    height, width = x.shape[2] // stride, x.shape[3] // stride
    rows, columns, outputs = -(-height // _TILE), -(-width // _TILE), transformed.shape[2]
    bottom, right = (
        stride * _TILE * tiles + 1 - side for tiles, side in ((rows, x.shape[2]), (columns, x.shape[3]))
    )
    padded = F.pad(x, (1, right, 1, bottom)).permute(0, 2, 3, 1)
    out = x.new_empty((len(x), rows * _TILE, columns * _TILE, outputs))
    at_once = max(_TILES_AT_ONCE // columns, 1)
    for image in range(len(x)):
        for first in range(0, rows, at_once):
            some = min(at_once, rows - first)
            patches = _patches(padded[image, first * _TILE * stride :], some, columns, stride)
            spectra = torch.mm(matrices.inputs, patches).view(len(transformed), some * columns, -1)
            products = torch.bmm(spectra, transformed)  # (n * n, tiles, K)
            tiles = torch.mm(matrices.outputs, products.flatten(1))
            place = out[image, first * _TILE : (first + some) * _TILE]
            place.view(some, _TILE, columns, _TILE, outputs).copy_(
                tiles.view(_TILE, _TILE, some, columns, outputs).permute(2, 0, 3, 1, 4)
            )
    if bias is not None:
        out += bias
    return out[:, :height, :width].permute(0, 3, 1, 2)


def _patches(padded: Tensor, rows: int, columns: int, stride: int) -> Tensor:
    """Return the overlapping patches (n * n, tiles * phases * C) of an image (h, w, C), from its top left."""
    side, step = _TILE + 3 - stride, _TILE * stride
    down, right, channel = padded.stride()
    patches = padded.as_strided(
        (side, side, rows, columns, stride, stride, padded.shape[2]),
        (stride * down, stride * right, step * down, step * right, down, right, channel),
        padded.storage_offset(),
    )
    return patches.reshape(side**2, -1)
