"""Greedy NMS of boxes with the results of ``torchvision.ops.nms``."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from solo_infer.ops.native.box_nms import keep_boxes
from solo_infer.ops.native.library import kernel_library

# Boxes of one comparison on the CPU: a step needs about 20 bytes for each pair with one of the others.
_ROWS = 512


def box_nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Return the indices (M,) int64 of the boxes that NMS keeps, the best first.

    A box is dropped if its IoU with a kept one of a higher score is greater than the threshold; of equal
    scores, the first one ranks higher. On the CPU, torchvision is not imported, which takes seconds.

    Args:
        boxes: (N, 4) float32 x1 y1 x2 y2.
        scores: (N,) float32.
        iou_threshold: Greatest IoU of two kept boxes, 0..1.
    """
    if boxes.device.type != "cpu":
        from torchvision.ops import nms

        return nms(boxes, scores, iou_threshold)
    order = scores.argsort(descending=True, stable=True)
    boxes = boxes[order]
    limit, library = _rounded_down(iou_threshold), kernel_library()
    if library is not None and boxes.dtype == torch.float32:
        return order[keep_boxes(library, boxes, limit)]
    is_kept = np.ones(len(boxes), np.bool_)
    for start in range(0, len(boxes), _ROWS):
        overlaps = (box_overlaps(boxes[start : start + _ROWS], boxes) > limit).numpy()
        for row, dropped in enumerate(overlaps, start):
            if is_kept[row]:
                is_kept[row + 1 :] &= ~dropped[row + 1 :]
    return order[torch.from_numpy(is_kept)]


def _rounded_down(threshold: float) -> float:
    """Return the greatest float32 up to a threshold: the same values of float32 are above both."""
    rounded = np.float32(threshold)
    return float(rounded if float(rounded) <= threshold else np.nextafter(rounded, np.float32(-np.inf)))


def box_overlaps(first: Tensor, second: Tensor) -> Tensor:
    """Return the IoU (N, M) of boxes (N, 4) and (M, 4) x1 y1 x2 y2, computed as by torchvision's NMS."""
    left, top, right, bottom = first[:, :, None].unbind(dim=1)
    other_left, other_top, other_right, other_bottom = second.T.contiguous()
    width = (torch.minimum(right, other_right) - torch.maximum(left, other_left)).clamp_(min=0)
    height = (torch.minimum(bottom, other_bottom) - torch.maximum(top, other_top)).clamp_(min=0)
    common = width.mul_(height)
    areas = (right - left) * (bottom - top)
    other_areas = (other_right - other_left) * (other_bottom - other_top)
    return common / (areas + other_areas - common)
