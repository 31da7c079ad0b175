"""Detections of one image."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Detections(NamedTuple):
    """Instances of one image, best first, at its original size."""

    scores: Tensor  # (N,) float32
    labels: Tensor  # (N,) int64
    boxes: Tensor  # (N, 4) float32 x1 y1 x2 y2 in pixels, far edge exclusive; see Result.boxes
    packed_masks: Tensor  # (N, H, ceil(W / 8)) uint8, see ops.packed_masks


def empty_detections(size: tuple[int, int], device: torch.device) -> Detections:
    """Return no detections for an image of (height, width) pixels."""
    height, width = size
    return Detections(
        torch.zeros(0, dtype=torch.float32, device=device),
        torch.zeros(0, dtype=torch.int64, device=device),
        torch.zeros((0, 4), dtype=torch.float32, device=device),
        torch.zeros((0, height, (width + 7) // 8), dtype=torch.uint8, device=device),
    )
