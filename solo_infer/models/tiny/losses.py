"""Losses of Tiny."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import generalized_box_iou_loss

from solo_infer.models.target import Instances, Target, non_crowd_instances
from solo_infer.models.tiny.head import CellPredictions
from solo_infer.models.tiny.masks import MASK_STRIDE, decode_boxes, mask_logits, pixels_in_boxes
from solo_infer.models.tiny.targets import Assignment, assign
from solo_infer.runtime.distributed import sum_over_processes

BOX_WEIGHT = 2.0  # NanoDet-Plus's weight of the GIoU loss
DISTANCE_WEIGHT = 0.25  # NanoDet-Plus's weight of the distribution focal loss
_MARGIN, _MARGIN_PIXELS = 0.15, 6.0  # of the box around an instance in which its mask is learned
_EDGE_WEIGHT = 12.0  # weight of a pixel at an outline is 1 + 12 / 4, that of a pixel far from it 1


class _ImageLosses(NamedTuple):
    """Sums of the losses of one image."""

    cls: Tensor
    box: Tensor
    distance: Tensor
    mask: Tensor


def tiny_losses(
    cells: CellPredictions, points: Tensor, features: Tensor, targets: list[Target]
) -> dict[str, Tensor]:
    """Return the losses of a batch.

    Args:
        cells: Predictions of all cells.
        points: (cells, 3) x, y and stride of the cells in input pixels.
        features: (N, C, h, w) mask features.
        targets: Ground truth of each image.

    Returns:
        {"loss_cls", "loss_box", "loss_distance", "loss_mask"}: scalars.
    """
    size = (features.shape[-2] * MASK_STRIDE, features.shape[-1] * MASK_STRIDE)
    boxes = decode_boxes(cells.distance_logits, points)
    losses, quality, masks = [], 0.0, 0
    for index, target in enumerate(targets):
        instances = non_crowd_instances(target, size)
        image = CellPredictions(*(values[index].float() for values in cells))
        assignment = assign(image.class_logits, boxes[index], instances, target)
        losses.append(
            _ImageLosses(
                _class_loss(image.class_logits, assignment, instances),
                *_box_losses(image.distance_logits, boxes[index], points, assignment, instances),
                _mask_loss(image.kernels, boxes[index], features[index], assignment, instances),
            )
        )
        quality, masks = quality + float(assignment.quality.sum()), masks + len(assignment.mask_cells)
    sums = _ImageLosses(*(torch.stack(values).sum() for values in zip(*losses, strict=True)))
    # DDP averages the gradients over processes, of which each has a fraction of the batch.
    total_quality, fraction = sum_over_processes(quality, points.device)
    total_masks, _ = sum_over_processes(masks, points.device)
    quality_divisor, mask_divisor = max(total_quality, 1.0) * fraction, max(total_masks, 1.0) * fraction
    # All outputs take part, so that every parameter has a gradient in every process.
    zero = sum((values.sum() * 0.0 for values in (*cells, features)), start=points.new_zeros(()))
    return {
        "loss_cls": sums.cls / quality_divisor + zero,
        "loss_box": BOX_WEIGHT * sums.box / quality_divisor,
        "loss_distance": DISTANCE_WEIGHT * sums.distance / quality_divisor,
        "loss_mask": sums.mask / mask_divisor,
    }


def _class_loss(logits: Tensor, assignment: Assignment, instances: Instances) -> Tensor:
    """Return the quality focal loss (Li et al., arXiv 2006.04388) of (cells, classes) logits, summed."""
    target = torch.zeros_like(logits)
    target[assignment.cells, instances.labels[assignment.instances]] = assignment.quality
    difference = (target - logits.sigmoid()).abs().square()
    losses = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return (losses * difference * assignment.weights).sum()


def _box_losses(
    distance_logits: Tensor, boxes: Tensor, points: Tensor, assignment: Assignment, instances: Instances
) -> tuple[Tensor, Tensor]:
    """Return the GIoU loss and the distribution focal loss of the assigned cells, weighted by quality."""
    cells, expected = assignment.cells, instances.boxes[assignment.instances]
    giou = generalized_box_iou_loss(boxes[cells], expected, reduction="none")
    logits = distance_logits[cells].unflatten(-1, (4, -1))
    position = points[cells]
    distances = torch.cat([position[:, :2] - expected[:, :2], expected[:, 2:] - position[:, :2]], dim=1)
    last = logits.shape[-1] - 1
    distances = (distances / position[:, 2:]).clamp(0, last - 0.01)
    left = distances.long()
    share = distances - left
    flat = logits.flatten(0, 1)
    losses = F.cross_entropy(flat, left.flatten(), reduction="none") * (1 - share).flatten()
    losses = losses + F.cross_entropy(flat, (left + 1).flatten(), reduction="none") * share.flatten()
    distance = losses.unflatten(0, (-1, 4)).mean(dim=1)
    return (giou * assignment.quality).sum(), (distance * assignment.quality).sum()


def _mask_loss(
    kernels: Tensor, boxes: Tensor, features: Tensor, assignment: Assignment, instances: Instances
) -> Tensor:
    """Return the Dice loss plus the weighted cross entropy of the assigned cells, summed.

    The cross entropy counts pixels in and near the box of the instance, those at the outline most.
    """
    cells = assignment.mask_cells
    logits = mask_logits(kernels[cells], boxes[cells].detach(), features)
    masks = F.avg_pool2d(instances.masks[:, None].float(), MASK_STRIDE)[:, 0][assignment.mask_instances]
    scores = logits.sigmoid()
    overlap = 2 * (scores * masks).sum(dim=(1, 2)) + 1
    dice = 1 - overlap / (scores.square().sum(dim=(1, 2)) + masks.square().sum(dim=(1, 2)) + 1)
    blurred = F.avg_pool2d(masks[:, None], 5, 1, 2, count_include_pad=False)[:, 0]
    near = pixels_in_boxes(_widened(instances.boxes), *masks.shape[-2:])[assignment.mask_instances]
    weights = (1 + _EDGE_WEIGHT * blurred * (1 - blurred)) * near
    entropy = F.binary_cross_entropy_with_logits(logits, masks, reduction="none")
    return (dice + (entropy * weights).sum(dim=(1, 2)) / weights.sum(dim=(1, 2)).clamp(min=1.0)).sum()


def _widened(boxes: Tensor) -> Tensor:
    """Return boxes (n, 4) with a margin on each side."""
    margin = _MARGIN * (boxes[:, 2:] - boxes[:, :2]) + _MARGIN_PIXELS
    return torch.cat([boxes[:, :2] - margin, boxes[:, 2:] + margin], dim=1)
