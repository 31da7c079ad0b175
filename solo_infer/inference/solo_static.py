"""From network inputs to detections of SOLO with static shapes and one host synchronization per batch.

Preprocessing, the network, NMS and the soft masks of the detections are launched without reading a result;
all shapes follow from the batch, the padded size and the settings, so that one CUDA graph can hold them. Then
the host reads the numbers of detections and candidates and resizes just those masks. Images with more
candidates than ``CAPACITIES[0]`` run again with a larger capacity. Images with more than ``CAPACITIES[-1]``
are left to the dynamic path (``inference.solo``), whose memory is bounded for any number.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from solo_infer.config import PostprocessConfig
from solo_infer.inference.cuda_graphs import GraphCache
from solo_infer.inference.detections import Detections
from solo_infer.inference.nms import compared_labels
from solo_infer.inference.preprocess import Geometry
from solo_infer.inference.solo import Features, detect_features, extract_features, paste_soft_masks
from solo_infer.models.solo.cells import CellTable
from solo_infer.models.solo.masks import CandidateMasks
from solo_infer.ops.matrix_nms import decay_factors
from solo_infer.runtime.device import graphs_allowed
from solo_infer.runtime.stopwatch import Stopwatch

if TYPE_CHECKING:
    from solo_infer.models.solo.network import SOLONetwork

# Candidates per image. A COCO photo has a few hundred at the published thresholds.
CAPACITIES = (512, 2048)


class StaticCandidates(NamedTuple):
    """The candidates of each image of a batch, in mmdet's order, padded to a capacity S."""

    cells: Tensor  # (N, S) int64, 0 in the padding
    labels: Tensor  # (N, S) int64, 0 in the padding
    scores: Tensor  # (N, S) float32
    valid: Tensor  # (N, S) bool
    counts: Tensor  # (N,) int64, number of candidates, which may exceed S


class StaticDetections(NamedTuple):
    """The detections of each image of a batch, best first, padded to M."""

    scores: Tensor  # (N, M) float32
    labels: Tensor  # (N, M) int64
    masks: Tensor  # (N, M, H/4, W/4) float32 in 0..1
    counts: Tensor  # (2, N) int64: detections; candidates, which may exceed the capacity


def is_supported(device: torch.device, thresholds: PostprocessConfig) -> bool:
    """Return whether a device gains from static shapes and the settings allow them."""
    return thresholds.nms == "matrix" and graphs_allowed(device)


def detect_batch(
    graphs: GraphCache,
    network: SOLONetwork,
    inputs: Tensor,
    geometries: Sequence[Geometry],
    thresholds: PostprocessConfig,
    class_mask: Tensor,
    stopwatch: Stopwatch,
) -> list[Detections]:
    """Return the detections of each image of a batch, with one host synchronization.

    Args:
        graphs: Graphs of the network.
        network: Optimized network.
        inputs: (N, 3, H, W) network inputs, channels_last, in the network's dtype.
        geometries: Sizes of the images.
        thresholds: Post-processing settings.
        class_mask: (classes,) float32, 0 for excluded classes.
        stopwatch: Marks the stages. If it synchronizes at each mark, no graph is used, as with
            deformable convolutions, which a graph does not hold.
    """
    if stopwatch.synchronizes or network.config.is_deformable:
        features = extract_features(network, inputs, class_mask, stopwatch)
        detections = detect_static(network, features, thresholds, CAPACITIES[0], stopwatch)
        results = _read_back(network, features, detections, geometries, thresholds)
    else:

        def compute(inputs: Tensor, class_mask: Tensor) -> tuple[Features, StaticDetections]:
            features = extract_features(network, inputs, class_mask, Stopwatch())
            return features, detect_static(network, features, thresholds, CAPACITIES[0], Stopwatch())

        key = (tuple(inputs.shape), inputs.dtype, inputs.device, CAPACITIES[0], thresholds)
        with graphs.run(network, key, compute, (inputs, class_mask)) as (features, detections):
            results = _read_back(network, features, detections, geometries, thresholds)
    stopwatch.mark("post")
    return results


def detect_static(
    network: SOLONetwork,
    features: Features,
    thresholds: PostprocessConfig,
    capacity: int,
    stopwatch: Stopwatch,
) -> StaticDetections:
    """Turn feature maps and class scores into detections, for images with at most ``capacity`` candidates."""
    from solo_infer.models.optimized.static_masks import (
        static_masks,  # here, because torchvision takes seconds to import
    )

    masks = static_masks(network.mask_head, features.levels)
    stopwatch.mark("masks")
    candidates = select_candidates(features.scores, thresholds.score_thr, capacity)
    return apply_matrix_nms(candidates, masks, network.mask_head.cells, thresholds)


def select_candidates(scores: Tensor, score_thr: float, capacity: int) -> StaticCandidates:
    """Return the candidates among the class scores (N, cells, classes), padded to a capacity."""
    images, _, classes = scores.shape
    flat = scores.flatten(1)
    above = flat > score_thr
    position = above.cumsum(1) - 1
    # One more position than the capacity takes everything else.
    position = position.masked_fill(~above, capacity).clamp(max=capacity)
    pairs = torch.arange(flat.shape[1], dtype=torch.int64, device=flat.device).expand_as(position)
    selected = torch.zeros((images, capacity + 1), dtype=torch.int64, device=flat.device)
    selected = selected.scatter_(1, position, pairs)[:, :capacity]
    counts = above.sum(1)
    valid = torch.arange(capacity, dtype=torch.int64, device=flat.device) < counts[:, None]
    cells = selected.div(classes, rounding_mode="floor")
    return StaticCandidates(cells, selected % classes, flat.gather(1, selected), valid, counts)


def apply_matrix_nms(
    candidates: StaticCandidates, masks: CandidateMasks, table: CellTable, thresholds: PostprocessConfig
) -> StaticDetections:
    """Rescore by maskness, drop small masks and run Matrix-NMS; see ``inference.solo.apply_nms``."""
    areas, sums, packed = masks.statistics(candidates.cells, thresholds.mask_thr)
    maskness = sums / areas.clamp(min=1)
    valid = candidates.valid & (areas > table.stride[candidates.cells])
    scores, entering = _top((candidates.scores * maskness).masked_fill(~valid, -1.0), thresholds.nms_pre)
    labels, areas = candidates.labels.gather(1, entering), areas.gather(1, entering)
    packed = packed.gather(1, entering[..., None].expand(-1, -1, packed.shape[2]))
    groups = compared_labels(labels, thresholds)
    factors = decay_factors(packed, areas, groups, thresholds.kernel, thresholds.sigma)
    scores = (scores * factors).masked_fill(scores < 0, -1.0)
    scores, best = _top(scores, thresholds.max_per_image)
    cells = candidates.cells.gather(1, entering.gather(1, best))
    kept = (scores >= thresholds.filter_thr).sum(1)
    chunks = cells.split(masks.chunk_length(cells), dim=1)
    soft = torch.cat([masks.scores(chunk) for chunk in chunks], dim=1)
    return StaticDetections(scores, labels.gather(1, best), soft, torch.stack([kept, candidates.counts]))


def _top(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the ``count`` greatest scores (N, k) of each image and their indices, ties in order."""
    values, order = scores.sort(dim=1, descending=True, stable=True)
    return values[:, :count], order[:, :count]


def _read_back(
    network: SOLONetwork,
    features: Features,
    detections: StaticDetections,
    geometries: Sequence[Geometry],
    thresholds: PostprocessConfig,
) -> list[Detections]:
    """Return the detections of each image; images with too many candidates run again."""
    kept, candidates = detections.counts.tolist()  # the one host synchronization
    results = []
    for image, geometry in enumerate(geometries):
        if candidates[image] <= CAPACITIES[0]:
            results.append(_full_size(detections, image, kept[image], geometry, thresholds))
            continue
        image_features = Features(
            [level[image, None] for level in features.levels], features.scores[image, None]
        )
        if candidates[image] > CAPACITIES[-1]:
            results += detect_features(network, image_features, [geometry], thresholds, Stopwatch())
            continue
        capacity = next(capacity for capacity in CAPACITIES if capacity >= candidates[image])
        again = detect_static(network, image_features, thresholds, capacity, Stopwatch())
        results.append(_full_size(again, 0, int(again.counts[0, 0]), geometry, thresholds))
    return results


def _full_size(
    detections: StaticDetections,
    image: int,
    count: int,
    geometry: Geometry,
    thresholds: PostprocessConfig,
) -> Detections:
    """Return the first ``count`` detections of an image as copies; the originals may belong to a graph."""
    soft = detections.masks[image, :count]
    packed, boxes = paste_soft_masks(soft, geometry, thresholds.mask_thr)
    scores, labels = detections.scores[image, :count].clone(), detections.labels[image, :count].clone()
    return Detections(scores, labels, boxes, packed)
