"""Greedy mask NMS: best first, a mask drops those of its class that overlap it too much; scores stay.

It is what the authors' AdelaiDet has beside Matrix-NMS and calls the original one (``mask_nms``, with a
threshold of 0.5).
"""

from __future__ import annotations

import torch
from torch import Tensor

from solo_infer.ops import packed_masks
from solo_infer.ops.matrix_nms import NMSResult, same_label_intersections


def greedy_nms(
    masks: Tensor,
    labels: Tensor,
    scores: Tensor,
    *,
    iou_thr: float = 0.5,
    nms_pre: int = -1,
    max_num: int = -1,
    filter_thr: float = -1.0,
) -> NMSResult:
    """Run greedy NMS on masks.

    Args:
        masks: (N, H, W) bool.
        labels: (N,) int64.
        scores: (N,) float32.
        iou_thr: A mask is dropped if its IoU with a kept one of equal label and higher score is greater,
            0..1; of equal scores the first in the list counts as higher.
        nms_pre: Only this many of the best enter; all if not positive.
        max_num: Only this many of the best are kept; all if not positive.
        filter_thr: Only scores of at least this are kept; all if not positive.
    """
    return greedy_nms_packed(
        packed_masks.pack(masks.flatten(1)),
        masks.flatten(1).sum(1).float(),
        labels,
        scores,
        iou_thr=iou_thr,
        nms_pre=nms_pre,
        max_num=max_num,
        filter_thr=filter_thr,
    )


def greedy_nms_packed(
    packed: Tensor,
    areas: Tensor,
    labels: Tensor,
    scores: Tensor,
    *,
    iou_thr: float,
    nms_pre: int,
    max_num: int,
    filter_thr: float,
    owners: Tensor | None = None,
) -> NMSResult:
    """Run greedy NMS on bit-packed masks; see ``greedy_nms``.

    Args:
        packed: (M, B) uint8, flattened masks as ``packed_masks.pack`` gives them.
        areas: (N,) float32, pixels of each detection's mask.
        labels: (N,) int64.
        scores: (N,) float32.
        iou_thr: Greatest IoU that two kept masks of equal label may have.
        nms_pre: Only this many of the best enter; all if not positive.
        max_num: Only this many of the best are kept; all if not positive.
        filter_thr: Only scores of at least this are kept; all if not positive.
        owners: (N,) int64, the row of ``packed`` of each detection (several may share one); N = M and
            each its own row if not given.
    """
    order = scores.argsort(descending=True, stable=True)
    order = order[:nms_pre] if nms_pre > 0 else order
    if filter_thr > 0:  # first: what is below it could only drop what is below it too
        order = order[scores[order] >= filter_thr]
    rows = order if owners is None else owners[order]
    common = same_label_intersections(packed, rows, labels[order])
    unions = areas[order][:, None] + areas[order][None] - common
    kept = _drop_in_turn((common / unions.clamp(min=1) > iou_thr).cpu())
    best = order[kept.to(order.device)]
    best = best[:max_num] if max_num > 0 else best
    return NMSResult(scores[best], labels[best], best)


def _drop_in_turn(overlaps: Tensor) -> Tensor:
    """Return which masks (n,) are left when each that still is drops the later ones it overlaps (n, n)."""
    left = torch.ones(len(overlaps), dtype=torch.bool)
    for index in range(len(left)):
        if left[index]:
            left[index + 1 :] &= ~overlaps[index, index + 1 :]
    return left
