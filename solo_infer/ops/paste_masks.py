"""Soft masks at a quarter of the input size to bits at the original size of the image."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from solo_infer.ops import dispatch, packed_masks
from solo_infer.ops.boxes import packed_boxes

# Bytes of float32 maps that one step of the twin may hold at a time; a step needs about four times this.
_CHUNK_BYTES = 64 << 20

Size = tuple[int, int]


def enlarge(
    soft: Tensor, padded: Size, resized: Size, original: Size, mask_thr: float
) -> tuple[Tensor, Tensor]:
    """Up-sample to the network input, crop, resize to the original size, all bilinearly, and threshold.

    Args:
        soft: (K, H/4, W/4) float32 in 0..1.
        padded: (height, width) in pixels that they are up-sampled to: of the network input.
        resized: (height, width) in pixels of the part of it that the image fills.
        original: (height, width) of the image in pixels.
        mask_thr: A pixel is inside where its mask score is greater.

    Returns:
        Packed masks (K, height, ceil(width / 8)) uint8 and their boxes (K, 4) float32 x1 y1 x2 y2, zeros for
        empty ones. The Triton kernel may decide otherwise than its twin where the score lies within 1e-5 of
        the threshold: torch may fuse multiplications and additions, the kernel does not.
    """

    def fused() -> tuple[Tensor, Tensor]:
        from solo_infer.ops.triton import paste_masks

        return paste_masks.enlarge(soft, padded, resized, original, mask_thr)

    return dispatch.run(
        "mask enlargement",
        soft.device,
        fused,
        lambda: enlarge_torch(soft, padded, resized, original, mask_thr),
    )


def enlarge_torch(
    soft: Tensor, padded: Size, resized: Size, original: Size, mask_thr: float
) -> tuple[Tensor, Tensor]:
    """Do what ``enlarge`` does with torch's own operations."""
    height, width = resized
    largest = max(padded[0] * padded[1], original[0] * original[1])
    packed = [torch.zeros((0, original[0], (original[1] + 7) // 8), dtype=torch.uint8, device=soft.device)]
    for chunk in soft.split(max(_CHUNK_BYTES // (4 * largest), 1)) if len(soft) else ():
        large = F.interpolate(chunk[None], size=padded, mode="bilinear", align_corners=False)
        large = large[:, :, :height, :width]
        large = F.interpolate(large, size=original, mode="bilinear", align_corners=False)
        packed.append(packed_masks.pack(large[0] > mask_thr))
    masks = torch.cat(packed)
    return masks, packed_boxes(masks, original[1])
