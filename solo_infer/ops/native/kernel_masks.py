"""The compiled statistics of ``kernel_masks.cpp``."""

from __future__ import annotations

import ctypes
import math

import torch
from torch import Tensor

from solo_infer.ops.native.library import KernelLibrary

# Pixels whose scores are summed up in float32: a multiple of 8 and of the pixels that are computed at a time.
_TASK_PIXELS = 8 * 168
_MARGIN = 1e-3  # of logits, far above the rounding errors of their scores


class _KernelMasks(ctypes.Structure):
    """Mask features and kernels, and where the statistics are written; see ``kernel_masks.cpp``."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("features", "kernels", "areas", "sums", "packed")),
        *((name, ctypes.c_int64) for name in ("pixels", "channels", "masks", "task_pixels")),
        *((name, ctypes.c_float) for name in ("threshold", "least_logit")),
    ]


def kernel_mask_statistics(
    library: KernelLibrary, kernels: Tensor, features: Tensor, threshold: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the statistics of masks in the threads of torch, independent of their number.

    Args:
        library: Library of the kernel.
        kernels: (K, E) float32, K > 0.
        features: (pixels, E) float32, contiguous, not empty.
        threshold: Pixels with a greater score are inside.

    Returns:
        Areas (K,) float32, sums of the scores inside (K,) float32 and packed masks (K, ceil(pixels / 8)).
    """
    (pixels, channels), count = features.shape, len(kernels)
    weight = library.pack(kernels.T[None])
    tasks = -(-pixels // _TASK_PIXELS)
    totals = torch.zeros((2, tasks, weight.shape[1] * weight.shape[3]), dtype=torch.float32, device="cpu")
    packed = torch.zeros((count, -(-pixels // 8)), dtype=torch.uint8, device="cpu")
    masks = _KernelMasks(
        *(tensor.data_ptr() for tensor in (features, weight, *totals, packed)),
        pixels,
        channels,
        count,
        _TASK_PIXELS,
        threshold,
        _logit(threshold) - _MARGIN,
    )
    library.functions.add_kernel_masks(
        ctypes.byref(masks),
        ctypes.c_uint32(min(torch.get_num_threads(), tasks)),
        ctypes.c_void_p(library.parallel),
    )
    areas, sums = totals.sum(dim=1)[:, :count]
    return areas, sums, packed


def _logit(score: float) -> float:
    return math.log(score / (1 - score)) if 0 < score < 1 else math.copysign(math.inf, score - 0.5)
