"""The compiled intersections of ``mask_intersections.cpp``."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from solo_infer.ops.native.library import KernelLibrary


class _Masks(ctypes.Structure):
    """Packed masks, and where their intersections are written; see ``mask_intersections.cpp``."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("packed", "labels", "intersections")),
        *((name, ctypes.c_int64) for name in ("count", "bytes")),
    ]


def same_label_intersections(library: KernelLibrary, packed: Tensor, labels: Tensor) -> Tensor:
    """Return the common pixels (P, P) float32 of masks, 0 for different labels, in the threads of torch.

    Args:
        library: Library of the kernel.
        packed: (P, B) uint8.
        labels: (P,) int64.
    """
    count = len(labels)
    packed, labels = packed.contiguous(), labels.contiguous()
    intersections = torch.zeros((count, count), dtype=torch.float32, device="cpu")
    pointers = (tensor.data_ptr() for tensor in (packed, labels, intersections))
    library.functions.count_intersections(
        ctypes.byref(_Masks(*pointers, count, packed.shape[1])),
        (ctypes.c_int64 * (2 * count))(),
        ctypes.c_uint32(max(min(torch.get_num_threads(), count), 1)),
        ctypes.c_void_p(library.parallel),
    )
    return intersections
