"""Assignment of the instances of an image to cells of Tiny."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.ops import box_iou

from solo_infer.models.target import Instances, Target, crowd_mask, unlabelled_classes

CELLS_PER_INSTANCE = 9  # cells of an instance that learn its class and box
MASK_CELLS_PER_INSTANCE = 3  # the best of them that also learn its mask
MIN_MASK_IOU = 0.35  # IoU that the box of a cell must have with its instance to learn its mask
_MAX_MASKS = 48  # masks of an image that are learned per iteration, at random if there are more
_MIN_CROWD_OVERLAP = 0.5  # fraction of a box inside a crowd region that makes its cell ignored
_PRIOR = 1e-4  # added to scores, so that cells with good boxes are found before scores are learned


class Assignment(NamedTuple):
    """Targets of the cells of one image."""

    cells: Tensor  # (P,) int64 cells that learn an instance
    instances: Tensor  # (P,) int64 their instances
    quality: Tensor  # (P,) float32 in 0..1: the class score that they learn
    mask_cells: Tensor  # (M,) int64 cells that learn a mask
    mask_instances: Tensor  # (M,) int64 their instances
    weights: Tensor  # (cells, classes) float32: 0 where the class score is not known, else 1


@torch.no_grad()
def assign(class_logits: Tensor, boxes: Tensor, instances: Instances, target: Target) -> Assignment:
    """Assign the instances of one image to cells.

    An instance goes to the cells with the highest product of their score of its class and the cube of the IoU
    of their box with its own (as in arXiv 2108.07755); a cell learns only the instance that its box
    overlaps most, or all of these if their boxes are equal. The best cell of an instance learns the greatest
    IoU of its cells as its score, the others proportionally less.

    Args:
        class_logits: (cells, classes) of the image.
        boxes: (cells, 4) float32 predicted boxes in input pixels.
        instances: Instances of the image.
        target: Ground truth, for crowd regions and unlabelled classes.
    """
    iou = box_iou(boxes, instances.boxes)  # (cells, n)
    metric = (class_logits.float().sigmoid()[:, instances.labels] + _PRIOR) * iou**3
    if len(instances.labels):
        metric = metric * (iou >= iou.max(dim=1, keepdim=True).values)
    best, cells = metric.topk(min(CELLS_PER_INSTANCE, len(metric)), dim=0)
    number = torch.arange(len(instances.labels), dtype=torch.int64, device=iou.device).expand_as(cells)
    used = best > 0
    cell_iou = iou.gather(0, cells)
    quality = best / best.amax(dim=0).clamp(min=1e-12) * (cell_iou * used).amax(dim=0)
    suitable = used & (cell_iou > MIN_MASK_IOU)
    suitable[MASK_CELLS_PER_INSTANCE:] = False
    mask_cells, mask_instances = _sample(cells[suitable], number[suitable])
    weights = _class_weights(boxes, target, class_logits.shape[1])
    return Assignment(cells[used], number[used], quality[used], mask_cells, mask_instances, weights)


def _sample(cells: Tensor, instances: Tensor) -> tuple[Tensor, Tensor]:
    if len(cells) <= _MAX_MASKS:
        return cells, instances
    chosen = torch.randperm(len(cells), dtype=torch.int64, device=cells.device)[:_MAX_MASKS]
    return cells[chosen], instances[chosen]


def _class_weights(boxes: Tensor, target: Target, num_classes: int) -> Tensor:
    """Return 0 for unlabelled classes, and for cells inside crowd regions of a class; else 1."""
    weights = torch.ones((len(boxes), num_classes), dtype=torch.float32, device=boxes.device)
    weights[:, unlabelled_classes(target, num_classes)] = 0.0
    crowd = crowd_mask(target)
    for region, label in zip(target["boxes"].float()[crowd], target["labels"][crowd], strict=True):
        low, high = torch.maximum(boxes[:, :2], region[:2]), torch.minimum(boxes[:, 2:], region[2:])
        overlap = (high - low).clamp(min=0).prod(dim=1)
        area = (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(dim=1)
        weights[overlap > _MIN_CROWD_OVERLAP * area, label] = 0.0
    return weights
