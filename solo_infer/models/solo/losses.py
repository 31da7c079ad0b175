"""The losses of the SOLO heads (paper, section 3.3.3), with mmdet's constants and averages."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss

ALPHA, GAMMA = 0.25, 2.0  # of the focal loss (mmdet's configs/solo)
MASK_WEIGHT = 3.0  # of the dice loss beside it
_EPSILON = 1e-3  # added to each squared sum of the dice loss


def dice_losses(scores: Tensor, targets: Tensor) -> Tensor:
    """Return the dice loss (P,) of mask scores (P, h, w) in 0..1 against bool targets (P, h, w)."""
    scores, wanted = scores.flatten(1), targets.flatten(1).to(scores.dtype)
    common = (scores * wanted).sum(dim=1)
    squares = (scores * scores).sum(dim=1) + _EPSILON + (wanted * wanted).sum(dim=1) + _EPSILON
    return 1 - 2 * common / squares


def mask_loss(losses: Tensor, num_positive: float, share: float = 1.0) -> Tensor:
    """Return the weighted mean of dice losses over the positive cells, 0 if there are none.

    Args:
        losses: (P,) of this process's positive cells.
        num_positive: Positive cells of the whole batch.
        share: Part of the batch that one process has: its loss is the mean over processes that DDP takes.
    """
    return MASK_WEIGHT * losses.sum() / (max(num_positive, 1.0) * share)


def class_loss(
    logits: Tensor,
    labels: Tensor,
    num_positive: float,
    ignored: Tensor | None = None,
    share: float = 1.0,
) -> Tensor:
    """Return the focal loss over all cells and classes, divided by the positive cells plus one.

    Args:
        logits: (M, classes) of all cells of a batch.
        labels: (M,) int64; the number of classes stands for background.
        num_positive: Positive cells of the whole batch.
        ignored: (M, classes) bool, pairs that count for nothing (classes that an image's labels leave
            out, crowd regions).
        share: As for ``mask_loss``.
    """
    wanted = torch.zeros_like(logits)
    rows = torch.nonzero(labels < logits.shape[1]).flatten()
    wanted[rows, labels[rows]] = 1
    losses = sigmoid_focal_loss(logits, wanted, alpha=ALPHA, gamma=GAMMA, reduction="none")
    if ignored is not None:
        losses = losses.masked_fill(ignored, 0.0)
    return losses.sum() / ((num_positive + 1.0) * share)
