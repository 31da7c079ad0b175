"""Boxes of masks."""

from __future__ import annotations

import torch
from torch import Tensor

from solo_infer.ops import packed_masks


def packed_boxes(packed: Tensor, width: int) -> Tensor:
    """Return the tight boxes (N, 4) float32 x1 y1 x2 y2 of packed masks (N, H, B), zeros for empty ones."""
    sides = []
    for used in (packed_masks.unpack(packed_masks.union_rows(packed), width), packed.any(dim=2)):
        first = used.int().argmax(dim=1)
        end = used.shape[1] - used.flip(1).int().argmax(dim=1)
        sides.append(torch.stack([first, end], dim=1))
    boxes = torch.cat(sides, dim=1)[:, [0, 2, 1, 3]]
    return boxes.float() * used.any(dim=1)[:, None]
