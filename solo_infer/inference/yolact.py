"""From network inputs to detections of YOLACT, with mmdet's or the original rules and order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from solo_infer.config import YOLACTPostprocessConfig
from solo_infer.inference.cuda_graphs import GraphCache
from solo_infer.inference.detections import Detections, empty_detections
from solo_infer.inference.network_graphs import run_network
from solo_infer.inference.preprocess import Geometry
from solo_infer.models.yolact.anchors import LevelSizes, decode, level_sizes
from solo_infer.models.yolact.head import ANCHORS_PER_CELL, Predictions, YOLACTOutput
from solo_infer.models.yolact.masks import crop, mask_scores
from solo_infer.ops.fast_nms import fast_nms
from solo_infer.ops.paste_masks import paste_masks
from solo_infer.runtime.stopwatch import Stopwatch

if TYPE_CHECKING:
    from solo_infer.models.yolact.network import YOLACTNetwork

CHUNK_BYTES = 64 << 20  # bytes of float32 masks per step; a step needs about four times this


class Instances(NamedTuple):
    """Instances of one image before their masks are computed."""

    boxes: Tensor  # (K, 4) float32 x1 y1 x2 y2 in pixels of the network input
    scores: Tensor  # (K,) float32, descending
    labels: Tensor  # (K,) int64
    coefficients: Tensor  # (K, P) float32


def detect_batch(
    graphs: GraphCache,
    network: YOLACTNetwork,
    inputs: Tensor,
    geometries: Sequence[Geometry],
    thresholds: YOLACTPostprocessConfig,
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
        detections = decode_output(network, output, geometries, thresholds, class_mask)
    stopwatch.mark("post")
    return detections


def _forward(network: YOLACTNetwork, inputs: Tensor, stopwatch: Stopwatch) -> YOLACTOutput:
    """Run a network stage by stage."""
    maps = network.backbone(inputs)
    stopwatch.mark("backbone")
    levels = network.neck(maps[1:])
    stopwatch.mark("pyramid")
    predictions = network.bbox_head(levels)
    stopwatch.mark("classes")
    output = YOLACTOutput(predictions, network.mask_head(levels[0]), level_sizes(levels))
    stopwatch.mark("masks")
    return output


def decode_output(
    network: YOLACTNetwork,
    output: YOLACTOutput,
    geometries: Sequence[Geometry],
    thresholds: YOLACTPostprocessConfig,
    class_mask: Tensor | None = None,
) -> list[Detections]:
    """Turn the raw outputs of a network for a batch into detections; see ``detect_batch``."""
    anchors = network.anchors(output.sizes, geometries[0].padded, output.prototypes.device)
    detections = []
    for index, geometry in enumerate(geometries):
        predictions = Predictions(*(values[index] for values in output.predictions))
        scores = class_scores(predictions.logits)
        if class_mask is not None:
            scores = scores * class_mask
        # mmdet clips boxes before it compares them; the original implementation does not.
        clip_size = None if network.config.is_original else geometry.resized
        instances = find_instances(scores, predictions, anchors, output.sizes, clip_size, thresholds)
        detections.append(make_detections(instances, output.prototypes[index], geometry, thresholds.mask_thr))
    return detections


def class_scores(logits: Tensor) -> Tensor:
    """Return the scores (..., classes) of logits (..., classes + 1) with the background last."""
    return logits.softmax(dim=-1)[..., :-1]


def find_instances(
    scores: Tensor,
    predictions: Predictions,
    anchors: Tensor,
    sizes: LevelSizes,
    clip_size: tuple[int, int] | None,
    thresholds: YOLACTPostprocessConfig,
) -> Instances:
    """Select anchors, decode their boxes and run Fast NMS.

    Args:
        scores: (A, classes) float32 in 0..1 of one image.
        predictions: Predictions of the anchors of the image, without the batch axis.
        anchors: (A, 4) float32 x1 y1 x2 y2 in pixels.
        sizes: (height, width) of the feature map of each level.
        clip_size: (height, width) in pixels that boxes are clipped to before NMS; None to not clip them.
        thresholds: Post-processing settings.
    """
    candidates = _select_anchors(scores, sizes, thresholds)
    boxes = decode(predictions.deltas[candidates], anchors[candidates], clip_size)
    kept = fast_nms(
        boxes,
        scores[candidates],
        iou_thr=thresholds.iou_thr,
        filter_thr=thresholds.filter_thr,
        top_k=thresholds.top_k,
        max_num=thresholds.max_per_image,
        across_classes=thresholds.across_classes,
    )
    coefficients = predictions.coefficients[candidates[kept.keep]]
    return Instances(boxes[kept.keep], kept.scores, kept.labels, coefficients)


def _select_anchors(scores: Tensor, sizes: LevelSizes, thresholds: YOLACTPostprocessConfig) -> Tensor:
    """Return the anchors (K,) int64, ascending, that enter Fast NMS."""
    best = scores.amax(dim=1)
    selected, start = [], 0
    for height, width in sizes:
        count = height * width * ANCHORS_PER_CELL
        level = best[start : start + count]
        if count > thresholds.nms_pre:
            anchors = level.topk(thresholds.nms_pre).indices.sort().values
            anchors = anchors[level[anchors] > thresholds.score_thr]
        else:
            anchors = torch.nonzero(level > thresholds.score_thr).flatten()
        selected.append(anchors + start)
        start += count
    return torch.cat(selected)


def make_detections(
    instances: Instances, prototypes: Tensor, geometry: Geometry, mask_thr: float
) -> Detections:
    """Return instances with their masks at the original size of the image.

    Args:
        instances: Instances of one image.
        prototypes: (P, h, w) float32.
        geometry: Sizes of the image; it fills the whole network input.
        mask_thr: Mask score that a pixel of a mask must exceed.
    """
    if len(instances.scores) == 0:
        return empty_detections(geometry.original, prototypes.device)
    relative = instances.boxes / instances.boxes.new_tensor([*geometry.resized[::-1]] * 2)
    boxes = image_boxes(relative, geometry.original)
    packed = _packed_masks(instances.coefficients, prototypes, relative, geometry.original, mask_thr)
    return Detections(instances.scores, instances.labels, boxes, packed)


def image_boxes(relative: Tensor, size: tuple[int, int]) -> Tensor:
    """Return boxes (K, 4) x1 y1 x2 y2 in pixels of an image of (height, width), clipped to it.

    Args:
        relative: (K, 4) boxes as fractions of the width and height of the image.
        size: (height, width) of the image in pixels.
    """
    from torchvision.ops import clip_boxes_to_image  # here, because torchvision takes seconds to import

    height, width = size
    return clip_boxes_to_image(relative * relative.new_tensor([width, height] * 2), size)


def _packed_masks(
    coefficients: Tensor, prototypes: Tensor, relative: Tensor, size: tuple[int, int], mask_thr: float
) -> Tensor:
    """Return masks (K, H, ceil(W / 8)) of one image, some at a time."""
    step = max(CHUNK_BYTES // (4 * prototypes.shape[-2] * prototypes.shape[-1]), 1)
    packed = []
    for weights, boxes in zip(coefficients.split(step), relative.split(step), strict=True):
        soft = crop(mask_scores(weights, prototypes), boxes)  # (k, h, w)
        packed.append(paste_masks(soft, size, size, size, mask_thr).packed)
    return torch.cat(packed)
