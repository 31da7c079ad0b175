"""Winograd convolutions in operations of torch.

The transforms before and after the products are products with small matrices, along the rows and along the
columns: few operations, for which threads rarely wait for each other.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from solo_infer.ops.winograd_matrices import input_matrix, output_matrix
from solo_infer.runtime import kept_memory
from solo_infer.runtime.thread_pool import run_in_threads, thread_count

# Tiles of the matrix products that run at a time: enough for efficient products, few enough for the cache.
_MAX_TILES = 240
_MIN_TILES = 32  # of one product, if several run at a time


class _TileRows(NamedTuple):
    """Consecutive rows of tiles of one image."""

    pixels: Tensor  # (h, w, C), padded, from the first row of the first tile
    outputs: Tensor  # (rows, tile, columns, tile, K)

    @property
    def tiles(self) -> int:
        return self.outputs.shape[0] * self.outputs.shape[2]


def convolve(
    maps: Sequence[Tensor],
    transformed: Tensor,
    bias: Tensor | None,
    stride: int,
    above: int,
    sizes: Sequence[tuple[int, int]],
) -> list[Tensor]:
    """Apply a convolution with stride 1 or 2 to maps of any sizes.

    Args:
        maps: (N, C, H, W) float32 on the CPU each; channels_last is fastest.
        transformed: (points, C, K) float32; (points, 4 * C, K) for stride 2.
        bias: (K,) float32.
        stride: 1 for 3x3 filters; 2 for 4x4 ones, or 3x3 ones with a row and a column of zeros.
        above: Rows of padding above.
        sizes: Height and width H', W' of the outputs of each map.

    Returns:
        (N, K, H', W') float32 in channels_last for each map.
    """
    tile = math.isqrt(len(transformed)) - (2 if stride == 1 else 1)
    tile_rows, results = [], []
    grids = [(-(-height // tile), -(-width // tile)) for height, width in sizes]
    counts = [len(x) * rows * columns for x, (rows, columns) in zip(maps, grids, strict=True)]
    max_tiles = _max_tiles(sum(counts))
    for x, (height, width), (rows, columns) in zip(maps, sizes, grids, strict=True):
        bottom, right = (stride * tile * tiles + 2 for tiles in (rows, columns))
        sides = (1, right - 1 - x.shape[3], above, bottom - above - x.shape[2])
        padded = (
            F.pad(x.contiguous(memory_format=torch.channels_last), sides).permute(0, 2, 3, 1).contiguous()
        )
        out = kept_memory.empty([len(x), rows, tile, columns, tile, transformed.shape[2]])
        tile_rows += list(_split(padded, out, stride, max_tiles))
        flat = out.view(len(x), rows * tile, columns * tile, -1)
        results.append(flat[:, :height, :width].permute(0, 3, 1, 2))
    groups = _groups(tile_rows, max_tiles)
    run_in_threads([partial(_convolve_tiles, group, transformed, bias, stride) for group in groups])
    return results


def _max_tiles(total: int) -> int:
    """Return the greatest number of tiles of one matrix product, of a total that threads share."""
    threads = thread_count()
    return _MAX_TILES if threads == 1 else max(-(-min(_MAX_TILES, total) // threads), _MIN_TILES)


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
    first, second = kept_memory.empty([2, size])  # each step reads one and writes the other
    spectra, products = first[: points * tiles * channels], second[: points * tiles * out_channels]
    _transform_inputs(group, stride, spectra.view(points, tiles, channels), second)
    torch.bmm(spectra.view(points, tiles, -1), transformed, out=products.view(points, tiles, -1))
    _transform_outputs(group, products.view(points, tiles, -1), bias, first)


def _transform_inputs(group: list[_TileRows], stride: int, spectra: Tensor, memory: Tensor) -> None:
    """Compute the values (points, tiles, phases * C) at the points, of the input patches of tiles."""
    side = math.isqrt(len(spectra))
    matrix = input_matrix(side)
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
    matrix = output_matrix(side, tile)
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
