"""Winograd convolutions, which need fewer multiplications than direct ones.

Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (arXiv 1509.09308). A tile of outputs is
computed from the values of polynomials at a few points, with one matrix product over all tiles for each
point. A 3x3 convolution takes 2.25 multiplications per output in tiles of 4 x 4 and 1.78 in tiles of 6 x 6
instead of 9. Its rounding error in float32 is about two and five times that of a direct convolution.

The transforms before and after the products are products with small matrices, along the rows and along the
columns: few operations, for which threads rarely wait for each other.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cache, partial
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from solo_infer.runtime.scratch_memory import scratch_memory
from solo_infer.runtime.thread_pool import run_in_threads, thread_count

# Tiles of the matrix products that run at a time, by the size of a tile: enough for efficient products, few
# enough for the cache.
_MAX_TILES = {4: 240, 6: 160}
_MIN_TILES = 32  # of one product, if several run at a time
# Tiles of 6 x 6 are faster from this number of them, if they cover the maps without many pixels beyond.
_MANY_TILES, _FEWER_MULTIPLICATIONS = 150, 0.85
# The first ones of these points, of small rounding errors (found by trials), and infinity.
_POINTS = (0, 1, -1, 2, -0.5, -2, 0.5)


def _finite_points(side: int) -> np.ndarray:
    return np.array(_POINTS[: side - 1], dtype=np.float64)


def _float32(matrix: np.ndarray) -> Tensor:
    return torch.from_numpy(matrix.astype(np.float32))


@cache
def _input_matrix(side: int) -> Tensor:
    """Return the matrix (side, side) that evaluates patches of inputs at as many points."""
    points = _finite_points(side)
    rows = [np.append(np.poly(np.delete(points, index))[::-1], 0.0) for index in range(len(points))]
    return _float32(np.vstack([*rows, np.poly(points)[::-1]]))


@cache
def _output_matrix(side: int, tile: int) -> Tensor:
    """Return the matrix (tile, side) that interpolates outputs from products at the points."""
    powers = _finite_points(side) ** np.arange(tile)[:, None]
    return _float32(np.hstack([powers, np.eye(tile)[:, -1:]]))


def _weight_matrix(side: int, taps: int) -> Tensor:
    """Return the matrix (side * side, taps * taps) that evaluates filters, scaled for the other matrices."""
    points = _finite_points(side)
    scales = [np.prod(point - np.delete(points, index)) for index, point in enumerate(points)]
    values = points[:, None] ** np.arange(taps) / np.array(scales)[:, None]
    matrix = _float32(np.vstack([values, np.eye(taps)[-1:]]))
    return torch.kron(matrix, matrix)


def suitable_tile(maps: Sequence[Tensor]) -> int:
    """Return the size of a tile, 4 or 6, with which a 3x3 convolution of maps (N, C, H, W) is faster."""
    small, large = (
        sum(len(x) * -(-x.shape[2] // tile) * -(-x.shape[3] // tile) for x in maps) for tile in (4, 6)
    )
    return 6 if large >= _MANY_TILES and large * 8**2 <= _FEWER_MULTIPLICATIONS * small * 6**2 else 4


def transform_weight(weight: Tensor, tile: int = 4) -> Tensor:
    """Transform the weight (K, C, 3, 3) of a convolution for ``convolve``.

    Args:
        weight: Weight of any float dtype.
        tile: Size of the tiles of outputs, 4 or 6.

    Returns:
        ((tile + 2) ** 2, C, K) float32.
    """
    taps = weight.float().permute(2, 3, 1, 0)
    return (_weight_matrix(tile + 2, 3) @ taps.reshape(9, -1)).view(-1, *taps.shape[2:])


def transform_halving_weight(weight: Tensor) -> Tensor:
    """Transform the weight (K, C, 4, 4) of a convolution for ``convolve_halving``, to (25, 4 * C, K)."""
    outputs, channels = weight.shape[:2]
    # With stride 2, each of the four phases of the image has 2x2 taps.
    phases = weight.float().view(outputs, channels, 2, 2, 2, 2).permute(2, 4, 3, 5, 1, 0)
    taps = phases.reshape(4, 4 * channels * outputs)
    return (_weight_matrix(5, 2) @ taps).view(25, 4 * channels, outputs)


def convolve(maps: Sequence[Tensor], transformed: Tensor, bias: Tensor | None = None) -> list[Tensor]:
    """Apply a 3x3 convolution with stride 1 and a padding of 1 to maps of any sizes.

    Args:
        maps: (N, C, H, W) float32 on the CPU each; channels_last is fastest.
        transformed: Result of ``transform_weight``.
        bias: (K,) float32.

    Returns:
        (N, K, H, W) float32 in channels_last for each map.
    """
    return _convolve(maps, transformed, bias, stride=1, above=1, below=1)


def convolve_halving(
    x: Tensor, transformed: Tensor, bias: Tensor | None = None, above: int = 1, below: int = 1
) -> Tensor:
    """Apply a 4x4 convolution with stride 2 and a padding of 1, which halves the size.

    Args:
        x: (N, C, H, W) float32 on the CPU; W and H + above + below are even. channels_last is fastest.
        transformed: Result of ``transform_halving_weight``.
        bias: (K,) float32.
        above: Number of rows of padding above. Defaults to 1.
        below: Number of rows of padding below. Defaults to 1.

    Returns:
        (N, K, (H + above + below) / 2 - 1, W / 2) float32 in channels_last.
    """
    return _convolve([x], transformed, bias, stride=2, above=above, below=below)[0]


class _TileRows(NamedTuple):
    """Consecutive rows of tiles of one image."""

    pixels: Tensor  # (h, w, C), padded, from the first row of the first tile
    outputs: Tensor  # (rows, tile, columns, tile, K)

    @property
    def tiles(self) -> int:
        return self.outputs.shape[0] * self.outputs.shape[2]


def _convolve(
    maps: Sequence[Tensor], transformed: Tensor, bias: Tensor | None, stride: int, above: int, below: int
) -> list[Tensor]:
    tile = math.isqrt(len(transformed)) - (2 if stride == 1 else 1)
    tile_rows, results = [], []
    sizes = [((x.shape[2] + above + below - 2) // stride, x.shape[3] // stride) for x in maps]
    grids = [(-(-height // tile), -(-width // tile)) for height, width in sizes]
    counts = [len(x) * rows * columns for x, (rows, columns) in zip(maps, grids, strict=True)]
    max_tiles = _max_tiles(sum(counts), tile)
    for x, (height, width), (rows, columns) in zip(maps, sizes, grids, strict=True):
        bottom, right = (stride * tile * tiles + 2 for tiles in (rows, columns))
        sides = (1, right - 1 - x.shape[3], above, bottom - above - x.shape[2])
        padded = (
            F.pad(x.contiguous(memory_format=torch.channels_last), sides).permute(0, 2, 3, 1).contiguous()
        )
        out = x.new_empty((len(x), rows, tile, columns, tile, transformed.shape[2]))
        tile_rows += list(_split(padded, out, stride, max_tiles))
        flat = out.view(len(x), rows * tile, columns * tile, -1)
        results.append(flat[:, :height, :width].permute(0, 3, 1, 2))
    groups = _groups(tile_rows, max_tiles)
    run_in_threads([partial(_convolve_tiles, group, transformed, bias, stride) for group in groups])
    return results


def _max_tiles(total: int, tile: int) -> int:
    """Return the greatest number of tiles of one matrix product, of a total that threads share."""
    threads = thread_count()
    maximum = _MAX_TILES[tile]
    return maximum if threads == 1 else max(-(-min(maximum, total) // threads), _MIN_TILES)


def _split(padded: Tensor, out: Tensor, stride: int, max_tiles: int) -> Iterator[_TileRows]:
    """Split images (N, h, w, C) and outputs (N, rows, tile, columns, tile, K) into rows of tiles.

    Parts have at most ``max_tiles`` tiles, or one row.
    """
    _, rows, tile, columns, _, _ = out.shape
    length = max(max_tiles // columns, 1)
    for pixels, outputs in zip(padded, out, strict=True):
        for first in range(0, rows, length):
            yield _TileRows(pixels[first * tile * stride :], outputs[first : first + length])


def _groups(tile_rows: list[_TileRows], max_tiles: int) -> Iterator[list[_TileRows]]:
    """Yield groups that share their matrix products, so that small maps are computed together."""
    group: list[_TileRows] = []
    for rows in tile_rows:
        if group and sum(member.tiles for member in group) + rows.tiles > max_tiles:
            yield group
            group = []
        group.append(rows)
    if group:
        yield group


def _convolve_tiles(group: list[_TileRows], transformed: Tensor, bias: Tensor | None, stride: int) -> None:
    """Compute the outputs of a group of rows of tiles."""
    points, channels, out_channels = transformed.shape
    tiles = sum(rows.tiles for rows in group)
    size = points * tiles * max(channels, out_channels)
    with scratch_memory(2 * size) as memory:
        first, second = memory.split(size)  # each step reads one and writes the other
        spectra, products = first[: points * tiles * channels], second[: points * tiles * out_channels]
        _transform_inputs(group, stride, spectra.view(points, tiles, channels), second)
        torch.bmm(spectra.view(points, tiles, -1), transformed, out=products.view(points, tiles, -1))
        _transform_outputs(group, products.view(points, tiles, -1), bias, first)


def _transform_inputs(group: list[_TileRows], stride: int, spectra: Tensor, memory: Tensor) -> None:
    """Compute the values (points, tiles, phases * C) at the points, of the input patches of tiles."""
    side = math.isqrt(len(spectra))
    matrix = _input_matrix(side)
    patches = spectra.view(side, side, -1, spectra.shape[2])
    start = 0
    for rows in group:
        values = _patches(rows, stride, side)
        patches[:, :, start : start + rows.tiles].view(values.shape).copy_(values)
        start += rows.tiles
    vertical = memory[: spectra.numel()].view(side, side, -1)
    torch.mm(matrix, spectra.view(side, -1), out=vertical.view(side, -1))
    torch.bmm(matrix.expand(side, side, side), vertical, out=spectra.view(side, side, -1))


def _patches(rows: _TileRows, stride: int, side: int) -> Tensor:
    """Return a view (side, side, rows, columns, phases, phases, C) of the input patches of tiles.

    Neighboring patches share pixels. With stride 2, a patch has four phases, every other pixel each.
    """
    pixels = rows.pixels
    down, right, _ = pixels.stride()
    row_count, tile, columns = rows.outputs.shape[:3]
    size = (side, side, row_count, columns, stride, stride, pixels.shape[2])
    steps = (stride * down, stride * right, tile * stride * down, tile * stride * right, down, right, 1)
    return pixels.as_strided(size, steps, pixels.storage_offset())


def _transform_outputs(group: list[_TileRows], products: Tensor, bias: Tensor | None, memory: Tensor) -> None:
    """Compute the outputs of tiles from their products (points, tiles, K), which are overwritten."""
    points, tiles, channels = products.shape
    side, tile = math.isqrt(points), group[0].outputs.shape[1]
    matrix = _output_matrix(side, tile)
    vertical = memory[: tile * side * tiles * channels].view(tile, side, -1)
    results = products.view(-1)[: tile * tile * tiles * channels].view(tile, tile, -1)
    torch.mm(matrix, products.view(side, -1), out=vertical.view(tile, -1))
    torch.bmm(matrix.expand(tile, tile, side), vertical, out=results)
    counts = [rows.tiles for rows in group]
    for rows, values in zip(group, results.unflatten(2, (tiles, channels)).split(counts, dim=2), strict=True):
        outputs = rows.outputs
        pixels = values.unflatten(2, (outputs.shape[0], outputs.shape[2])).permute(2, 0, 3, 1, 4)
        if bias is None:
            outputs.copy_(pixels)
        else:
            torch.add(pixels, bias, out=outputs)
