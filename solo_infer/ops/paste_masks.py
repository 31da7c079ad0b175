"""Soft masks at a fraction of the network input's size to packed masks at the original size of an image.

mmdet up-samples each soft mask to the padded network input, crops the padding and resizes the rest to the
original size of the image, all bilinearly.

On the CPU this is computed as two matrix products. Each step is linear and acts on rows and columns
separately, so that all steps together are one matrix for the rows and one for the columns, with few nonzero
entries (``resize_matrix``). A compiled kernel does so where the package has one for the CPU (``native``),
operations of torch elsewhere (``paste_by_tiles``).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from solo_infer.ops import packed_masks
from solo_infer.ops.dispatch import triton_kernel
from solo_infer.ops.native import paste_masks as native
from solo_infer.ops.native.library import kernel_library
from solo_infer.ops.paste_by_tiles import paste_by_tiles

# Bytes of float32 maps in one chunk; a chunk needs about four times this.
_CHUNK_BYTES = 64 << 20

Size = tuple[int, int]  # (height, width) in pixels


class PastedMasks(NamedTuple):
    """Masks at the original size of an image."""

    packed: Tensor  # (K, height, ceil(width / 8)) uint8, see packed_masks
    boxes: Tensor  # (K, 4) float32 x1 y1 x2 y2, exclusive right and bottom edges; zeros for empty masks


@triton_kernel("mask pasting", "solo_infer.ops.triton.paste_masks:paste_masks")
def paste_masks(soft: Tensor, padded: Size, resized: Size, original: Size, threshold: float) -> PastedMasks:
    """Up-sample soft masks to the network input, crop, resize to the original size, threshold and pack.

    The Triton kernel and the PyTorch implementation may decide differently on pixels whose score is within
    1e-5 of the threshold, because PyTorch may fuse multiplications and additions.

    Args:
        soft: (K, h, w) float32 in 0..1.
        padded: (height, width) of the network input, to which masks are up-sampled.
        resized: (height, width) of the part of the network input that the image fills.
        original: (height, width) of the image.
        threshold: Pixels with a greater score are inside, at least 0.
    """
    if soft.device.type == "cpu":
        library = kernel_library()
        if library is None:
            return PastedMasks(*paste_by_tiles(soft, padded, resized, original, threshold))
        return PastedMasks(*native.paste_masks(library, soft, padded, resized, original, threshold))
    packed = _paste_by_interpolation(soft, padded, resized, original, threshold)
    return PastedMasks(packed, packed_masks.mask_boxes(packed, original[1]))


def _paste_by_interpolation(
    soft: Tensor, padded: Size, resized: Size, original: Size, threshold: float
) -> Tensor:
    """Return packed masks, computed by ``F.interpolate``."""
    largest = max(padded[0] * padded[1], original[0] * original[1])
    packed = [torch.zeros((0, original[0], (original[1] + 7) // 8), dtype=torch.uint8, device=soft.device)]
    for chunk in soft.split(max(_CHUNK_BYTES // (4 * largest), 1)) if len(soft) else ():
        maps = F.interpolate(chunk[None], size=padded, mode="bilinear", align_corners=False)
        maps = maps[:, :, : resized[0], : resized[1]]
        if resized != original:
            maps = F.interpolate(maps, size=original, mode="bilinear", align_corners=False)
        packed.append(packed_masks.pack(maps[0] > threshold))
    return torch.cat(packed)
