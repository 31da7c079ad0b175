"""Losses of SOLO (paper, section 3.3.3) and SOLOv2, with mmdet's constants and averages."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torchvision.ops import sigmoid_focal_loss

from solo_infer.models.solo.masks import CandidateMasks, KernelMasks, LevelMasks
from solo_infer.models.solo.targets import BatchTargets, LevelTargets, mask_cells
from solo_infer.runtime.distributed import sum_over_processes

FOCAL_ALPHA, FOCAL_GAMMA = 0.25, 2.0  # mmdet's configs/solo
MASK_WEIGHT = 3.0  # weight of the dice loss (mmdet's configs/solo)
_DICE_EPSILON = 1e-3  # added to each squared sum of the dice loss


def solo_losses(
    class_logits: Sequence[Tensor],
    masks: Sequence[CandidateMasks],
    batch: BatchTargets,
    parameters: Iterable[nn.Parameter],
) -> dict[str, Tensor]:
    """Return {"loss_cls", "loss_mask"}, scalars.

    Args:
        class_logits: (N, classes, g, g) of each level.
        masks: Masks of each image, of at least its positive cells.
        batch: Targets of the images.
        parameters: Parameters that must get a gradient even if no cell uses them: in distributed training
            every process waits for the gradients of all of them.
    """
    logits = torch.cat([level.flatten(2) for level in class_logits], dim=2).transpose(1, 2)
    num_positive = sum(map(len, batch.cells))
    count, batch_fraction = sum_over_processes(num_positive, logits.device)
    unused = [parameter.sum().reshape(1) * 0.0 for parameter in parameters]
    losses = [
        dice_losses(scores, _crop_or_pad(targets, scores.shape[1:]))
        for image in zip(masks, batch.images, strict=True)
        for scores, targets in _scores_and_targets(*image)
    ]
    return {
        "loss_cls": class_loss(
            logits.flatten(0, 1).float(),
            batch.labels.flatten(),
            count,
            batch.ignored.flatten(0, 1),
            batch_fraction,
        ),
        "loss_mask": mask_loss(torch.cat([logits.new_zeros(1), *unused, *losses]), count, batch_fraction),
    }


def _scores_and_targets(
    masks: CandidateMasks, levels: Sequence[LevelTargets]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield mask scores (k, h, w) and targets (k, h', w') of one image, in parts of equal size."""
    levels = [level for level in levels if len(level.positive)]
    if isinstance(masks, KernelMasks):
        if levels:
            yield masks.scores(mask_cells(levels)), torch.cat([level.masks for level in levels])
    elif isinstance(masks, LevelMasks):
        for level in levels:
            yield masks.level_scores(level.cells), level.masks


def _crop_or_pad(masks: Tensor, size: torch.Size) -> Tensor:
    """Return masks (k, h, w) of a size that may differ by a few pixels (inputs off multiples of 32)."""
    return pad(masks, (0, size[1] - masks.shape[2], 0, size[0] - masks.shape[1]))


def dice_losses(scores: Tensor, targets: Tensor) -> Tensor:
    """Return the dice loss (P,) of mask scores (P, h, w) in 0..1 against bool targets (P, h, w)."""
    scores, expected = scores.flatten(1), targets.flatten(1).to(scores.dtype)
    intersection = (scores * expected).sum(dim=1)
    squares = (scores * scores).sum(dim=1) + _DICE_EPSILON + (expected * expected).sum(dim=1) + _DICE_EPSILON
    return 1 - 2 * intersection / squares


def mask_loss(losses: Tensor, num_positive: float, batch_fraction: float) -> Tensor:
    """Return the weighted sum of dice losses divided by the number of positive cells, 0 if there are none.

    Args:
        losses: (P,) dice losses of this process, one for each mask target: in SOLOv2 a cell may have several.
        num_positive: Distinct positive cells of the whole batch.
        batch_fraction: Fraction of the batch that one process has; its loss is divided by it because DDP
            averages over processes.
    """
    return MASK_WEIGHT * losses.sum() / (max(num_positive, 1.0) * batch_fraction)


def class_loss(
    logits: Tensor,
    labels: Tensor,
    num_positive: float,
    ignored: Tensor,
    batch_fraction: float,
) -> Tensor:
    """Return the focal loss over all cells and classes, divided by the number of positive cells plus one.

    Args:
        logits: (M, classes) of all cells of a batch.
        labels: (M,) int64; the number of classes stands for background.
        num_positive: Positive cells of the whole batch.
        ignored: (M, classes) bool, pairs that are left out (classes that the labels of an image do not
            cover, crowd regions).
        batch_fraction: As for ``mask_loss``.
    """
    expected = torch.zeros_like(logits)
    rows = torch.nonzero(labels < logits.shape[1]).flatten()
    expected[rows, labels[rows]] = 1
    losses = sigmoid_focal_loss(logits, expected, alpha=FOCAL_ALPHA, gamma=FOCAL_GAMMA, reduction="none")
    return losses.masked_fill(ignored, 0.0).sum() / ((num_positive + 1.0) * batch_fraction)
