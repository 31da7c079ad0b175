"""Convolutions with fewer multiplications, by the method of Winograd, Cook and Toom.

Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (arXiv 1509.09308). A tile of 4 x 4
outputs is computed from the values of polynomials at a few points: as many matrix products over all tiles as
a patch of inputs has pixels. With 3x3 taps that is 2.25 multiplications for an output instead of 9. Its
rounding error in float32 is about four times that of a direct convolution.

Everything is one-dimensional work done along the rows, then along the columns, on slices that stay in a
processor's cache: additions before and after, products between.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

_TILE = 4  # outputs along a side of a tile
# Tiles that are transformed together: enough for fast matrix products, few enough for the cache.
_TILES_AT_ONCE = 240
_POINTS = {3: (0, 1, -1, 2, -2), 2: (0, 1, -1, 2)}  # by the number of taps; infinity is one more


def _weight_matrix(taps: int) -> Tensor:
    """Return the values of a filter at the points, (points, taps), scaled as the other steps expect."""
    at = np.array(_POINTS[taps], dtype=np.float64)
    scales = [np.prod(point - np.delete(at, index)) for index, point in enumerate(at)]
    values = at[:, None] ** np.arange(taps) / np.array(scales)[:, None]
    return torch.from_numpy(np.vstack([values, np.eye(taps)[-1:]]).astype(np.float32))


def _both_sides(taps: int) -> Tensor:
    matrix = _weight_matrix(taps)
    return torch.kron(matrix, matrix)  # (n * n, taps * taps), n points


def transform_weight(weight: Tensor) -> Tensor:
    """Return the weight (K, C, 3, 3) of a convolution as ``convolve`` takes it, (36, C, K) float32."""
    taps = weight.float().permute(2, 3, 1, 0)
    return (_both_sides(3) @ taps.reshape(9, -1)).view(36, *taps.shape[2:])


def transform_halving_weight(weight: Tensor) -> Tensor:
    """Return the weight (K, C, 4, 4) of a convolution as ``convolve_halving`` takes it, (25, 4 * C, K)."""
    outputs, channels = weight.shape[:2]
    # A step of two sees each of the four phases of the image through 2x2 taps.
    phases = weight.float().view(outputs, channels, 2, 2, 2, 2).permute(2, 4, 3, 5, 1, 0)
    taps = phases.reshape(4, 4 * channels * outputs)
    return (_both_sides(2) @ taps).view(25, 4 * channels, outputs)


def convolve(maps: Sequence[Tensor], transformed: Tensor, bias: Tensor | None = None) -> list[Tensor]:
    """Return the 3x3 convolution of maps of any sizes with stride 1 and a padding of 1.

    Args:
        maps: Each (N, C, H, W) float32 on the CPU, best in channels_last.
        transformed: From ``transform_weight``.
        bias: (K,) float32.

    Returns:
        Each (N, K, H, W) float32 in channels_last.
    """
    return _convolve(maps, transformed, bias, stride=1, above=1, below=1)


def convolve_halving(
    x: Tensor, transformed: Tensor, bias: Tensor | None = None, above: int = 1, below: int = 1
) -> Tensor:
    """Return the 4x4 convolution of x with stride 2 and a padding of 1.

    Args:
        x: (N, C, H, W) float32 on the CPU, best in channels_last; W and H + above + below even.
        transformed: From ``transform_halving_weight``.
        bias: (K,) float32.
        above: Rows of padding above.
        below: Rows of padding below.

    Returns:
        (N, K, (H + above + below) / 2 - 1, W / 2) float32 in channels_last.
    """
    return _convolve([x], transformed, bias, stride=2, above=above, below=below)[0]


class _Part(NamedTuple):
    """Some rows of tiles of one image."""

    pixels: Tensor  # (h, w, C) from the first row of the first tile, with their padding
    outputs: Tensor  # (rows, 4, columns, 4, K)

    @property
    def tiles(self) -> int:
        return self.outputs.shape[0] * self.outputs.shape[2]


def _convolve(
    maps: Sequence[Tensor], transformed: Tensor, bias: Tensor | None, stride: int, above: int, below: int
) -> list[Tensor]:
    parts, results = [], []
    for x in maps:
        height, width = (x.shape[2] + above + below - 2) // stride, x.shape[3] // stride
        rows, columns = -(-height // _TILE), -(-width // _TILE)
        bottom, right = (stride * _TILE * tiles + 2 for tiles in (rows, columns))
        sides = (1, right - 1 - x.shape[3], above, bottom - above - x.shape[2])
        padded = (
            F.pad(x.contiguous(memory_format=torch.channels_last), sides).permute(0, 2, 3, 1).contiguous()
        )
        out = x.new_empty((len(x), rows, _TILE, columns, _TILE, transformed.shape[2]))
        parts += list(_parts(padded, out, stride))
        flat = out.view(len(x), rows * _TILE, columns * _TILE, -1)
        results.append(flat[:, :height, :width].permute(0, 3, 1, 2))
    for group in _groups(parts):
        _convolve_tiles(group, transformed, bias, stride)
    return results


def _parts(padded: Tensor, out: Tensor, stride: int) -> Iterator[_Part]:
    """Cut images (N, h, w, C) and their outputs (N, rows, 4, columns, 4, K) into parts of a bounded size."""
    rows, columns = out.shape[1], out.shape[3]
    some = max(_TILES_AT_ONCE // columns, 1)
    for pixels, outputs in zip(padded, out, strict=True):
        for first in range(0, rows, some):
            yield _Part(pixels[first * _TILE * stride :], outputs[first : first + some])


def _groups(parts: list[_Part]) -> Iterator[list[_Part]]:
    """Yield parts that share their products: small maps together."""
    group: list[_Part] = []
    for part in parts:
        if group and sum(member.tiles for member in group) + part.tiles > _TILES_AT_ONCE:
            yield group
            group = []
        group.append(part)
    if group:
        yield group


def _convolve_tiles(group: list[_Part], transformed: Tensor, bias: Tensor | None, stride: int) -> None:
    side, channels = _TILE + 3 - stride, transformed.shape[1]
    counts = [part.tiles for part in group]
    spectra = transformed.new_empty((side, side, sum(counts), channels))
    for part, place in zip(group, spectra.split(counts, dim=2), strict=True):
        _analyze(part, place, stride)
    products = torch.bmm(spectra.flatten(0, 1), transformed)  # (n * n, tiles, K)
    for part, place in zip(group, products.unflatten(0, (side, side)).split(counts, dim=2), strict=True):
        _synthesize(place, part.outputs, bias)


def _analyze(part: _Part, spectra: Tensor, stride: int) -> None:
    """Compute the spectra (n, n, tiles, phases * C) of the patches of a part."""
    rows, columns = part.outputs.shape[0], part.outputs.shape[2]
    pixels, side, step = part.pixels, len(spectra), _TILE * stride
    width, channels = pixels.shape[1:]
    at_points = _at_points_of_3 if stride == 1 else _at_points_of_2
    # First the rows of each patch, for all columns at once; with a step of two, even and odd ones apart.
    down, right, _ = pixels.stride()
    lines = pixels.as_strided(
        (side, rows, stride, width, channels),
        (stride * down, step * down, down, right, 1),
        pixels.storage_offset(),
    )
    vertical = pixels.new_empty(lines.shape)
    at_points(lines, vertical)
    # Then the columns of each patch, of which neighbors share two.
    point, row, phase, right, _ = vertical.stride()
    patches = vertical.as_strided(
        (side, side, rows, columns, stride, stride, channels),
        (stride * right, point, row, step * right, phase, right, 1),
    )
    at_points(patches, spectra.view(side, side, rows, columns, stride, stride, channels).transpose(0, 1))


def _synthesize(products: Tensor, outputs: Tensor, bias: Tensor | None) -> None:
    """Compute the outputs (rows, 4, columns, 4, K) of the tiles of products (n, n, tiles, K)."""
    rows, _, columns, _, channels = outputs.shape
    side = len(products)
    values = _values_of_3 if side == 6 else _values_of_2
    vertical = products.new_empty((_TILE, side, rows, columns, channels))
    values(products.unflatten(2, (rows, columns)), vertical)
    values(vertical.transpose(0, 1).transpose(1, 2), outputs.permute(3, 0, 1, 2, 4))
    if bias is not None:
        outputs += bias


def _at_points_of_3(d: Tensor, out: Tensor) -> None:
    """Write the values at 0, 1, -1, 2, -2 and infinity of six inputs: d (6, ...) to out (6, ...)."""
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


def _values_of_3(m: Tensor, out: Tensor) -> None:
    """Write the four outputs (4, ...) that products (6, ...) at the points of three taps stand for."""
    near, far = torch.empty_like(out[0]), torch.empty_like(out[0])
    torch.add(m[1], m[2], out=near)
    torch.add(m[3], m[4], out=far)
    torch.add(m[0], near, out=out[0]).add_(far)
    torch.add(near, far, alpha=4, out=out[2])
    torch.sub(m[1], m[2], out=near)
    torch.sub(m[3], m[4], out=far)
    torch.add(near, far, alpha=2, out=out[1])
    torch.add(near, far, alpha=8, out=out[3]).add_(m[5])


def _at_points_of_2(d: Tensor, out: Tensor) -> None:
    """Write the values at 0, 1, -1, 2 and infinity of five inputs: d (5, ...) to out (5, ...)."""
    torch.sub(d[3], d[1], out=out[3])
    torch.sub(out[3], d[2], alpha=2, out=out[0]).add_(d[0], alpha=2)
    torch.sub(d[3], d[2], out=out[1]).sub_(d[1], alpha=2)
    torch.sub(d[3], d[2], alpha=3, out=out[2]).add_(d[1], alpha=2)
    torch.sub(d[4], d[2], out=out[4]).sub_(out[3], alpha=2)


def _values_of_2(m: Tensor, out: Tensor) -> None:
    """Write the four outputs (4, ...) that products (5, ...) at the points of two taps stand for."""
    torch.add(m[1], m[2], out=out[2])
    torch.add(m[0], out[2], out=out[0]).add_(m[3])
    out[2].add_(m[3], alpha=4)
    torch.sub(m[1], m[2], out=out[3])
    torch.add(out[3], m[3], alpha=2, out=out[1])
    out[3].add_(m[3], alpha=8).add_(m[4])
