"""Fast NMS (YOLACT, arXiv 1904.02689, section 3.2): one parallel comparison of the boxes of each class.

A box is suppressed by any higher-scoring box of its class, including suppressed ones.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

_MAX_PAIRS = 1 << 20  # pairs of boxes that are compared at the same time, with some tens of MiB


class FastNMSResult(NamedTuple):
    """Detections that Fast NMS keeps, highest score first."""

    scores: Tensor  # (K,) float32
    labels: Tensor  # (K,) int64
    keep: Tensor  # (K,) int64 rows of the boxes


def fast_nms(
    boxes: Tensor,
    scores: Tensor,
    *,
    iou_thr: float,
    filter_thr: float,
    top_k: int,
    max_num: int,
    across_classes: bool = False,
) -> FastNMSResult:
    """Run Fast NMS in each class, as mmdet's ``fast_nms`` and, with ``filter_thr`` 0, YOLACT's own code.

    Args:
        boxes: (A, 4) float32 x1 y1 x2 y2.
        scores: (A, classes) float32 in 0..1.
        iou_thr: Maximum IoU with a higher-scoring box of the class.
        filter_thr: Scores must be greater than this.
        top_k: Number of boxes of each class that enter, highest scores first.
        max_num: Maximum number of boxes of all classes to keep, highest scores first.
        across_classes: Whether all boxes are compared, each with its best class, as in ``cc_fast_nms`` of
            YOLACT's own code.
    """
    if across_classes:
        best_scores, best_labels = scores.max(dim=1)
        kept = fast_nms(
            boxes, best_scores[:, None], iou_thr=iou_thr, filter_thr=filter_thr, top_k=top_k, max_num=max_num
        )
        return kept._replace(labels=best_labels[kept.keep])
    ranked, order = scores.T.sort(dim=1, descending=True, stable=True)
    ranked, order = ranked[:, :top_k], order[:, :top_k]  # (classes, K)
    keep = ranked > filter_thr
    # Scores decrease along the rows. Columns after the last kept score suppress nothing that is kept.
    length = int(keep.any(dim=0).sum())
    classes = torch.nonzero(keep.any(dim=1)).flatten()
    ranked, order = ranked[classes, :length], order[classes, :length]
    keep = keep[classes, :length]
    if length:
        keep &= _max_ious(boxes[order]) <= iou_thr
    rows, ranks = torch.nonzero(keep, as_tuple=True)
    kept_scores = ranked[rows, ranks]
    best = kept_scores.argsort(descending=True, stable=True)[:max_num]
    rows, ranks = rows[best], ranks[best]
    return FastNMSResult(kept_scores[best], classes[rows], order[rows, ranks])


def pairwise_iou(boxes: Tensor) -> Tensor:
    """Return the IoU (C, K, K) of all pairs of boxes within each group of boxes (C, K, 4)."""
    areas = (boxes[..., 2:] - boxes[..., :2]).prod(dim=-1)
    top_left = torch.maximum(boxes[:, :, None, :2], boxes[:, None, :, :2])
    bottom_right = torch.minimum(boxes[:, :, None, 2:], boxes[:, None, :, 2:])
    intersections = (bottom_right - top_left).clamp(min=0).prod(dim=-1)
    return intersections / (areas[:, :, None] + areas[:, None] - intersections).clamp(min=1e-6)


def _max_ious(boxes: Tensor) -> Tensor:
    """Return the maximum IoU (C, K) of each box (C, K, 4) with the boxes before it in its class."""
    classes = max(_MAX_PAIRS // boxes.shape[1] ** 2, 1)
    return torch.cat([pairwise_iou(chunk).triu(diagonal=1).amax(dim=1) for chunk in boxes.split(classes)])
