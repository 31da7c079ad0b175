"""Masks as weighted sums of prototypes, cut to their boxes (YOLACT, arXiv 1904.02689, section 3.1)."""

from __future__ import annotations

import torch
from torch import Tensor

MARGIN = 1  # prototype pixels by which a mask may leave its box on each side


def mask_scores(coefficients: Tensor, prototypes: Tensor) -> Tensor:
    """Return the mask scores (K, h, w) in 0..1 of coefficients (K, P) and prototypes (P, h, w)."""
    return torch.einsum("kp,phw->khw", coefficients, prototypes).sigmoid()


def crop(scores: Tensor, relative: Tensor) -> Tensor:
    """Return mask scores (K, h, w), 0 outside their boxes and a margin.

    Args:
        scores: Of the whole image.
        relative: (K, 4) boxes x1 y1 x2 y2 in parts of the image's width and height.
    """
    inside = []
    for length, near, far in ((scores.shape[1], 1, 3), (scores.shape[2], 0, 2)):
        places = torch.arange(length, device=scores.device, dtype=scores.dtype)
        first = (relative[:, near] * length - MARGIN).clamp(min=0)
        end = (relative[:, far] * length + MARGIN).clamp(max=length)
        inside.append((places >= first[:, None]) & (places < end[:, None]))  # (K, length)
    rows, columns = inside
    return scores * (rows[:, :, None] & columns[:, None, :])
