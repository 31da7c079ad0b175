"""From network inputs to detections of Tiny."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from solo_infer.config import TinyPostprocessConfig
from solo_infer.inference.cuda_graphs import GraphCache
from solo_infer.inference.detections import Detections, empty_detections
from solo_infer.inference.network_graphs import run_network
from solo_infer.inference.nms import compared_labels, nms_function
from solo_infer.inference.preprocess import Geometry
from solo_infer.inference.tiny_masks import cell_masks, logit, paste_soft_masks
from solo_infer.models.tiny.head import CellPredictions
from solo_infer.models.tiny.masks import decode_boxes
from solo_infer.models.tiny.network import TinyNetwork, TinyOutput
from solo_infer.ops.box_nms import box_nms, box_overlaps
from solo_infer.ops.pairs_above import pairs_above
from solo_infer.runtime.stopwatch import Stopwatch

# Cells of a kept box and of the boxes with at least this IoU that NMS removes see the same object.
_DUPLICATE_IOU = 0.75


class Instances(NamedTuple):
    """Instances of one image before their masks are resized."""

    scores: Tensor  # (K,) float32, descending
    labels: Tensor  # (K,) int64
    soft: Tensor  # (K, h, w) float32 soft masks at stride 4, see ``soft_masks``


def detect_batch(
    graphs: GraphCache,
    network: TinyNetwork,
    inputs: Tensor,
    geometries: Sequence[Geometry],
    thresholds: TinyPostprocessConfig,
    class_mask: Tensor | None,
    stopwatch: Stopwatch,
) -> list[Detections]:
    """Return the detections of each image of a batch.

    Args:
        graphs: CUDA graphs of the network.
        network: Network, plain or optimized.
        inputs: (N, 3, H, W) network inputs.
        geometries: Sizes of the images.
        thresholds: Post-processing settings.
        class_mask: (classes,) float32, 0 for excluded classes. None for no excluded classes.
        stopwatch: Marks the stages "backbone", "pyramid", "classes", "masks" and "post".
    """
    with run_network(graphs, _forward, network, inputs, stopwatch) as output:
        detections = decode_output(output, geometries, thresholds, class_mask)
    stopwatch.mark("post")
    return detections


def _forward(network: TinyNetwork, inputs: Tensor, stopwatch: Stopwatch) -> TinyOutput:
    """Run a network stage by stage."""
    stem, *maps = network.backbone(inputs)
    stopwatch.mark("backbone")
    levels = network.neck(maps)
    stopwatch.mark("pyramid")
    cells = network.head(levels)
    stopwatch.mark("classes")
    output = TinyOutput(cells, network.points(levels), network.mask_branch(stem, levels[:3]))
    stopwatch.mark("masks")
    return output


def decode_output(
    output: TinyOutput,
    geometries: Sequence[Geometry],
    thresholds: TinyPostprocessConfig,
    class_mask: Tensor | None = None,
) -> list[Detections]:
    """Turn the raw outputs of a network for a batch into detections; see ``detect_batch``."""
    detections = []
    for index, geometry in enumerate(geometries):
        cells = CellPredictions(*(values[index] for values in output.cells))
        instances = find_instances(cells, output.points, output.features[index], thresholds, class_mask)
        detections.append(_full_size(instances, geometry, thresholds.mask_thr))
    return detections


def class_scores(class_logits: Tensor, class_mask: Tensor | None = None) -> Tensor:
    """Return the scores, float32 in 0..1, of class logits; 0 for excluded classes.

    Args:
        class_logits: (..., classes), or those of any pairs of a cell and a class.
        class_mask: 0 for excluded classes, of a shape that fits the logits. None for no excluded classes.
    """
    scores = class_logits.float().sigmoid()
    return scores if class_mask is None else scores * class_mask


def find_instances(
    cells: CellPredictions,
    points: Tensor,
    features: Tensor,
    thresholds: TinyPostprocessConfig,
    class_mask: Tensor | None = None,
) -> Instances:
    """Select cells by score and box, compute their masks and run NMS.

    Args:
        cells: Predictions of the cells of one image, without the batch axis.
        points: (cells, 3) float32 x, y and stride of the cells.
        features: (C, h, w) mask features of the image.
        thresholds: Post-processing settings.
        class_mask: (classes,) float32, 0 for excluded classes. None for no excluded classes.
    """
    index, labels, candidate_scores = _best_candidates(cells.class_logits, thresholds, class_mask)
    if not len(index):
        return Instances(candidate_scores, labels, candidate_scores.new_zeros((0, *features.shape[-2:])))
    boxes = decode_boxes(cells.distance_logits[index], points[index])
    # Masks are costly: most duplicates are removed by their boxes before masks are computed.
    groups = compared_labels(labels, thresholds)
    kept = _box_nms(boxes, candidate_scores, groups, thresholds.box_iou)
    overlaps = box_overlaps(boxes[kept], boxes) * (groups[kept][:, None] == groups)
    weights = duplicate_weights(overlaps, candidate_scores, kept)
    kernels, boxes = merge_cells(weights, cells.kernels[index], boxes)
    labels, candidate_scores = labels[kept], candidate_scores[kept]
    masks = cell_masks(kernels, boxes, features)
    areas, sums, packed = masks.statistics(thresholds.mask_thr)
    maskness = sums / areas.clamp(min=1)  # mean mask score inside the mask
    filled = torch.nonzero(areas).flatten()
    if not len(filled):
        return Instances(candidate_scores[filled], labels[filled], masks.soft(filled))
    result = nms_function(thresholds)(
        packed[filled],
        areas[filled],
        labels[filled],
        (candidate_scores * maskness)[filled],
        nms_pre=thresholds.nms_pre,
        max_num=thresholds.max_per_image,
        filter_thr=thresholds.filter_thr,
    )
    return Instances(result.scores, result.labels, masks.soft(filled[result.keep]))


def duplicate_weights(overlaps: Tensor, scores: Tensor, kept: Tensor) -> Tensor:
    """Return the weights (..., M, K) of K candidates in the masks of the M kept ones.

    The candidates whose boxes nearly coincide with a kept one take part with the square of the product of
    score and IoU: the mean of several masks of an object is better than the one with the best score. The
    weights of a mask add up to 1, or are 0 if it has no score.

    Args:
        overlaps: (..., M, K) float32 IoU of the boxes, 0 if NMS does not compare the candidates.
        scores: (..., K) float32 of the candidates.
        kept: (..., M) int64 candidates that NMS keeps.
    """
    itself = kept[..., None] == torch.arange(overlaps.shape[-1], dtype=torch.int64, device=kept.device)
    close = torch.where(overlaps > _DUPLICATE_IOU, overlaps, 0.0)
    shares = torch.where(itself, 1.0, close) * scores[..., None, :]
    least = torch.finfo(torch.float32).tiny
    weights = (shares / shares.amax(dim=-1, keepdim=True).clamp(min=least)).square()
    return weights / weights.sum(dim=-1, keepdim=True).clamp(min=least)


def merge_cells(weights: Tensor, kernels: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean kernels (..., M, C + 6) and boxes (..., M, 4) of candidates, float32.

    Args:
        weights: (..., M, K) from ``duplicate_weights``.
        kernels: (..., K, C + 6) predicted kernels.
        boxes: (..., K, 4) float32 x1 y1 x2 y2.
    """
    return weights @ kernels.float(), weights @ boxes


def _box_nms(boxes: Tensor, scores: Tensor, labels: Tensor, iou_threshold: float) -> Tensor:
    """Return the indices (M,) of the boxes that NMS within each class keeps, the best first.

    As in ``torchvision.ops.batched_nms``, the boxes of each class are moved to a region of their own. That
    function creates a tensor on the default device of the caller, and its regions overlap if boxes extend
    beyond the top left of the image.
    """
    if not len(boxes):
        return labels
    moved = boxes - boxes.min()
    offsets = labels.to(moved.dtype) * (moved.max() + 1)
    return box_nms(moved + offsets[:, None], scores, iou_threshold)


def _best_candidates(
    class_logits: Tensor, thresholds: TinyPostprocessConfig, class_mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return cells (K,), labels (K,) and scores (K,) of the best (cell, class) pairs of one image."""
    # Most logits are low: the scores of the others only are computed.
    cells, labels = pairs_above(class_logits.float(), _low_logit(thresholds.score_thr))
    values = class_scores(class_logits[cells, labels], None if class_mask is None else class_mask[labels])
    above = torch.nonzero(values > thresholds.score_thr).flatten()
    best = above[values[above].argsort(descending=True, stable=True)[: thresholds.nms_pre]]
    return cells[best], labels[best], values[best]


def _low_logit(score_thr: float) -> float:
    """Return a logit up to which no score, however rounded, is above a threshold 0..1."""
    margin = 1e-3 + 1e-6 / (1 - score_thr) if score_thr < 1 else 0.0
    return logit(score_thr) - margin


def _full_size(instances: Instances, geometry: Geometry, mask_thr: float) -> Detections:
    """Return instances with packed masks and boxes at the original size of the image."""
    if not len(instances.scores):
        return empty_detections(geometry.original, instances.scores.device)
    packed, boxes = paste_soft_masks(instances.soft, geometry, mask_thr)
    return Detections(instances.scores, instances.labels, boxes, packed)
