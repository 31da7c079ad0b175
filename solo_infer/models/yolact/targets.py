"""Which instance each anchor of YOLACT shall find: mmdet's ``MaxIoUAssigner`` with its YOLACT settings."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import box_area, box_iou

POSITIVE_IOU = 0.5  # from which an anchor shall find the instance that it overlaps most
NEGATIVE_IOU = 0.4  # below which it shall say "background"; between the two it learns nothing
CROWD_PART = 0.7  # of a negative anchor inside a crowd's box, above which it learns nothing (the author's)

BACKGROUND, NEUTRAL = -1, -2


def assign_anchors(anchors: Tensor, boxes: Tensor, crowds: Tensor) -> Tensor:
    """Return the owner of each anchor: an instance, ``BACKGROUND`` or ``NEUTRAL``.

    Each instance gets the anchor that overlaps it most, however little; where two claim it the later one
    has it.

    Args:
        anchors: (A, 4) x1 y1 x2 y2 in pixels.
        boxes: (n, 4) of the instances.
        crowds: (m, 4) boxes of crowd regions.

    Returns:
        (A,) int64.
    """
    owners = torch.full((len(anchors),), BACKGROUND, dtype=torch.int64, device=anchors.device)
    if len(boxes):
        overlaps = box_iou(boxes, anchors)  # (n, A)
        greatest, nearest = overlaps.max(dim=0)
        owners[greatest >= NEGATIVE_IOU] = NEUTRAL
        owners = torch.where(greatest >= POSITIVE_IOU, nearest, owners)
        order = torch.arange(len(boxes), device=boxes.device)
        claims = torch.full_like(owners, -1).scatter_reduce(0, overlaps.argmax(dim=1), order, "amax")
        owners = torch.where(claims >= 0, claims, owners)
    if len(crowds):
        covered = (_intersections(anchors, crowds) / box_area(anchors)[:, None]).amax(dim=1)
        owners[(owners == BACKGROUND) & (covered > CROWD_PART)] = NEUTRAL
    return owners


def _intersections(boxes: Tensor, others: Tensor) -> Tensor:
    """Return the common areas (A, m) of boxes (A, 4) and (m, 4)."""
    near = torch.maximum(boxes[:, None, :2], others[None, :, :2])
    far = torch.minimum(boxes[:, None, 2:], others[None, :, 2:])
    return (far - near).clamp(min=0).prod(dim=2)
