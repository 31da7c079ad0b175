"""Masks as weighted sums of prototypes, cropped to their boxes (YOLACT, section 3.1)."""

from __future__ import annotations

import torch
from torch import Tensor

CROP_MARGIN = 1  # prototype pixels that a mask may extend beyond its box on each side


def mask_scores(coefficients: Tensor, prototypes: Tensor) -> Tensor:
    """Return the mask scores (K, h, w) in 0..1 of coefficients (K, P) and prototypes (P, h, w)."""
    return torch.einsum("kp,phw->khw", coefficients, prototypes).sigmoid()


def crop(scores: Tensor, relative_boxes: Tensor) -> Tensor:
    """Return mask scores that are zero outside their boxes and a margin.

    Args:
        scores: (K, h, w) mask scores of the whole image.
        relative_boxes: (K, 4) x1 y1 x2 y2, as fractions of the width and height of the image.
    """
    inside = []
    for length, near, far in ((scores.shape[1], 1, 3), (scores.shape[2], 0, 2)):
        positions = torch.arange(length, device=scores.device, dtype=scores.dtype)
        first = (relative_boxes[:, near] * length - CROP_MARGIN).clamp(min=0)
        end = (relative_boxes[:, far] * length + CROP_MARGIN).clamp(max=length)
        inside.append((positions >= first[:, None]) & (positions < end[:, None]))  # (K, length)
    rows, columns = inside
    return scores * (rows[:, :, None] & columns[:, None, :])
