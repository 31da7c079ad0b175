"""From class scores and lazy masks to detections, with bounded memory; mmdet's rules and order.

The masks of all candidates never exist at once. They are computed in chunks, of which only area,
maskness and packed bits are kept; the few that survive the NMS are computed again for the
up-sampling to the original size, a few at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from solo_infer.config import PostprocessConfig
from solo_infer.inference.preprocess import Geometry
from solo_infer.models.solo.network import MaskMaps
from solo_infer.ops.greedy_nms import greedy_nms_packed
from solo_infer.ops.mask_statistics import mask_statistics
from solo_infer.ops.matrix_nms import NMSResult, matrix_nms_packed
from solo_infer.ops.paste_masks import paste_masks

# Bytes of float32 maps that one step may hold at a time; a step needs about four times this. On the CPU few
# enough that they stay in the cache and that the allocator keeps their memory.
CHUNK_BYTES = 64 << 20
CACHED_BYTES = 16 << 20


@dataclass(frozen=True)
class Candidates:
    """(Cell, class) pairs of one image whose class score is high enough, in mmdet's order."""

    cells: Tensor  # (K,) int64, ascending
    labels: Tensor  # (K,) int64
    scores: Tensor  # (K,) float32


@dataclass(frozen=True)
class Detections:
    """The instances of one image, best first, at its original size."""

    scores: Tensor  # (N,) float32
    labels: Tensor  # (N,) int64
    boxes: Tensor  # (N, 4) float32 x1 y1 x2 y2 in pixels, far edge exclusive; see Result.boxes
    packed_masks: Tensor  # (N, H, ceil(W / 8)) uint8, see ops.bits


def find_candidates(class_scores: Tensor, score_thr: float) -> Candidates:
    """Return the candidates among the class scores (cells, classes) of one image."""
    cells, labels = torch.nonzero(class_scores > score_thr, as_tuple=True)
    return Candidates(cells, labels, class_scores[cells, labels])


def detect(
    candidates: Candidates,
    maps: MaskMaps | None,
    image: int,
    strides: Tensor,
    geometry: Geometry,
    thresholds: PostprocessConfig,
) -> Detections:
    """Turn the candidates of one image into its detections.

    Args:
        candidates: From ``find_candidates``.
        maps: The masks of (at least) their cells; not needed if there are no candidates.
        image: Index of the image in the batch.
        strides: (cells,) float32, the stride of each cell's level.
        geometry: The image's sizes.
        thresholds: All settings.
    """
    kept = None
    if maps is not None and len(candidates.cells):
        kept = suppress(candidates, maps, image, strides, thresholds)
    if maps is None or kept is None or len(kept.scores) == 0:
        return _nothing(geometry.original, candidates.scores.device)
    packed, boxes = full_size_masks(maps, image, candidates.cells[kept.keep], geometry, thresholds.mask_thr)
    return Detections(kept.scores, kept.labels, boxes, packed)


def suppress(
    candidates: Candidates, maps: MaskMaps, image: int, strides: Tensor, thresholds: PostprocessConfig
) -> NMSResult | None:
    """Rescore candidates by maskness, drop small masks, run the NMS; ``keep`` indexes candidates."""
    # Cells are ascending, so the classes of one cell follow each other and share its mask.
    cells, owners = candidates.cells.unique_consecutive(return_inverse=True)
    areas, maskness, packed = measure_masks(maps, image, cells, thresholds.mask_thr)
    large = torch.nonzero((areas > strides[cells])[owners]).flatten()
    if len(large) == 0:
        return None
    owners = owners[large]
    kept = _nms(thresholds)(
        packed,
        areas[owners],
        candidates.labels[large],
        candidates.scores[large] * maskness[owners],
        nms_pre=thresholds.nms_pre,
        max_num=thresholds.max_per_image,
        filter_thr=thresholds.filter_thr,
        mask_index=owners,
    )
    return kept._replace(keep=large[kept.keep])


def _nms(thresholds: PostprocessConfig) -> Callable[..., NMSResult]:
    if thresholds.nms == "greedy":
        return partial(greedy_nms_packed, iou_thr=thresholds.nms_iou)
    return partial(matrix_nms_packed, kernel=thresholds.kernel, sigma=thresholds.sigma)


def measure_masks(
    maps: MaskMaps, image: int, cells: Tensor, mask_thr: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the masks of cells (K,), ascending, chunk by chunk.

    Returns:
        areas (K,) float32 in mask pixels, maskness (K,) float32 in 0..1 (the mean mask score inside the
        mask, 0 if that is empty), packed masks (K, B) uint8.
    """
    areas, maskness, packed = [], [], []
    for chunk in cells.split(_chunk_length(maps.size, cells.device)):
        statistics = mask_statistics(maps.scores(image, chunk), mask_thr)
        areas.append(statistics.areas)
        maskness.append(statistics.sums / statistics.areas.clamp(min=1))
        packed.append(statistics.packed)
    return torch.cat(areas), torch.cat(maskness), torch.cat(packed)


def full_size_masks(
    maps: MaskMaps, image: int, cells: Tensor, geometry: Geometry, mask_thr: float
) -> tuple[Tensor, Tensor]:
    """Return packed masks and boxes of cells (N,) at the original size of the image.

    The soft masks are up-sampled to four times their size, which is the padded input's if that is a
    multiple of 32, cropped to the part that the image fills and resized to its original size, all
    bilinearly, before the threshold.
    """
    order = cells.argsort(stable=True)
    padded = 4 * maps.size[0], 4 * maps.size[1]  # mmdet's ``upsampled_size``
    pasted = [
        paste_masks(maps.scores(image, chunk), padded, geometry.resized, geometry.original, mask_thr)
        for chunk in cells[order].split(_chunk_length(maps.size, cells.device))
    ]
    packed, boxes = (torch.cat(tensors) for tensors in zip(*pasted, strict=True))
    inverse = order.argsort()
    return packed[inverse], boxes[inverse]


def _chunk_length(size: tuple[int, int], device: torch.device) -> int:
    """Return how many float32 maps of this size one step may hold."""
    limit = CACHED_BYTES if device.type == "cpu" else CHUNK_BYTES
    return max(limit // (4 * size[0] * size[1]), 1)


def _nothing(size: tuple[int, int], device: torch.device) -> Detections:
    height, width = size
    return Detections(
        torch.zeros(0, device=device),
        torch.zeros(0, dtype=torch.int64, device=device),
        torch.zeros((0, 4), device=device),
        torch.zeros((0, height, (width + 7) // 8), dtype=torch.uint8, device=device),
    )
