"""Losses of YOLACT, with mmdet's targets, weights and averages.

Beyond mmdet, crowd regions and classes that the labels of an image do not cover are ignored. If an image has
more than ``MAX_MASKS_PER_IMAGE`` positive anchors, mmdet learns the masks of a random sample; here the sample
is evenly spaced and thus the same in each run.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from solo_infer.models.yolact.anchors import encode
from solo_infer.models.yolact.head import Predictions
from solo_infer.models.yolact.masks import crop, mask_scores
from solo_infer.models.yolact.targets import BACKGROUND, ImageTargets
from solo_infer.runtime.distributed import sum_over_processes

BOX_WEIGHT, MASK_WEIGHT, SEMANTIC_WEIGHT = 1.5, 6.125, 1.0  # class loss: 1 (mmdet's configs/yolact)
NEG_POS_RATIO = 3  # hardest background anchors that count per positive one (mmdet's neg_pos_ratio)
MAX_MASKS_PER_IMAGE = 100  # masks learned per image (mmdet's max_masks_to_train)


def yolact_losses(
    predictions: Predictions,
    prototypes: Tensor,
    semantic: Tensor,
    anchors: Tensor,
    batch: Sequence[ImageTargets],
    size: tuple[int, int],
    channels: Sequence[int],
) -> dict[str, Tensor]:
    """Return {"loss_cls", "loss_bbox", "loss_mask", "loss_segm"}, scalars.

    Args:
        predictions: Predictions of the anchors.
        prototypes: (N, P, h, w).
        semantic: (N, classes, h, w) logits of the semantic branch.
        anchors: (A, 4) x1 y1 x2 y2 in pixels of the network input.
        batch: Targets of the images.
        size: (height, width) of the network input in pixels.
        channels: Channel of the semantic branch of each class.
    """
    losses: dict[str, list[Tensor]] = {"loss_cls": [], "loss_bbox": [], "loss_mask": [], "loss_segm": []}
    # In float32: half precision cannot hold these cross entropies.
    with torch.autocast(semantic.device.type, enabled=False):
        for index, image in enumerate(batch):
            losses["loss_cls"].append(class_loss(predictions.logits[index], image))
            losses["loss_bbox"].append(box_loss(predictions.deltas[index], anchors, image))
            coefficients = predictions.coefficients[index]
            losses["loss_mask"].append(mask_loss(coefficients, prototypes[index].float(), image, size))
            losses["loss_segm"].append(semantic_loss(semantic[index].float(), image, channels))
    factors = _factors(batch, semantic)
    return {name: torch.stack(values).sum() * factors[name] for name, values in losses.items()}


def _factors(batch: Sequence[ImageTargets], semantic: Tensor) -> dict[str, float]:
    """Return the factor of the sum of each loss: its weight over its normalizer."""
    positives = [len(image.positive) for image in batch]
    anchors, batch_fraction = sum_over_processes(sum(max(count, 1) for count in positives), semantic.device)
    learned = sum(min(count, MAX_MASKS_PER_IMAGE) for count in positives)
    masks, _ = sum_over_processes(learned, semantic.device)
    return {
        "loss_cls": 1.0 / (anchors * batch_fraction),
        "loss_bbox": BOX_WEIGHT / (anchors * batch_fraction),
        "loss_mask": MASK_WEIGHT / (max(masks, 1.0) * batch_fraction),
        "loss_segm": SEMANTIC_WEIGHT / (len(batch) * semantic.shape[-2] * semantic.shape[-1]),
    }


def class_loss(logits: Tensor, image: ImageTargets) -> Tensor:
    """Return the cross entropy of the positive anchors and of the hardest background anchors.

    Args:
        logits: (A, classes + 1) float32, background last.
        image: Targets. If no anchor is positive, all background anchors count.
    """
    labels = torch.full_like(image.owners, logits.shape[1] - 1)
    labels[image.positive] = image.instances.labels[image.owners[image.positive]]
    logits = logits.masked_fill(F.pad(image.unlabelled, (0, 1)), -torch.inf)
    losses = F.cross_entropy(logits, labels, reduction="none")
    negative = losses[image.owners == BACKGROUND]
    count = NEG_POS_RATIO * len(image.positive) or len(negative)
    return losses[image.positive].sum() + negative.topk(min(count, len(negative))).values.sum()


def box_loss(deltas: Tensor, anchors: Tensor, image: ImageTargets) -> Tensor:
    """Return the smooth L1 loss of the deltas (A, 4) of the positive anchors."""
    boxes = image.instances.boxes[image.owners[image.positive]]
    expected = encode(boxes, anchors[image.positive])
    return F.smooth_l1_loss(deltas[image.positive], expected, reduction="sum")


def mask_loss(coefficients: Tensor, prototypes: Tensor, image: ImageTargets, size: tuple[int, int]) -> Tensor:
    """Return the cross entropy of the masks of positive anchors inside the true boxes, over the boxes' areas.

    Args:
        coefficients: (A, P) of all anchors.
        prototypes: (P, h, w).
        image: Targets, with boxes in pixels of the network input.
        size: (height, width) of the network input in pixels.
    """
    sample = _evenly_spaced(image.positive, MAX_MASKS_PER_IMAGE)
    owners = image.owners[sample]
    height, width = size
    relative = image.instances.boxes[owners] / prototypes.new_tensor([width, height] * 2)
    scores = crop(mask_scores(coefficients[sample], prototypes), relative)
    expected = _downsample(image.instances.masks, scores.shape[-2:])[owners]
    losses = F.binary_cross_entropy(scores, expected, reduction="none").mean(dim=(1, 2))
    return (losses / (relative[:, 2:] - relative[:, :2]).prod(dim=1)).sum()


def semantic_loss(logits: Tensor, image: ImageTargets, channels: Sequence[int]) -> Tensor:
    """Return the cross entropy of the class maps; 0 for an image without instances (mmdet's).

    Args:
        logits: (classes, h, w) float32.
        image: Targets; the map of a class is the union of the masks of its instances.
        channels: Channel of each class.
    """
    expected = torch.zeros_like(logits)
    masks = _downsample(image.instances.masks, logits.shape[-2:])
    for mask, label in zip(masks, image.instances.labels.tolist(), strict=True):
        expected[channels[label]] = torch.maximum(expected[channels[label]], mask)
    losses = F.binary_cross_entropy_with_logits(logits, expected, reduction="none").sum(dim=(1, 2))
    labelled = ~image.unlabelled[torch.tensor(channels, dtype=torch.int64, device=logits.device).argsort()]
    return (losses * labelled).sum() * (len(image.instances.labels) > 0)


def _downsample(masks: Tensor, size: torch.Size) -> Tensor:
    """Return bool masks (n, H, W) as float (n, h, w): 1 where they cover more than half of a pixel."""
    if len(masks) == 0:
        return masks.new_zeros((0, *size), dtype=torch.float32)
    soft = F.interpolate(masks[None].float(), size=tuple(size), mode="bilinear", align_corners=False)
    return (soft[0] > 0.5).float()


def _evenly_spaced(members: Tensor, limit: int) -> Tensor:
    """Return members (P,), or ``limit`` of them evenly spaced from the first on."""
    if len(members) <= limit:
        return members
    return members[torch.arange(limit, dtype=torch.int64, device=members.device) * len(members) // limit]
