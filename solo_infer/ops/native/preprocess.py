"""The compiled resize and normalization of ``preprocess.cpp``."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from solo_infer.ops.cv2_resize import tables
from solo_infer.ops.native.library import KernelLibrary
from solo_infer.runtime import kept_memory
from solo_infer.runtime.neutral_state import neutral_state

_TASK_ROWS = 32  # of the result, which a thread computes at a time

Size = tuple[int, int]  # (height, width) in pixels


class _Image(ctypes.Structure):
    """An image, and where the result is written; see ``preprocess.cpp``."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("pixels", "output", "columns", "rows", "mean", "std")),
        *((name, ctypes.c_int64) for name in ("height", "width", "row_step", "output_step")),
    ]


def resize_and_normalize(
    library: KernelLibrary, image: Tensor, output: Tensor, mean: Sequence[float], std: Sequence[float]
) -> None:
    """Write an image at the size of the output, minus the mean and divided by the deviation.

    Args:
        library: Library of the kernel.
        image: (H, W, 3) uint8.
        output: (h, w, 3) float32, with adjacent pixels in a row.
        mean: Mean of each channel, in 0..255.
        std: Standard deviation of each channel, in 0..255.
    """
    image = image.contiguous()
    height, width = output.shape[:2]
    columns, rows = _tables((image.shape[0], image.shape[1]), (height, width))
    mean_row, std_row = (
        torch.tensor(values, dtype=torch.float32, device="cpu").repeat(width) for values in (mean, std)
    )
    pointers = (tensor.data_ptr() for tensor in (image, output, columns, rows, mean_row, std_row))
    threads = max(min(torch.get_num_threads(), -(-height // _TASK_ROWS)), 1)
    memory = kept_memory.empty((threads, 2, 3 * width), torch.int32)
    library.functions.resize_image(
        ctypes.byref(_Image(*pointers, height, width, image.stride(0), output.stride(0))),
        ctypes.c_int64(_TASK_ROWS),
        ctypes.c_void_p(memory.data_ptr()),
        ctypes.c_int64(3 * width),
        ctypes.c_uint32(threads),
        ctypes.c_void_p(library.parallel),
    )


@lru_cache(maxsize=32)
@neutral_state()
def _tables(old: Size, new: Size) -> tuple[Tensor, Tensor]:
    return tables(old, new)
