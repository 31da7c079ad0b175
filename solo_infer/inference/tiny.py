"""From network inputs to detections of Tiny."""

from __future__ import annotations

import math
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
from solo_infer.models.tiny.head import CellPredictions
from solo_infer.models.tiny.masks import decode_boxes, mask_logits, pixels_in_boxes
from solo_infer.models.tiny.network import TinyNetwork, TinyOutput
from solo_infer.ops.box_nms import box_nms
from solo_infer.ops.mask_statistics import mask_statistics
from solo_infer.ops.paste_masks import PastedMasks, paste_masks
from solo_infer.runtime.stopwatch import Stopwatch

# A mask ends where the box of its cell, widened by a fraction of its sides and by input pixels, ends.
_MARGIN, _MARGIN_PIXELS = 0.2, 8.0
# Logits are clipped to this before masks are resized, so that one pixel cannot outweigh its neighbors.
_LOGIT_LIMIT = 15.0


class Instances(NamedTuple):
    """Instances of one image before their masks are resized."""

    scores: Tensor  # (K,) float32, descending
    labels: Tensor  # (K,) int64
    mask_logits: Tensor  # (K, h, w) float32 at stride 4


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
        scores = class_scores(cells.class_logits, class_mask)
        instances = find_instances(scores, cells, output.points, output.features[index], thresholds)
        detections.append(_full_size(instances, geometry, thresholds.mask_thr))
    return detections


def class_scores(class_logits: Tensor, class_mask: Tensor | None = None) -> Tensor:
    """Return the scores, float32 in 0..1, of class logits (..., classes); 0 for excluded classes."""
    scores = class_logits.float().sigmoid()
    return scores if class_mask is None else scores * class_mask


def find_instances(
    scores: Tensor,
    cells: CellPredictions,
    points: Tensor,
    features: Tensor,
    thresholds: TinyPostprocessConfig,
) -> Instances:
    """Select cells by score and box, compute their masks and run NMS.

    Args:
        scores: (cells, classes) float32 of one image.
        cells: Predictions of its cells, without the batch axis.
        points: (cells, 3) float32 x, y and stride of the cells.
        features: (C, h, w) mask features of the image.
        thresholds: Post-processing settings.
    """
    index, labels, candidate_scores = _best_candidates(scores, thresholds)
    boxes = decode_boxes(cells.distance_logits[index], points[index])
    # Masks are costly: most duplicates are removed by their boxes before masks are computed.
    groups = compared_labels(labels, thresholds)
    kept = _box_nms(boxes, candidate_scores, groups, thresholds.box_iou)
    index, labels, candidate_scores, boxes = index[kept], labels[kept], candidate_scores[kept], boxes[kept]
    logits = cell_mask_logits(cells.kernels[index], boxes, features)
    if not len(logits):
        return Instances(candidate_scores, labels, logits)
    areas, sums, packed = mask_statistics(logits.sigmoid(), thresholds.mask_thr)
    maskness = sums / areas.clamp(min=1)  # mean mask score inside the mask
    filled = torch.nonzero(areas).flatten()
    if not len(filled):
        return Instances(candidate_scores[filled], labels[filled], logits[filled])
    result = nms_function(thresholds)(
        packed[filled],
        areas[filled],
        labels[filled],
        (candidate_scores * maskness)[filled],
        nms_pre=thresholds.nms_pre,
        max_num=thresholds.max_per_image,
        filter_thr=thresholds.filter_thr,
    )
    return Instances(result.scores, result.labels, logits[filled[result.keep]])


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


def _best_candidates(scores: Tensor, thresholds: TinyPostprocessConfig) -> tuple[Tensor, Tensor, Tensor]:
    """Return cells (K,), labels (K,) and scores (K,) of the best (cell, class) pairs of one image."""
    cells, labels = torch.nonzero(scores > thresholds.score_thr, as_tuple=True)
    values = scores[cells, labels]
    best = values.argsort(descending=True, stable=True)[: thresholds.nms_pre]
    return cells[best], labels[best], values[best]


def cell_mask_logits(kernels: Tensor, boxes: Tensor, features: Tensor) -> Tensor:
    """Return the mask logits (..., K, h, w) float32 of cells, clipped, and lowest far outside of their boxes.

    Args:
        kernels: (..., K, C + 6) predicted kernels.
        boxes: (..., K, 4) float32 x1 y1 x2 y2 in input pixels.
        features: (..., C, h, w) mask features of the images.
    """
    logits = mask_logits(kernels, boxes, features)
    margin = _MARGIN * (boxes[..., 2:] - boxes[..., :2]) + _MARGIN_PIXELS
    widened = torch.cat([boxes[..., :2] - margin, boxes[..., 2:] + margin], dim=-1)
    outside = ~pixels_in_boxes(widened, logits.shape[-2], logits.shape[-1])
    return logits.clamp_(-_LOGIT_LIMIT, _LOGIT_LIMIT).masked_fill_(outside, -_LOGIT_LIMIT)


def _full_size(instances: Instances, geometry: Geometry, mask_thr: float) -> Detections:
    """Return instances with packed masks and boxes at the original size of the image."""
    if not len(instances.scores):
        return empty_detections(geometry.original, instances.scores.device)
    packed, boxes = paste_soft_masks(soft_masks(instances.mask_logits), geometry, mask_thr)
    return Detections(instances.scores, instances.labels, boxes, packed)


def soft_masks(logits: Tensor) -> Tensor:
    """Return clipped mask logits as soft masks in 0..1, which are linear in the logit and 0.5 at 0.

    Logits are resized, not scores: between two pixels, the outline then lies where the nearly linear logit
    crosses the threshold.
    """
    return logits / (2 * _LOGIT_LIMIT) + 0.5


def paste_soft_masks(soft: Tensor, geometry: Geometry, mask_thr: float) -> PastedMasks:
    """Return packed masks and boxes of soft masks (K, h, w) at the original size of the image.

    Args:
        soft: From ``soft_masks``.
        geometry: Sizes of the image.
        mask_thr: Mask score that a pixel of a mask must exceed, 0..1.
    """
    threshold = min(max(_logit(mask_thr) / (2 * _LOGIT_LIMIT) + 0.5, 0.0), 1.0)
    return paste_masks(soft, geometry.padded, geometry.resized, geometry.original, threshold)


def _logit(score: float) -> float:
    return math.log(score / (1 - score)) if 0 < score < 1 else math.copysign(math.inf, score - 0.5)
