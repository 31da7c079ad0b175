"""Target assignment of YOLACT: mmdet's ``MaxIoUAssigner`` with its YOLACT settings."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.ops import box_area, box_iou

from solo_infer.config import YOLACTConfig
from solo_infer.models.target import (
    Instances,
    Target,
    check_targets,
    crowd_mask,
    non_crowd_instances,
    unlabelled_classes,
)

POSITIVE_IOU = 0.5  # minimum IoU of a positive anchor
NEGATIVE_IOU = 0.4  # IoU below which an anchor is background; between the two it is ignored
CROWD_OVERLAP = 0.7  # fraction of a background anchor inside a crowd box above which it is ignored (original)

BACKGROUND, NEUTRAL = -1, -2


class ImageTargets(NamedTuple):
    """Targets of one image."""

    instances: Instances
    owners: Tensor  # (A,) int64, instance of each anchor, ``BACKGROUND`` or ``NEUTRAL``
    positive: Tensor  # (P,) int64, anchors that have an instance, ascending
    unlabelled: Tensor  # (classes,) bool, classes that the labels of the image do not cover


def assign_batch(
    targets: list[Target] | None, images: Tensor, anchors: Tensor, config: YOLACTConfig
) -> list[ImageTargets]:
    """Assign the instances of a batch to anchors.

    Args:
        targets: Ground truth of each image.
        images: (N, 3, H, W) network inputs.
        anchors: (A, 4) x1 y1 x2 y2 in pixels of the network input.
        config: Architecture of the network.

    Raises:
        ConfigError: Targets are missing or do not match the images or the classes.
    """
    size = (images.shape[-2], images.shape[-1])
    checked = check_targets(targets, images, config.num_classes)
    return [_assign_image(target, anchors, size, config.num_classes) for target in checked]


def _assign_image(target: Target, anchors: Tensor, size: tuple[int, int], num_classes: int) -> ImageTargets:
    instances = non_crowd_instances(target, size)
    has_area = (instances.boxes[:, 2:] > instances.boxes[:, :2]).all(dim=1)
    instances = Instances(*(values[has_area] for values in instances))
    crowds = target["boxes"][crowd_mask(target)].float()
    owners = assign_anchors(anchors, instances.boxes, crowds)
    positive = torch.nonzero(owners >= 0).flatten()
    return ImageTargets(instances, owners, positive, unlabelled_classes(target, num_classes))


def assign_anchors(anchors: Tensor, boxes: Tensor, crowds: Tensor) -> Tensor:
    """Return the owner of each anchor: an instance, ``BACKGROUND`` or ``NEUTRAL``.

    Each instance gets the anchor that overlaps it most, however little. If two instances claim an anchor, the
    later one gets it.

    Args:
        anchors: (A, 4) x1 y1 x2 y2 in pixels.
        boxes: (n, 4) boxes of the instances.
        crowds: (m, 4) boxes of crowd regions.

    Returns:
        (A,) int64.
    """
    owners = torch.full((len(anchors),), BACKGROUND, dtype=torch.int64, device=anchors.device)
    if len(boxes):
        ious = box_iou(boxes, anchors)  # (n, A)
        best_iou, best_instance = ious.max(dim=0)
        owners[best_iou >= NEGATIVE_IOU] = NEUTRAL
        owners = torch.where(best_iou >= POSITIVE_IOU, best_instance, owners)
        order = torch.arange(len(boxes), dtype=torch.int64, device=boxes.device)
        claims = torch.full_like(owners, -1).scatter_reduce(0, ious.argmax(dim=1), order, "amax")
        owners = torch.where(claims >= 0, claims, owners)
    if len(crowds):
        covered = (_intersections(anchors, crowds) / box_area(anchors)[:, None]).amax(dim=1)
        owners[(owners == BACKGROUND) & (covered > CROWD_OVERLAP)] = NEUTRAL
    return owners


def _intersections(boxes: Tensor, others: Tensor) -> Tensor:
    """Return the areas (A, m) of the intersections of boxes (A, 4) and (m, 4)."""
    near = torch.maximum(boxes[:, None, :2], others[None, :, :2])
    far = torch.minimum(boxes[:, None, 2:], others[None, :, 2:])
    return (far - near).clamp(min=0).prod(dim=2)
