"""The compiled statistics of masks of ``mask_statistics.cpp``."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from solo_infer.ops.native.library import KernelLibrary


class _Masks(ctypes.Structure):
    """Scores of ``count`` masks of ``pixels`` pixels, and where their statistics are written."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("scores", "areas", "sums", "packed")),
        *((name, ctypes.c_int64) for name in ("count", "pixels")),
        ("threshold", ctypes.c_float),
    ]


def mask_statistics(
    library: KernelLibrary, scores: Tensor, threshold: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return areas (K,), sums of the scores inside (K,) and packed masks (K, ceil(pixels / 8)).

    The result does not depend on the number of threads.

    Args:
        library: Library of the kernel.
        scores: (K, pixels) float32, contiguous.
        threshold: Pixels with a greater score are inside, at least 0.
    """
    count, pixels = scores.shape
    areas, sums = torch.empty((2, count), dtype=torch.float32, device="cpu")
    packed = torch.empty((count, (pixels + 7) // 8), dtype=torch.uint8, device="cpu")
    pointers = (tensor.data_ptr() for tensor in (scores, areas, sums, packed))
    library.functions.add_masks(
        ctypes.byref(_Masks(*pointers, count, pixels, threshold)),
        ctypes.c_uint32(max(min(torch.get_num_threads(), count), 1)),
        ctypes.c_void_p(library.parallel),
    )
    return areas, sums, packed
