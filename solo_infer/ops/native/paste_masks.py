"""The compiled mask pasting of ``paste_masks.cpp``."""

from __future__ import annotations

import ctypes
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from solo_infer.ops.native.library import KernelLibrary
from solo_infer.ops.resize_matrix import input_windows, resize_matrix
from solo_infer.runtime import kept_memory
from solo_infer.runtime.neutral_state import neutral_state

_LANES = 16  # float32 values of the widest vectors

Size = tuple[int, int]  # (height, width) in pixels


class _Side(ctypes.Structure):
    """A linear resize along one side; see ``paste_masks.cpp``."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("first", "weights")),
        *((name, ctypes.c_int64) for name in ("inputs", "outputs", "taps", "step")),
    ]


class _Masks(ctypes.Structure):
    """Soft masks and where their packed masks and boxes are written."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("soft", "packed", "boxes")),
        *((name, _Side) for name in ("rows", "columns")),
        *((name, ctypes.c_int64) for name in ("count",)),
        ("threshold", ctypes.c_float),
    ]


class _Taps(NamedTuple):
    """The inputs of each output along one side, with outputs of weight 0 at the end."""

    first: Tensor  # (outputs,) int32, the first input
    weights: Tensor  # (taps, outputs) float32 of the inputs from the first one on


def paste_masks(
    library: KernelLibrary, soft: Tensor, padded: Size, resized: Size, original: Size, threshold: float
) -> tuple[Tensor, Tensor]:
    """Return packed masks and boxes, computed in the threads of torch; see ``ops.paste_masks``."""
    count, height, width = soft.shape
    soft = soft.contiguous()
    rows = _taps(height, padded[0], resized[0], original[0])
    columns = _taps(width, padded[1], resized[1], original[1])
    # NumPy's zeros take memory where something is written: a few pages for small objects.
    packed = torch.from_numpy(np.zeros((count, original[0], (original[1] + 7) // 8), np.uint8))
    boxes = torch.zeros((count, 4), dtype=torch.float32, device="cpu")
    masks = _Masks(
        *(tensor.data_ptr() for tensor in (soft, packed, boxes)),
        _side(rows, height, original[0]),
        _side(columns, width, original[1]),
        count,
        threshold,
    )
    threads = max(min(torch.get_num_threads(), count), 1)
    memory = kept_memory.empty((threads, len(rows.weights) + 1, len(columns.first)))
    library.functions.paste_masks(
        ctypes.byref(masks),
        ctypes.c_void_p(memory.data_ptr()),
        ctypes.c_int64(memory[0].numel()),
        ctypes.c_uint32(threads),
        ctypes.c_void_p(library.parallel),
    )
    return packed, boxes


def _side(taps: _Taps, inputs: int, outputs: int) -> _Side:
    pointers = taps.first.data_ptr(), taps.weights.data_ptr()
    return _Side(*pointers, inputs, outputs, *taps.weights.shape)


@lru_cache(maxsize=32)
@neutral_state()
def _taps(soft: int, padded: int, resized: int, original: int) -> _Taps:
    """Return the taps along one side; see ``resize_matrix``."""
    first, weights = input_windows(resize_matrix(soft, padded, resized, original)[:, None])
    padding = 0, -original % _LANES
    return _Taps(F.pad(first.int(), padding), F.pad(weights[:, 0].T, padding).contiguous())
