"""From YOLACT's predictions to detections, with bounded memory; mmdet's rules and order, or the author's."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from solo_infer.config import YOLACTPostprocessConfig
from solo_infer.inference.preprocess import Geometry
from solo_infer.inference.solo import CHUNK_BYTES, Detections
from solo_infer.models.yolact.anchors import Sizes, clip, decode
from solo_infer.models.yolact.masks import crop, mask_scores
from solo_infer.models.yolact.network import ANCHORS_PER_CELL, Predictions
from solo_infer.ops.fast_nms import FastNMSResult, fast_nms
from solo_infer.ops.paste_masks import paste_masks


@dataclass(frozen=True)
class Instances:
    """What is found in one image, before its masks are made."""

    boxes: Tensor  # (K, 4) float32 x1 y1 x2 y2 in pixels of the network input
    scores: Tensor  # (K,) float32, falling
    labels: Tensor  # (K,) int64
    coefficients: Tensor  # (K, P) float32


def class_scores(logits: Tensor) -> Tensor:
    """Return the scores (..., classes) of logits (..., classes + 1), of which the background is the last."""
    return logits.softmax(dim=-1)[..., :-1]


def find_instances(
    scores: Tensor,
    found: Predictions,
    image: int,
    anchors: Tensor,
    levels: Sizes,
    clip_to: tuple[int, int] | None,
    thresholds: YOLACTPostprocessConfig,
) -> Instances:
    """Choose anchors, decode their boxes and run Fast NMS.

    Args:
        scores: (A, classes) float32 in 0..1 of one image.
        found: Of the batch.
        image: Index of the image in the batch.
        anchors: (A, 4) float32 x1 y1 x2 y2 in pixels.
        levels: (height, width) of each level's feature map.
        clip_to: Height and width in pixels that boxes are clipped to before they are compared (mmdet);
            None to compare them as they are (the author).
        thresholds: All settings.
    """
    chosen = _best_anchors(scores, levels, thresholds)
    boxes = decode(found.deltas[image, chosen], anchors[chosen], clip_to)
    kept: FastNMSResult = fast_nms(
        boxes,
        scores[chosen],
        iou_thr=thresholds.iou_thr,
        filter_thr=thresholds.filter_thr,
        top_k=thresholds.top_k,
        max_num=thresholds.max_per_image,
    )
    coefficients = found.coefficients[image, chosen[kept.keep]]
    return Instances(boxes[kept.keep], kept.scores, kept.labels, coefficients)


def _best_anchors(scores: Tensor, levels: Sizes, thresholds: YOLACTPostprocessConfig) -> Tensor:
    """Return the anchors (K,) int64, ascending, that enter Fast NMS."""
    best = scores.amax(dim=1)
    parts, start = [], 0
    for height, width in levels:
        count = height * width * ANCHORS_PER_CELL
        level = best[start : start + count]
        if count > thresholds.nms_pre:
            members = level.topk(thresholds.nms_pre).indices.sort().values
            members = members[level[members] > thresholds.score_thr]
        else:
            members = torch.nonzero(level > thresholds.score_thr).flatten()
        parts.append(members + start)
        start += count
    return torch.cat(parts)


def make_detections(
    instances: Instances, prototypes: Tensor, geometry: Geometry, mask_thr: float
) -> Detections:
    """Return instances with their masks, all at the original size of the image.

    Args:
        instances: Of one image.
        prototypes: (P, h, w) float32.
        geometry: The image's sizes; it fills the whole network input.
        mask_thr: A pixel belongs to a mask if its score is greater.
    """
    height, width = geometry.original
    limits = instances.boxes.new_tensor([*geometry.resized[::-1]] * 2)
    relative = instances.boxes / limits
    scale = instances.boxes.new_tensor([width, height] * 2)
    packed = _packed_masks(instances.coefficients, prototypes, relative, geometry.original, mask_thr)
    boxes = clip(relative * scale, geometry.original)
    return Detections(instances.scores, instances.labels, boxes, packed)


def _packed_masks(
    coefficients: Tensor, prototypes: Tensor, relative: Tensor, size: tuple[int, int], mask_thr: float
) -> Tensor:
    """Return masks (K, H, ceil(W / 8)) of one image, some at a time."""
    if len(coefficients) == 0:
        return torch.zeros((0, size[0], (size[1] + 7) // 8), dtype=torch.uint8, device=prototypes.device)
    sides = (prototypes.shape[-2], prototypes.shape[-1])
    length = max(CHUNK_BYTES // (4 * sides[0] * sides[1]), 1)
    packed = []
    for weights, boxes in zip(coefficients.split(length), relative.split(length), strict=True):
        soft = crop(mask_scores(weights, prototypes), boxes)  # (k, h, w)
        packed.append(paste_masks(soft, size, size, size, mask_thr).packed)
    return torch.cat(packed)
