"""Class scores of the grid cells."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def keep_local_maxima(scores: Tensor) -> Tensor:
    """Zero the scores (N, C, g, g) that a left, upper or upper-left neighbor exceeds.

    This is mmdet's ``points_nms``; equal neighbors are all kept.
    """
    highest = nn.functional.max_pool2d(scores, kernel_size=2, stride=1, padding=1)[:, :, :-1, :-1]
    return scores * (highest == scores)


def class_scores_from_logits(class_logits: Sequence[Tensor]) -> Tensor:
    """Return the scores (N, cells, classes), float32 in 0..1, zero where not a local maximum.

    Args:
        class_logits: (N, classes, g, g) of each level.
    """
    scores = [keep_local_maxima(logits.float().sigmoid()).flatten(2) for logits in class_logits]
    return torch.cat(scores, dim=2).transpose(1, 2)
