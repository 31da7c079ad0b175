"""The compiled GroupNorm and ReLU of ``group_norm.cpp``."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from solo_infer.ops.native.library import KernelLibrary

_TASK_ROWS = 256  # kTaskRows of group_norm.cpp


class _GroupNorm(ctypes.Structure):
    """A normalization of ``count`` images of ``rows`` pixels."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("pixels", "weight", "bias")),
        *((name, ctypes.c_int64) for name in ("count", "rows", "channels", "groups")),
        ("epsilon", ctypes.c_double),
        ("is_bfloat16", ctypes.c_int32),
    ]


def group_norm_relu_(
    library: KernelLibrary, pixels: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float
) -> None:
    """Replace pixels by relu(group_norm(pixels)), in the threads of torch.

    The result does not depend on the number of threads.

    Args:
        library: Library of the kernel.
        pixels: (N, H, W, C) float32 or bfloat16, contiguous, not empty.
        groups: Number of groups of channels.
        weight: (C,) float32, contiguous.
        bias: (C,) float32, contiguous.
        eps: Constant that is added to the variance.
    """
    count, height, width, channels = pixels.shape
    rows = height * width
    pointers = pixels.data_ptr(), weight.data_ptr(), bias.data_ptr()
    norm = _GroupNorm(*pointers, count, rows, channels, groups, eps, pixels.dtype == torch.bfloat16)
    tasks = -(-rows // _TASK_ROWS)
    statistics = (ctypes.c_double * (count * tasks * 2 * channels))()
    coefficients = torch.empty((count, 2, channels), dtype=torch.float32, device="cpu")
    library.functions.group_norm_relu(
        ctypes.byref(norm),
        statistics,
        ctypes.c_void_p(coefficients.data_ptr()),
        ctypes.c_uint32(min(torch.get_num_threads(), count * tasks)),
        ctypes.c_void_p(library.parallel),
    )
