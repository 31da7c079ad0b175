"""Greedy mask NMS: detections of equal label that overlap a kept one are dropped; scores do not change.

AdelaiDet, the code of the SOLO authors, offers it beside Matrix-NMS (``mask_nms``, threshold 0.5).

Both functions share these arguments:

* ``labels``: (N,) int64, ``scores``: (N,) float32, ``areas``: (N,) float32 pixels of the masks.
* ``iou_thr``: maximum IoU of two kept masks of equal label, 0..1. Of equal scores the first one ranks higher.
* ``nms_pre``: number of detections that enter, highest scores first; all if it is not positive.
* ``max_num``: maximum number of detections to keep, highest scores first; all if it is not positive.
* ``filter_thr``: minimum score; no minimum if it is not positive.
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
    """Run greedy NMS on bool masks (N, H, W); the module docstring describes the other arguments."""
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
    mask_index: Tensor | None = None,
) -> NMSResult:
    """Run greedy NMS on packed masks; the module docstring describes the other arguments.

    ``packed`` (M, B) uint8 are flattened masks packed by ``packed_masks.pack``. ``mask_index`` (N,) int64 is
    the row of ``packed`` of each detection, where detections may share a row. It defaults to one row per
    detection, in the same order.
    """
    order = scores.argsort(descending=True, stable=True)
    order = order[:nms_pre] if nms_pre > 0 else order
    if filter_thr > 0:  # detections below the minimum can only suppress others below it
        order = order[scores[order] >= filter_thr]
    rows = order if mask_index is None else mask_index[order]
    intersections = same_label_intersections(packed[rows], labels[order])
    unions = areas[order][:, None] + areas[order][None] - intersections
    kept = _suppress_in_order((intersections / unions.clamp(min=1) > iou_thr).cpu())
    best = order[kept.to(order.device)]
    best = best[:max_num] if max_num > 0 else best
    return NMSResult(scores[best], labels[best], best)


def _suppress_in_order(overlaps: Tensor) -> Tensor:
    """Return which detections (N,) remain if each remaining one drops later ones by overlaps (N, N)."""
    kept = torch.ones(len(overlaps), dtype=torch.bool, device="cpu")
    for index in range(len(kept)):
        if kept[index]:
            kept[index + 1 :] &= ~overlaps[index, index + 1 :]
    return kept
