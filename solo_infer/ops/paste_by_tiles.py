"""Mask pasting in operations of torch on the CPU; see ``paste_masks``.

A row of a resize matrix has two or three nonzero entries, so the masks are cut into tiles, each of which is
a product of small parts of the matrices. Only the tiles that contain a part of the outline of a mask are
computed.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from solo_infer.ops import packed_masks
from solo_infer.ops.resize_matrix import input_windows, resize_matrix
from solo_infer.runtime.neutral_state import neutral_state

_CHUNK_MASKS = 256  # masks whose tiles are chosen at a time on the CPU
# Bytes of the float32 pixels of tiles that are computed at a time: they stay in the cache.
_TILES_BYTES = 3 << 20
# Least output rows and columns of a tile (the latter a multiple of 8), and about its least inputs on a side.
# Smaller tiles contain fewer pixels that are not near an outline, larger ones are computed more efficiently.
_TILE_ROWS, _TILE_COLUMNS = 16, 32
_TILE_INPUTS = 4

Size = tuple[int, int]  # (height, width) in pixels


def paste_by_tiles(
    soft: Tensor, padded: Size, resized: Size, original: Size, threshold: float
) -> tuple[Tensor, Tensor]:
    """Return packed masks and boxes, computed tile by tile; the arguments are those of ``paste_masks``.

    An output pixel is a weighted mean of inputs. A tile is inside the mask if all of its inputs are above the
    threshold, and outside of it if none are; only the other tiles are computed.
    """
    rows = _tiles(soft.shape[1], padded[0], resized[0], original[0], _TILE_ROWS, multiple=1)
    columns = _tiles(soft.shape[2], padded[1], resized[1], original[1], _TILE_COLUMNS, multiple=8)
    canvas = _Canvas(len(soft), original, rows.length, columns.length)
    for start in range(0, len(soft), _CHUNK_MASKS):
        masks = soft[start : start + _CHUNK_MASKS]
        any_above, all_above = _inputs_above(packed_masks.pack(masks > threshold), rows, columns)
        canvas.fill(start, all_above)
        for tiles in torch.nonzero(any_above & ~all_above).split(_tiles_at_once(rows, columns)):
            mask, row, column = tiles.unbind(dim=1)
            scores = _tile_scores(masks, tiles, rows, columns)
            canvas.write(mask + start, row, column, packed_masks.pack(scores > threshold))
    return canvas.packed, canvas.boxes()


class _Canvas:
    """Packed masks at the size of an image, written tile by tile. Tiles may extend beyond the image.

    Args:
        count: Number of masks K.
        size: Height and width of the image in pixels.
        rows: Rows of a tile.
        columns: Columns of a tile, a multiple of 8.

    Attributes:
        packed: (K, height, ceil(width / 8)) uint8.
    """

    def __init__(self, count: int, size: Size, rows: int, columns: int) -> None:
        # NumPy's zeros take memory where something is written: a few pages for small objects.
        self.packed = torch.from_numpy(np.zeros((count, size[0], (size[1] + 7) // 8), np.uint8))
        self._tile = torch.tensor([columns, rows], dtype=torch.int64, device="cpu")  # x, y
        self._image = torch.tensor([size[1], size[0]], dtype=torch.int64, device="cpu")
        self._row_parts = _parts(size[0], rows)
        self._column_parts = _parts(self.packed.shape[2], columns // 8)
        self._last_byte = (0xFF << -size[1] % 8) & 0xFF  # without the bits after the last pixel
        self._first = torch.full((count, 2), torch.inf, dtype=torch.float32, device="cpu")  # x, y
        self._end = torch.zeros((count, 2), dtype=torch.float32, device="cpu")

    def fill(self, start: int, is_inside: Tensor) -> None:
        """Set all pixels of some tiles of adjacent masks; to be called before ``write``.

        Args:
            start: The first of the masks.
            is_inside: (k, rows of tiles, columns of tiles) bool.
        """
        # Whole rows of tiles are written at a time: the other tiles of the row are still empty.
        mask, row = torch.nonzero(is_inside.any(dim=2), as_tuple=True)
        bits = is_inside[mask, row].to(torch.uint8).neg_().repeat_interleave(int(self._tile[0]) // 8, dim=1)
        bits = bits[:, : self.packed.shape[2]]
        bits[:, -1] &= self._last_byte
        for first, count, height in self._row_parts:
            chosen = torch.nonzero((row >= first) & (row < first + count)).flatten()
            part = self.packed.narrow(1, first * int(self._tile[1]), count * height)
            part = part.unflatten(1, (count, height))
            part[mask[chosen] + start, row[chosen] - first] = bits[chosen, None]
        mask, row, column = torch.nonzero(is_inside, as_tuple=True)
        corners = torch.stack([column, row], dim=1) * self._tile
        self._extend(mask + start, corners, torch.minimum(corners + self._tile, self._image))

    def write(self, mask: Tensor, row: Tensor, column: Tensor, bits: Tensor) -> None:
        """Write some tiles.

        Args:
            mask: (n,) int64 masks.
            row: (n,) int64 rows of tiles.
            column: (n,) int64 columns of tiles.
            bits: (n, rows, columns / 8) uint8, packed; 0 beyond the image.
        """
        rows, width = bits.shape[1:]
        for first_row, row_count, part_rows in self._row_parts:
            in_rows = (row >= first_row) & (row < first_row + row_count)
            for first_column, column_count, part_width in self._column_parts:
                in_columns = (column >= first_column) & (column < first_column + column_count)
                chosen = torch.nonzero(in_rows & in_columns).flatten()
                part = self.packed.narrow(1, first_row * rows, row_count * part_rows)
                part = part.narrow(2, first_column * width, column_count * part_width)
                part = part.unflatten(2, (column_count, part_width)).unflatten(1, (row_count, part_rows))
                tile_rows, tile_columns = row[chosen] - first_row, column[chosen] - first_column
                part[mask[chosen], tile_rows, :, tile_columns] = bits[chosen, :part_rows, :part_width]
        boxes = packed_masks.mask_boxes(bits, int(self._tile[0]))
        filled = torch.nonzero(boxes[:, 2]).flatten()
        corners = (torch.stack([column, row], dim=1) * self._tile)[filled]
        self._extend(mask[filled], corners + boxes[filled, :2], corners + boxes[filled, 2:])

    def _extend(self, mask: Tensor, first: Tensor, end: Tensor) -> None:
        """Extend the boxes of masks (n,) to first and end pixels (n, 2) x y, exclusive ends."""
        owners = mask[:, None].expand(-1, 2)
        self._first.scatter_reduce_(0, owners, first.float(), "amin")
        self._end.scatter_reduce_(0, owners, end.float(), "amax")

    def boxes(self) -> Tensor:
        """Return the boxes (K, 4) float32 x1 y1 x2 y2 of the masks, zeros for empty ones."""
        return torch.cat([self._first.minimum(self._end), self._end], dim=1)


def _parts(size: int, length: int) -> list[tuple[int, int, int]]:
    """Cut a side into tiles, and return first tile, number and length of the whole and of the cut tiles."""
    whole, rest = divmod(size, length)
    return [part for part in ((0, whole, length), (whole, 1, rest)) if part[1] * part[2]]


class _Tiles(NamedTuple):
    """Consecutive outputs of a resize along one side, cut into tiles of equal length."""

    length: int  # outputs of a tile; the last one may extend beyond the image
    first: Tensor  # (tiles,) int64, first input of each tile
    weights: Tensor  # (tiles, length, inputs) float32 of the inputs from the first one; 0 beyond the image
    covers: Tensor  # (padded soft side, tiles) float32, 1 for the inputs of a tile


@lru_cache(maxsize=32)
@neutral_state()
def _tiles(soft: int, padded: int, resized: int, original: int, least: int, multiple: int) -> _Tiles:
    """Return the tiles of one side of the masks.

    Args:
        soft: Length of the side of the soft masks.
        padded: Length of the side of the network input.
        resized: Length of the part of the network input that the image fills.
        original: Length of the side of the image.
        least: Least length of a tile.
        multiple: Number that the length of a tile is a multiple of.
    """
    length = max(least, _TILE_INPUTS * original // soft // multiple * multiple)
    matrix = F.pad(resize_matrix(soft, padded, resized, original), (0, 0, 0, -original % length))
    first, weights = input_windows(matrix.unflatten(0, (-1, length)))
    index = first[:, None] + torch.arange(weights.shape[2], dtype=torch.int64, device="cpu")
    covers = torch.zeros((len(first), soft + -soft % 8), dtype=torch.float32, device="cpu")
    return _Tiles(length, first, weights, covers.scatter_(1, index, 1.0).T.contiguous())


def _inputs_above(above: Tensor, rows: _Tiles, columns: _Tiles) -> tuple[Tensor, Tensor]:
    """Return whether any and whether all inputs of each tile are above the threshold, (K, r, c) bool.

    Args:
        above: (K, h, ceil(w / 8)) uint8, packed inputs above the threshold.
        rows: Tiles of the r rows.
        columns: Tiles of the c columns.
    """
    any_in_rows = all_in_rows = above[:, rows.first]
    for offset in range(1, rows.weights.shape[2]):
        row = above[:, rows.first + offset]
        any_in_rows, all_in_rows = any_in_rows | row, all_in_rows & row
    counts = packed_masks.unpack_float(torch.stack([any_in_rows, all_in_rows])) @ columns.covers
    return counts[0] > 0, counts[1] == columns.weights.shape[2]


def _tiles_at_once(rows: _Tiles, columns: _Tiles) -> int:
    return max(_TILES_BYTES // (4 * rows.length * columns.length), 1)


def _tile_scores(soft: Tensor, tiles: Tensor, rows: _Tiles, columns: _Tiles) -> Tensor:
    """Return the scores (n, rows, columns) of tiles (n, 3) int64: masks, rows and columns of tiles."""
    windows = soft.unfold(1, rows.weights.shape[2], 1).unfold(2, columns.weights.shape[2], 1)
    mask, row, column = tiles.unbind(dim=1)
    inputs = windows[mask, rows.first[row], columns.first[column]]
    return rows.weights[row] @ inputs @ columns.weights[column].mT
