"""Winograd convolutions, which need fewer multiplications than direct ones.

Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (arXiv 1509.09308). A tile of 4 x 4
outputs is computed from the values of polynomials at a few points, with one matrix product over all tiles for
each pixel of a patch of inputs. A 3x3 convolution takes 2.25 multiplications per output instead of 9. Its
rounding error in float32 is about four times that of a direct convolution.

The transforms before and after the products are one-dimensional additions along the rows, then along the
columns, of slices that fit the processor's cache.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from solo_infer.runtime.thread_pool import run_in_threads, thread_count

_TILE = 4  # outputs along a side of a tile
# Tiles of the matrix products that run at a time: enough for efficient products, few enough for the cache.
_MAX_TILES = 240
_MIN_TILES = 32  # of one product, if several run at a time
_POINTS = {3: (0, 1, -1, 2, -2), 2: (0, 1, -1, 2)}  # by number of taps; infinity is an additional point


def _weight_matrix(taps: int) -> Tensor:
    """Return the matrix (points, taps) that evaluates a filter at the points, scaled for the transforms."""
    points = np.array(_POINTS[taps], dtype=np.float64)
    scales = [np.prod(point - np.delete(points, index)) for index, point in enumerate(points)]
    values = points[:, None] ** np.arange(taps) / np.array(scales)[:, None]
    return torch.from_numpy(np.vstack([values, np.eye(taps)[-1:]]).astype(np.float32))


def _weight_matrix_2d(taps: int) -> Tensor:
    """Return the matrix (points * points, taps * taps) that transforms both sides of a filter."""
    matrix = _weight_matrix(taps)
    return torch.kron(matrix, matrix)


def transform_weight(weight: Tensor) -> Tensor:
    """Transform the weight (K, C, 3, 3) of a convolution for ``convolve``, to (36, C, K) float32."""
    taps = weight.float().permute(2, 3, 1, 0)
    return (_weight_matrix_2d(3) @ taps.reshape(9, -1)).view(36, *taps.shape[2:])


def transform_halving_weight(weight: Tensor) -> Tensor:
    """Transform the weight (K, C, 4, 4) of a convolution for ``convolve_halving``, to (25, 4 * C, K)."""
    outputs, channels = weight.shape[:2]
    # With stride 2, each of the four phases of the image has 2x2 taps.
    phases = weight.float().view(outputs, channels, 2, 2, 2, 2).permute(2, 4, 3, 5, 1, 0)
    taps = phases.reshape(4, 4 * channels * outputs)
    return (_weight_matrix_2d(2) @ taps).view(25, 4 * channels, outputs)


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
    outputs: Tensor  # (rows, 4, columns, 4, K)

    @property
    def tiles(self) -> int:
        return self.outputs.shape[0] * self.outputs.shape[2]


def _convolve(
    maps: Sequence[Tensor], transformed: Tensor, bias: Tensor | None, stride: int, above: int, below: int
) -> list[Tensor]:
    tile_rows, results = [], []
    sizes = [((x.shape[2] + above + below - 2) // stride, x.shape[3] // stride) for x in maps]
    grids = [(-(-height // _TILE), -(-width // _TILE)) for height, width in sizes]
    counts = [len(x) * rows * columns for x, (rows, columns) in zip(maps, grids, strict=True)]
    max_tiles = _max_tiles(sum(counts))
    for x, (height, width), (rows, columns) in zip(maps, sizes, grids, strict=True):
        bottom, right = (stride * _TILE * tiles + 2 for tiles in (rows, columns))
        sides = (1, right - 1 - x.shape[3], above, bottom - above - x.shape[2])
        padded = (
            F.pad(x.contiguous(memory_format=torch.channels_last), sides).permute(0, 2, 3, 1).contiguous()
        )
        out = x.new_empty((len(x), rows, _TILE, columns, _TILE, transformed.shape[2]))
        tile_rows += list(_split(padded, out, stride, max_tiles))
        flat = out.view(len(x), rows * _TILE, columns * _TILE, -1)
        results.append(flat[:, :height, :width].permute(0, 3, 1, 2))
    groups = _groups(tile_rows, max_tiles)
    run_in_threads([partial(_convolve_tiles, group, transformed, bias, stride) for group in groups])
    return results


def _max_tiles(total: int) -> int:
    """Return the greatest number of tiles of one matrix product, of a total that threads share."""
    threads = thread_count()
    return _MAX_TILES if threads == 1 else max(-(-min(_MAX_TILES, total) // threads), _MIN_TILES)


def _split(padded: Tensor, out: Tensor, stride: int, max_tiles: int) -> Iterator[_TileRows]:
    """Split images (N, h, w, C) and outputs (N, rows, 4, columns, 4, K) into a bounded number of tiles."""
    rows, columns = out.shape[1], out.shape[3]
    length = max(max_tiles // columns, 1)
    for pixels, outputs in zip(padded, out, strict=True):
        for first in range(0, rows, length):
            yield _TileRows(pixels[first * _TILE * stride :], outputs[first : first + length])


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
    side, channels = _TILE + 3 - stride, transformed.shape[1]
    counts = [rows.tiles for rows in group]
    spectra = transformed.new_empty((side, side, sum(counts), channels))
    for rows, values in zip(group, spectra.split(counts, dim=2), strict=True):
        _transform_inputs(rows, values, stride)
    products = torch.bmm(spectra.flatten(0, 1), transformed)  # (n * n, tiles, K)
    for rows, values in zip(group, products.unflatten(0, (side, side)).split(counts, dim=2), strict=True):
        _transform_outputs(values, rows.outputs, bias)


def _transform_inputs(tile_rows: _TileRows, spectra: Tensor, stride: int) -> None:
    """Compute the values (n, n, tiles, phases * C) at the points, of the input patches of tiles."""
    rows, columns = tile_rows.outputs.shape[0], tile_rows.outputs.shape[2]
    pixels, side, step = tile_rows.pixels, len(spectra), _TILE * stride
    width, channels = pixels.shape[1:]
    evaluate = _evaluate_inputs_3 if stride == 1 else _evaluate_inputs_2
    # Rows of each patch first, for all columns together; with stride 2, even and odd rows are separate.
    down, right, _ = pixels.stride()
    lines = pixels.as_strided(
        (side, rows, stride, width, channels),
        (stride * down, step * down, down, right, 1),
        pixels.storage_offset(),
    )
    vertical = pixels.new_empty(lines.shape)
    evaluate(lines, vertical)
    # Then the columns of each patch; neighboring patches share two columns.
    point, row, phase, right, _ = vertical.stride()
    patches = vertical.as_strided(
        (side, side, rows, columns, stride, stride, channels),
        (stride * right, point, row, step * right, phase, right, 1),
    )
    evaluate(patches, spectra.view(side, side, rows, columns, stride, stride, channels).transpose(0, 1))


def _transform_outputs(products: Tensor, outputs: Tensor, bias: Tensor | None) -> None:
    """Compute the outputs (rows, 4, columns, 4, K) of tiles from their products (n, n, tiles, K)."""
    rows, _, columns, _, channels = outputs.shape
    side = len(products)
    interpolate = _interpolate_outputs_3 if side == 6 else _interpolate_outputs_2
    vertical = products.new_empty((_TILE, side, rows, columns, channels))
    interpolate(products.unflatten(2, (rows, columns)), vertical)
    interpolate(vertical.transpose(0, 1).transpose(1, 2), outputs.permute(3, 0, 1, 2, 4))
    if bias is not None:
        outputs += bias


def _evaluate_inputs_3(d: Tensor, out: Tensor) -> None:
    """Write the values of six inputs d (6, ...) at 0, 1, -1, 2, -2 and infinity to out (6, ...)."""
    even, odd = torch.empty_like(out[0]), torch.empty_like(out[0])
    torch.add(d[4], d[2], alpha=-5, out=out[0]).add_(d[0], alpha=4)
    torch.add(d[4], d[2], alpha=-4, out=even)
    torch.add(d[3], d[1], alpha=-4, out=odd)
    torch.add(even, odd, out=out[1])
    torch.sub(even, odd, out=out[2])
    torch.sub(d[4], d[2], out=even)
    torch.sub(d[3], d[1], out=odd)
    torch.add(even, odd, alpha=2, out=out[3])
    torch.sub(even, odd, alpha=2, out=out[4])
    torch.add(d[5], d[3], alpha=-5, out=out[5]).add_(d[1], alpha=4)


def _interpolate_outputs_3(m: Tensor, out: Tensor) -> None:
    """Write the four outputs (4, ...) of products (6, ...) at the points of three taps."""
    near, far = torch.empty_like(out[0]), torch.empty_like(out[0])
    torch.add(m[1], m[2], out=near)
    torch.add(m[3], m[4], out=far)
    torch.add(m[0], near, out=out[0]).add_(far)
    torch.add(near, far, alpha=4, out=out[2])
    torch.sub(m[1], m[2], out=near)
    torch.sub(m[3], m[4], out=far)
    torch.add(near, far, alpha=2, out=out[1])
    torch.add(near, far, alpha=8, out=out[3]).add_(m[5])


def _evaluate_inputs_2(d: Tensor, out: Tensor) -> None:
    """Write the values of five inputs d (5, ...) at 0, 1, -1, 2 and infinity to out (5, ...)."""
    torch.sub(d[3], d[1], out=out[3])
    torch.sub(out[3], d[2], alpha=2, out=out[0]).add_(d[0], alpha=2)
    torch.sub(d[3], d[2], out=out[1]).sub_(d[1], alpha=2)
    torch.sub(d[3], d[2], alpha=3, out=out[2]).add_(d[1], alpha=2)
    torch.sub(d[4], d[2], out=out[4]).sub_(out[3], alpha=2)


def _interpolate_outputs_2(m: Tensor, out: Tensor) -> None:
    """Write the four outputs (4, ...) of products (5, ...) at the points of two taps."""
    torch.add(m[1], m[2], out=out[2])
    torch.add(m[0], out[2], out=out[0]).add_(m[3])
    out[2].add_(m[3], alpha=4)
    torch.sub(m[1], m[2], out=out[3])
    torch.add(out[3], m[3], alpha=2, out=out[1])
    out[3].add_(m[3], alpha=8).add_(m[4])
