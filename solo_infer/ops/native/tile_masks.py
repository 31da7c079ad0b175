"""The compiled masks of Tiny of ``tile_masks.cpp``, in pairs of a tile of pixels and a mask."""

from __future__ import annotations

import ctypes
from typing import NamedTuple

import torch
from torch import Tensor

from solo_infer.ops.native.library import KernelLibrary

TILE = 8  # pixels of a side of a tile; kTile of tile_masks.cpp
_COORDINATES = 6  # maps of coordinates; kCoordinates of tile_masks.cpp
_TASK_PAIRS, _TASK_TILES = 32, 256  # kTaskPairs and kTaskTiles of tile_masks.cpp


class Confinement(NamedTuple):
    """Fall of logits beyond the boxes of their masks.

    Beyond ``margin`` input pixels around a box, they fall by ``slope`` over the length of a side, or
    ``least_side``. ``reach`` sides farther, they are ``-limit``, to which all are clipped.
    """

    margin: float
    slope: float
    reach: float
    least_side: float
    limit: float


class _TileMasks(ctypes.Structure):
    """Pairs of a tile and a mask; ``stride`` and ``unit`` are input pixels."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("features", "weights", "boxes", "tiles", "masks", "logits")),
        *(
            (name, ctypes.c_int64)
            for name in ("pairs", "channels", "row_step", "column_step", "tile_columns")
        ),
        ("is_bfloat16", ctypes.c_int32),
        *(
            (name, ctypes.c_float)
            for name in ("stride", "unit", "margin", "slope", "reach", "least_side", "limit")
        ),
    ]


class _TileStatistics(ctypes.Structure):
    """Pairs, and the places of their statistics."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("logits", "tiles", "masks", "areas", "sums", "packed")),
        *((name, ctypes.c_int64) for name in ("pairs", "tiles_per_mask")),
        ("threshold", ctypes.c_float),
    ]


class _SoftMasks(ctypes.Structure):
    """Pairs, and the place of soft masks; ``positions`` are -1 for masks that are left out."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("logits", "tiles", "masks", "positions", "soft")),
        *((name, ctypes.c_int64) for name in ("pairs", "tile_rows", "tile_columns")),
        ("limit", ctypes.c_float),
    ]


def tile_logits(
    library: KernelLibrary,
    features: Tensor,
    weights: Tensor,
    boxes: Tensor,
    pairs: tuple[Tensor, Tensor],
    scales: tuple[float, float],
    confinement: Confinement,
) -> Tensor:
    """Return the mask logits (P, TILE, TILE) float32 of pairs of a tile and a mask.

    The result does not depend on the number of threads.

    Args:
        library: Library of the kernel.
        features: (h, w, C) float32 or bfloat16 with adjacent channels; h and w are multiples of ``TILE``.
        weights: (K, C + 6) float32, contiguous: weights of the features, and of 1, x, y, x^2, y^2 and xy.
        boxes: (K, 4) float32 x1 y1 x2 y2 in input pixels, contiguous.
        pairs: Tiles (P,), by row and column, ascending, and masks (P,), both int64 and contiguous.
        scales: Input pixels of one pixel of the features, and of one unit of the coordinates.
        confinement: How logits fall beyond the boxes.
    """
    tiles, masks = pairs
    channels, count = features.shape[2], len(tiles)
    logits = torch.empty((count, TILE, TILE), dtype=torch.float32, device="cpu")
    threads = _threads(count, _TASK_PAIRS)
    memory = torch.empty(threads * (channels + _COORDINATES) * TILE**2, dtype=torch.float32, device="cpu")
    layer = _TileMasks(
        *(tensor.data_ptr() for tensor in (features, weights, boxes, tiles, masks, logits)),
        count,
        channels,
        *features.stride()[:2],
        features.shape[1] // TILE,
        features.dtype == torch.bfloat16,
        *scales,
        *confinement,
    )
    library.functions.write_tile_logits(
        ctypes.byref(layer),
        ctypes.c_void_p(memory.data_ptr()),
        ctypes.c_uint32(threads),
        ctypes.c_void_p(library.parallel),
    )
    return logits


def tile_statistics(
    library: KernelLibrary,
    logits: Tensor,
    pairs: tuple[Tensor, Tensor],
    size: tuple[int, int],
    threshold: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return areas (K,), sums of the scores inside (K,) and masks (K, tiles * TILE) packed tile by tile.

    Args:
        library: Library of the kernel.
        logits: (P, TILE, TILE) float32, contiguous.
        pairs: Tiles (P,) and masks (P,), both int64 and contiguous.
        size: Numbers of masks, K, and of tiles.
        threshold: Pixels with a greater score are inside, at least 0.
    """
    tiles, masks = pairs
    areas, sums = torch.empty((2, len(tiles)), dtype=torch.float32, device="cpu")
    packed = torch.zeros((*size, TILE), dtype=torch.uint8, device="cpu")
    pointers = (tensor.data_ptr() for tensor in (logits, tiles, masks, areas, sums, packed))
    statistics = _TileStatistics(*pointers, len(tiles), size[1], threshold)
    library.functions.add_tiles(
        ctypes.byref(statistics),
        ctypes.c_uint32(_threads(len(tiles), _TASK_TILES)),
        ctypes.c_void_p(library.parallel),
    )
    areas, sums = (part.new_zeros(size[0]).index_add_(0, masks, part) for part in (areas, sums))
    return areas, sums, packed.flatten(1)


def soft_masks(
    library: KernelLibrary,
    logits: Tensor,
    pairs: tuple[Tensor, Tensor],
    positions: Tensor,
    size: tuple[int, int, int],
    limit: float,
) -> Tensor:
    """Return masks (M, rows * TILE, columns * TILE) in 0..1, linear in the logit, 0 where there is no tile.

    Args:
        library: Library of the kernel.
        logits: (P, TILE, TILE) float32, contiguous, from ``-limit`` to ``limit``.
        pairs: Tiles (P,) and masks (P,), both int64 and contiguous.
        positions: (K,) int64, where each mask is among the M ones; -1 for masks that are left out.
        size: M, and the numbers of rows and columns of tiles.
        limit: Greatest logit.
    """
    tiles, masks = pairs
    count, rows, columns = size
    soft = torch.zeros((count, rows * TILE, columns * TILE), dtype=torch.float32, device="cpu")
    pointers = (tensor.data_ptr() for tensor in (logits, tiles, masks, positions, soft))
    layer = _SoftMasks(*pointers, len(tiles), rows, columns, limit)
    library.functions.write_soft_tiles(
        ctypes.byref(layer),
        ctypes.c_uint32(_threads(len(tiles), _TASK_TILES)),
        ctypes.c_void_p(library.parallel),
    )
    return soft


def _threads(pairs: int, step: int) -> int:
    return max(min(torch.get_num_threads(), -(-pairs // step)), 1)
