"""Soft masks at a quarter of the input size to bits at the original size of the image."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from solo_infer.ops import bits, dispatch
from solo_infer.ops.boxes import mask_boxes

# Bytes of float32 maps that one step of the twin may hold at a time; a step needs about four times this.
_CHUNK_BYTES = 64 << 20


def enlarge(
    soft: Tensor, resized: tuple[int, int], original: tuple[int, int], mask_thr: float
) -> tuple[Tensor, Tensor]:
    """Up-sample four times, crop, resize to the original size, all bilinearly, and threshold.

    Args:
        soft: (K, H/4, W/4) float32 in 0..1.
        resized: (height, width) in pixels of the part of the network input that the image fills.
        original: (height, width) of the image in pixels.
        mask_thr: A pixel is inside where its mask score is greater.

    Returns:
        Packed masks (K, height, ceil(width / 8)) uint8 and their boxes (K, 4) float32 x1 y1 x2 y2, zeros for
        empty ones. The Triton kernel may decide otherwise than its twin where the score lies within 1e-5 of
        the threshold: torch may fuse multiplications and additions, the kernel does not.
    """

    def fused() -> tuple[Tensor, Tensor]:
        from solo_infer.ops import enlarging_triton

        return enlarging_triton.enlarge(soft, resized, original, mask_thr)

    return dispatch.run(
        "mask enlargement", soft.device, fused, lambda: enlarge_torch(soft, resized, original, mask_thr)
    )


def enlarge_torch(
    soft: Tensor, resized: tuple[int, int], original: tuple[int, int], mask_thr: float
) -> tuple[Tensor, Tensor]:
    """Do what ``enlarge`` does with torch's own operations."""
    height, width = resized
    input_size = (soft.shape[1] * 4, soft.shape[2] * 4)
    largest = max(input_size[0] * input_size[1], original[0] * original[1])
    packed = [torch.zeros((0, original[0], (original[1] + 7) // 8), dtype=torch.uint8, device=soft.device)]
    boxes = [torch.zeros((0, 4), device=soft.device)]
    for chunk in soft.split(max(_CHUNK_BYTES // (4 * largest), 1)) if len(soft) else ():
        large = F.interpolate(chunk[None], size=input_size, mode="bilinear", align_corners=False)
        large = large[:, :, :height, :width]
        large = F.interpolate(large, size=original, mode="bilinear", align_corners=False)
        masks = large[0] > mask_thr  # (k, H, W)
        packed.append(bits.pack(masks))
        boxes.append(mask_boxes(masks))
    return torch.cat(packed), torch.cat(boxes)
