"""From network inputs to detections of SOLO, with mmdet's rules and order and with bounded memory.

The masks of all candidates never exist at the same time. They are computed in chunks, of which only area,
maskness and packed bits are kept. The masks that survive NMS are computed again, a few at a time, for the
resize to the original size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from solo_infer.config import PostprocessConfig
from solo_infer.inference.detections import Detections, empty_detections
from solo_infer.inference.nms import nms_function
from solo_infer.inference.preprocess import Geometry
from solo_infer.models.solo.masks import CandidateMasks
from solo_infer.models.solo.scores import class_scores_from_logits
from solo_infer.ops.matrix_nms import NMSResult
from solo_infer.ops.pairs_above import pairs_above
from solo_infer.ops.paste_masks import PastedMasks, paste_masks
from solo_infer.runtime.stopwatch import Stopwatch

if TYPE_CHECKING:
    from solo_infer.models.solo.network import SOLONetwork


class Candidates(NamedTuple):
    """(Cell, class) pairs of one image above the score threshold, in mmdet's order."""

    cells: Tensor  # (K,) int64, ascending
    labels: Tensor  # (K,) int64
    scores: Tensor  # (K,) float32


class Features(NamedTuple):
    """Feature maps and class scores of a batch."""

    levels: list[Tensor]  # five inputs of the head
    scores: Tensor  # (N, cells, classes) float32, zero for excluded classes


def detect_batch(
    network: SOLONetwork,
    inputs: Tensor,
    geometries: Sequence[Geometry],
    thresholds: PostprocessConfig,
    class_mask: Tensor | None,
    stopwatch: Stopwatch,
) -> list[Detections]:
    """Return the detections of each image of a batch.

    Args:
        network: Network, plain or optimized.
        inputs: (N, 3, H, W) network inputs.
        geometries: Sizes of the images.
        thresholds: Post-processing settings.
        class_mask: (classes,) float32, 0 for excluded classes. None for no excluded classes.
        stopwatch: Marks the stages "backbone", "pyramid", "classes", "masks" and "post".
    """
    features = extract_features(network, inputs, class_mask, stopwatch)
    return detect_features(network, features, geometries, thresholds, stopwatch)


def extract_features(
    network: SOLONetwork, inputs: Tensor, class_mask: Tensor | None, stopwatch: Stopwatch
) -> Features:
    """Run a network up to the class scores; see ``detect_batch``."""
    maps = network.backbone(inputs)
    stopwatch.mark("backbone")
    levels = network.neck(maps)
    stopwatch.mark("pyramid")
    scores = class_scores_from_logits(network.mask_head.class_logits(levels))
    if class_mask is not None:
        scores = scores * class_mask
    stopwatch.mark("classes")
    return Features(levels, scores)


def detect_features(
    network: SOLONetwork,
    features: Features,
    geometries: Sequence[Geometry],
    thresholds: PostprocessConfig,
    stopwatch: Stopwatch,
) -> list[Detections]:
    """Turn feature maps and class scores of a batch into detections; see ``detect_batch``."""
    candidates_per_image = [find_candidates(scores, thresholds.score_thr) for scores in features.scores]
    cells = [candidates.cells.unique_consecutive() for candidates in candidates_per_image]
    masks_per_image = network.mask_head.masks(features.levels, cells)
    stopwatch.mark("masks")
    strides = network.mask_head.cells.stride
    detections = [
        detect_image(candidates, masks, strides, geometry, thresholds)
        for candidates, masks, geometry in zip(candidates_per_image, masks_per_image, geometries, strict=True)
    ]
    stopwatch.mark("post")
    return detections


def find_candidates(class_scores: Tensor, score_thr: float) -> Candidates:
    """Return the candidates among the class scores (cells, classes) of one image."""
    cells, labels = pairs_above(class_scores, score_thr)
    return Candidates(cells, labels, class_scores[cells, labels])


def detect_image(
    candidates: Candidates,
    masks: CandidateMasks,
    strides: Tensor,
    geometry: Geometry,
    thresholds: PostprocessConfig,
) -> Detections:
    """Turn the candidates of one image into its detections.

    Args:
        candidates: Result of ``find_candidates``.
        masks: Masks of their cells.
        strides: (cells,) stride of the level of each cell.
        geometry: Sizes of the image.
        thresholds: Post-processing settings.
    """
    kept = apply_nms(candidates, masks, strides, thresholds) if len(candidates.cells) else None
    if kept is None or len(kept.scores) == 0:
        return empty_detections(geometry.original, candidates.scores.device)
    packed, boxes = full_size_masks(masks, candidates.cells[kept.keep], geometry, thresholds.mask_thr)
    return Detections(kept.scores, kept.labels, boxes, packed)


def apply_nms(
    candidates: Candidates, masks: CandidateMasks, strides: Tensor, thresholds: PostprocessConfig
) -> NMSResult | None:
    """Rescore candidates by maskness, drop small masks and run NMS; see ``detect_image``.

    Returns:
        The result of NMS, whose ``keep`` indexes the candidates; None if all masks are too small.
    """
    # Cells are ascending: the classes of one cell are adjacent and share its mask.
    cells, mask_index = candidates.cells.unique_consecutive(return_inverse=True)
    areas, sums, packed = masks.statistics(cells, thresholds.mask_thr)
    maskness = sums / areas.clamp(min=1)  # mean mask score inside the mask
    large = torch.nonzero((areas > strides[cells])[mask_index]).flatten()
    if len(large) == 0:
        return None
    mask_index = mask_index[large]
    kept = nms_function(thresholds)(
        packed,
        areas[mask_index],
        candidates.labels[large],
        candidates.scores[large] * maskness[mask_index],
        nms_pre=thresholds.nms_pre,
        max_num=thresholds.max_per_image,
        filter_thr=thresholds.filter_thr,
        mask_index=mask_index,
    )
    return kept._replace(keep=large[kept.keep])


def full_size_masks(
    masks: CandidateMasks, cells: Tensor, geometry: Geometry, mask_thr: float
) -> tuple[Tensor, Tensor]:
    """Return packed masks and boxes of cells (N,) at the original size of the image.

    Soft masks are up-sampled by 4 (to the padded input if that is a multiple of 32), cropped to the part that
    the image fills and resized to its original size, all bilinearly, before the threshold.
    """
    order = cells.argsort(stable=True)
    chunks = [
        paste_soft_masks(masks.scores(chunk), geometry, mask_thr)
        for chunk in cells[order].split(masks.chunk_length(cells))
    ]
    packed, boxes = (torch.cat(parts) for parts in zip(*chunks, strict=True))
    inverse = order.argsort()
    # Not indexing, which copies masks byte by byte.
    return packed.index_select(0, inverse), boxes[inverse]


def paste_soft_masks(soft: Tensor, geometry: Geometry, mask_thr: float) -> PastedMasks:
    """Return packed masks and boxes of soft masks (K, h, w), up-sampled by 4; see ``full_size_masks``."""
    upsampled = (4 * soft.shape[1], 4 * soft.shape[2])
    return paste_masks(soft, upsampled, geometry.resized, geometry.original, mask_thr)
