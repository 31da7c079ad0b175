"""Boxes of masks."""

from __future__ import annotations

import torch
from torch import Tensor


def mask_boxes(masks: Tensor) -> Tensor:
    """Return the tight boxes (N, 4) float32 x1 y1 x2 y2 of bool masks (N, H, W), zeros for empty ones."""
    sides = []
    for axis in (1, 2):  # columns in use, then rows in use
        used = masks.any(dim=axis)
        first = used.int().argmax(dim=1)
        end = used.shape[1] - used.flip(1).int().argmax(dim=1)
        sides.append(torch.stack([first, end], dim=1))
    boxes = torch.cat(sides, dim=1)[:, [0, 2, 1, 3]]
    return boxes.float() * masks.flatten(1).any(dim=1)[:, None]
