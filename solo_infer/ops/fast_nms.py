"""Fast NMS (YOLACT, arXiv 1904.02689, section 3.2): one comparison of all boxes of a class.

A box goes if any better one of its class overlaps it too much, also one that goes itself.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from solo_infer.models.yolact.anchors import pairwise_iou

_MOST_PAIRS = 1 << 20  # of boxes that are compared at a time, which needs some tens of MiB


class FastNMSResult(NamedTuple):
    """What Fast NMS keeps, best first."""

    scores: Tensor  # (K,) float32
    labels: Tensor  # (K,) int64
    keep: Tensor  # (K,) int64 rows of the boxes


def fast_nms(
    boxes: Tensor, scores: Tensor, *, iou_thr: float, filter_thr: float, top_k: int, max_num: int
) -> FastNMSResult:
    """Run Fast NMS, each class by itself; mmdet's ``fast_nms``, and the author's with ``filter_thr`` 0.

    Args:
        boxes: (A, 4) float32 x1 y1 x2 y2.
        scores: (A, classes) float32 in 0..1.
        iou_thr: Greatest IoU with a better box of the class.
        filter_thr: Only scores above this are kept.
        top_k: Boxes of each class that enter, best first.
        max_num: Boxes of all classes that are kept, best first.
    """
    ranked, order = scores.T.sort(dim=1, descending=True, stable=True)
    ranked, order = ranked[:, :top_k], order[:, :top_k]  # (classes, K)
    keep = ranked > filter_thr
    # Scores fall from left to right: what lies beyond the last one kept overlaps nothing that counts.
    length = int(keep.any(dim=0).sum())
    classes = torch.nonzero(keep.any(dim=1)).flatten()
    ranked, order = ranked[classes, :length], order[classes, :length]
    keep = keep[classes, :length]
    if length:
        keep &= _greatest_overlaps(boxes[order]) <= iou_thr
    rows, places = torch.nonzero(keep, as_tuple=True)
    kept = ranked[rows, places]
    best = kept.argsort(descending=True, stable=True)[:max_num]
    rows, places = rows[best], places[best]
    return FastNMSResult(kept[best], classes[rows], order[rows, places])


def _greatest_overlaps(boxes: Tensor) -> Tensor:
    """Return the greatest IoU (C, K) of each box with one before it, of groups (C, K, 4)."""
    groups = max(_MOST_PAIRS // boxes.shape[1] ** 2, 1)
    return torch.cat([pairwise_iou(some).triu(diagonal=1).amax(dim=1) for some in boxes.split(groups)])
