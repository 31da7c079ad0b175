"""The compiled Winograd convolutions of ``winograd.cpp``."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from solo_infer.ops.native.library import KernelLibrary
from solo_infer.ops.native.streams import can_stream
from solo_infer.runtime import kept_memory

# Tiles that are computed at a time: few enough for the cache. More if a point has many weights, which would
# otherwise take longer to fetch than to multiply.
_MAX_TILES, _MAX_TILES_OF_WIDE_LAYERS = 28, 56
_MANY_WEIGHTS = 2**17
MAX_VALUES = 2**24  # of intermediate results: 64 MiB
_TILE = 4  # size of a tile of outputs; kTile of winograd.cpp
_CACHE_LINE = 16  # float32 values; kCacheLine of vectors.h


class _Map(ctypes.Structure):
    """Images of one size, and where their outputs are written.

    Steps are those from one image, row or column to the next in values; channels are adjacent.
    ``above`` is the number of rows of padding.
    """

    _fields_ = [
        ("pixels", ctypes.c_void_p),
        ("outputs", ctypes.c_void_p),
        *(
            (name, ctypes.c_int64)
            for name in ("count", "height", "width", "out_height", "out_width", "above")
        ),
        *((name, ctypes.c_int64) for name in ("image_step", "row_step", "column_step")),
        *((name, ctypes.c_int64) for name in ("out_image_step", "out_row_step", "out_column_step")),
    ]


class _Layer(ctypes.Structure):
    """A convolution.

    ``taps`` is the number of weights along a side of a filter; ``bias`` may be null; ``adds`` is whether
    results are added to the values of the outputs; ``streams`` whether these are not read into the caches
    before they are written; negative results are multiplied by ``negative_slope``.
    """

    _fields_ = [
        ("weight", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("channels", ctypes.c_int64),
        ("out_channels", ctypes.c_int64),
        *((name, ctypes.c_int32) for name in ("stride", "taps", "adds", "streams", "is_bfloat16")),
        ("negative_slope", ctypes.c_float),
    ]


def convolve(
    library: KernelLibrary,
    maps: Sequence[Tensor],
    outputs: Sequence[Tensor],
    weight: Tensor,
    bias: Tensor | None,
    *,
    taps: int,
    stride: int,
    above: int,
    adds: bool,
    negative_slope: float,
) -> None:
    """Convolve images in the threads of torch.

    Args:
        library: Library of the kernel.
        maps: (N, H, W, C) float32 or bfloat16 each, with adjacent channels.
        outputs: (N, H', W', K) of the same dtype each, with adjacent channels.
        weight: Result of ``transform_weight``.
        bias: (K,) float32, contiguous.
        taps: 3 for a 3x3 convolution, 4 for a 4x4 one of stride 2.
        stride: 1 or 2.
        above: Rows of padding above.
        adds: Whether results are added to the values of the outputs.
        negative_slope: Factor of negative results: 0 for ReLU, 1 for no activation.
    """
    structures = (_Map * len(maps))(*map(partial(_map, above), maps, outputs))
    layer = _Layer(
        weight.data_ptr(),
        None if bias is None else bias.data_ptr(),
        maps[0].shape[3],
        outputs[0].shape[3],
        stride,
        taps,
        adds,
        not adds and can_stream(outputs),
        maps[0].dtype == torch.bfloat16,
        negative_slope,
    )
    tiles = sum(len(y) * -(-y.shape[1] // _TILE) * -(-y.shape[2] // _TILE) for y in outputs)
    points = (_TILE + 2 if stride == 1 else _TILE + 1) ** 2
    depth = stride**2 * layer.channels
    width = -(-layer.out_channels // library.block_columns) * library.block_columns
    size_of_tile = points * (depth + width + _CACHE_LINE)
    threads = library.threads(tiles)
    extra = 2 * points * _CACHE_LINE
    # The same number of parts for each thread, which may be a little larger if they are few.
    max_tiles = _MAX_TILES if depth * width < _MANY_WEIGHTS else _MAX_TILES_OF_WIDE_LAYERS
    parts = max(round(tiles / (threads * max_tiles)), 1) * threads
    tiles_at_a_time = max(min(-(-tiles // parts), (MAX_VALUES // threads - extra) // size_of_tile), 1)
    size = tiles_at_a_time * size_of_tile + extra
    function = library.functions.convolve_winograd
    pointer, integer = ctypes.c_void_p, ctypes.c_int64
    memory = kept_memory.empty([threads * size])
    function(
        structures,
        ctypes.byref(layer),
        integer(tiles),
        integer(tiles_at_a_time),
        pointer(memory.data_ptr()),
        integer(size),
        ctypes.c_uint32(threads),
        pointer(library.parallel),
    )


def _map(above: int, x: Tensor, y: Tensor) -> _Map:
    pointers = x.data_ptr(), y.data_ptr()
    return _Map(*pointers, *x.shape[:3], *y.shape[1:3], above, *x.stride()[:3], *y.stride()[:3])
