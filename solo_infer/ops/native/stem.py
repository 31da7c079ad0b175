"""The compiled stem of ResNets of ``stem.cpp``."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from solo_infer.ops.native.library import KernelLibrary
from solo_infer.runtime import kept_memory

# Rows of the output that a thread computes at a time. Each part begins with one more row of the convolution;
# more parts than threads let these end at the same time.
_PARTS_PER_THREAD, _MIN_ROWS = 4, 8


class _Stem(ctypes.Structure):
    """The stem of ``count`` images of height x width pixels."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("pixels", "weight", "bias", "outputs")),
        *((name, ctypes.c_int64) for name in ("count", "height", "width", "channels", "out_channels")),
    ]


def run_stem(library: KernelLibrary, pixels: Tensor, weight: Tensor, bias: Tensor, outputs: Tensor) -> None:
    """Compute the stem of images, in the threads of torch.

    The result does not depend on the number of threads.

    Args:
        library: Library of the kernel.
        pixels: (N, H, W, C) float32, contiguous, not empty.
        weight: (1, panels, 49 * C, block_columns), packed by ``KernelLibrary.pack`` from (1, 7 * 7 * C, K).
        bias: (panels * block_columns,) float32, contiguous.
        outputs: (N, ceil(H / 4), ceil(W / 4), K) float32, contiguous.
    """
    tensors = (pixels, weight, bias, outputs)
    stem = _Stem(*(tensor.data_ptr() for tensor in tensors), *pixels.shape, outputs.shape[3])
    rows = outputs.shape[1]
    threads = torch.get_num_threads()
    rows_at_a_time = max(-(-len(pixels) * rows // (threads * _PARTS_PER_THREAD)), _MIN_ROWS)
    threads = min(threads, len(pixels) * -(-rows // rows_at_a_time))
    stem_memory = library.functions.stem_memory
    stem_memory.restype = ctypes.c_int64
    memory = kept_memory.empty([threads * stem_memory(ctypes.byref(stem))])
    library.functions.run_stem(
        ctypes.byref(stem),
        ctypes.c_int64(rows_at_a_time),
        ctypes.c_void_p(memory.data_ptr()),
        ctypes.c_uint32(threads),
        ctypes.c_void_p(library.parallel),
    )
