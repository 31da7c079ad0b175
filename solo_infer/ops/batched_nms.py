"""Matrix-NMS of a batch with a fixed number of slots: no shape depends on a value, so nothing is waited for.

``ops.matrix_nms`` tells what is computed. Slots are sorted by score, so that only earlier ones decay later
ones; slots that hold nothing come last and thus change nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor

from solo_infer.ops import dispatch, packed_masks
from solo_infer.ops.matrix_nms import decay

# Bytes of packed masks of an image that are unpacked to float32 at a time, 32 bytes for each.
_UNPACKED = 4 << 20


def decay_factors(packed: Tensor, areas: Tensor, labels: Tensor, kernel: str, sigma: float) -> Tensor:
    """Return the factor (N, P) float32 in 0..1 of each slot.

    Args:
        packed: (N, P, B) uint8 flattened masks as ``packed_masks.pack`` gives them, best score first.
        areas: (N, P) float32, pixels of each mask.
        labels: (N, P) int64.
        kernel: "gaussian" or "linear".
        sigma: Width of the gaussian kernel.
    """

    def fused() -> Tensor:
        from solo_infer.ops.triton import matrix_nms

        return matrix_nms.decay_factors(packed, areas, labels, kernel, sigma)

    return dispatch.run(
        "Matrix-NMS", packed.device, fused, lambda: decay_factors_torch(packed, areas, labels, kernel, sigma)
    )


def decay_factors_torch(packed: Tensor, areas: Tensor, labels: Tensor, kernel: str, sigma: float) -> Tensor:
    """Do what ``decay_factors`` does with torch's own operations."""
    same = labels[:, :, None] == labels[:, None]
    intersections = pairwise_intersections(packed) * same
    unions = areas[:, :, None] + areas[:, None] - intersections
    ious = (intersections / unions.clamp(min=1)).triu(diagonal=1)
    return torch.stack([decay(image, kernel, sigma) for image in ious])


def pairwise_intersections(packed: Tensor) -> Tensor:
    """Return the common pixels (N, P, P), float32, of masks (N, P, B); counts up to 2^24 are exact."""
    count, slots, width = packed.shape
    common = torch.zeros((count, slots, slots), device=packed.device)
    for part in packed.split(max(_UNPACKED // max(slots, 1), 1), dim=2):
        masks = packed_masks.unpack(part, part.shape[2] * 8).float()
        common += masks @ masks.mT
    return common
