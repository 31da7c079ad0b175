"""Statistics of SOLOv2's masks, which are products of kernels and mask features."""

from __future__ import annotations

import torch
from torch import Tensor

from solo_infer.ops.dispatch import is_compiling
from solo_infer.ops.mask_statistics import MaskStatistics, mask_statistics
from solo_infer.ops.matrix_product import matrix_product
from solo_infer.ops.native import kernel_masks
from solo_infer.ops.native.library import kernel_library

# Bytes of float32 scores of all masks of a band of pixels on the CPU, and the least pixels of a band.
_BAND_BYTES = 5 << 19
_MIN_BAND = 2048


def kernel_mask_statistics(kernels: Tensor, features: Tensor, threshold: float) -> MaskStatistics:
    """Return the statistics (K,) of masks on the CPU without holding their scores in memory.

    A compiled kernel, where the package has one, sums up the scores of a few pixels at a time. Elsewhere all
    masks are computed in bands of pixels whose scores stay in the cache.

    Args:
        kernels: (K, E).
        features: (E, pixels).
        threshold: Pixels with a greater score are inside, at least 0.
    """
    library = kernel_library()
    is_suitable = kernels.dtype == features.dtype == torch.float32 and kernels.numel() and features.numel()
    if library is not None and is_suitable and not torch.is_grad_enabled() and not is_compiling():
        pixels = features.T.contiguous()
        return MaskStatistics(*kernel_masks.kernel_mask_statistics(library, kernels, pixels, threshold))
    length = max(_BAND_BYTES // (4 * max(len(kernels), 1)), _MIN_BAND) // 8 * 8
    bands = (kernel_mask_scores(kernels, band) for band in features.split(length, dim=1))
    parts = [mask_statistics(scores[:, None], threshold) for scores in bands]
    areas, sums, packed = zip(*parts, strict=True)
    return MaskStatistics(
        torch.stack(areas).sum(dim=0), torch.stack(sums).sum(dim=0), torch.cat(packed, dim=1)
    )


def kernel_mask_scores(kernels: Tensor, features: Tensor) -> Tensor:
    """Return the mask scores (K, pixels), float32 in 0..1, of kernels (K, E) at features (E, pixels)."""
    return matrix_product(kernels, features).float().sigmoid_()
