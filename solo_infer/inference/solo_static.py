"""From a network input to detections in arrays of fixed size, without a question to the device on the way.

``postprocessing`` does the same with arrays that are as long as there are candidates, for which it must wait
for the device again and again. Here candidates fill the first of a fixed number of slots, in the same order;
what the other slots hold is computed too and masked out. All shapes follow from the batch, the padded size,
the number of slots and the thresholds, so that one CUDA graph can hold all of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from solo_infer.config import PostprocessConfig
from solo_infer.models.optimized.static_masks import CellTable, SlotMaps, slot_maps
from solo_infer.models.solo.network import SOLONetwork
from solo_infer.ops.matrix_nms import decay_factors

# Bytes of float32 maps that one step may hold at a time; a step needs about six times this.
CHUNK_BYTES = 256 << 20

Mark = Callable[[str], None]


class Slots(NamedTuple):
    """The candidates of each image of a batch, in mmdet's order, in the first of S slots."""

    cells: Tensor  # (N, S) int64, 0 where nothing is
    labels: Tensor  # (N, S) int64, 0 where nothing is
    scores: Tensor  # (N, S) float32
    filled: Tensor  # (N, S) bool
    counts: Tensor  # (N,) int64, candidates, which may be more than there are slots


class Features(NamedTuple):
    """What the network sees in a batch."""

    levels: list[Tensor]  # five level inputs
    scores: Tensor  # (N, cells, classes) float32, of the classes that are wanted


class SlotDetections(NamedTuple):
    """The detections of each image of a batch, best first, in the first of M slots."""

    scores: Tensor  # (N, M) float32
    labels: Tensor  # (N, M) int64
    masks: Tensor  # (N, M, H/4, W/4) float32 in 0..1
    counts: Tensor  # (2, N) int64: detections; candidates, more than slots where some found no place


def extract(
    network: SOLONetwork, inputs: Tensor, wanted: Tensor, mark: Mark = lambda stage: None
) -> Features:
    """Run the network up to the class scores.

    Args:
        network: The one that predicts.
        inputs: (N, 3, H, W).
        wanted: (classes,) float32, 1 for the classes to be found, 0 for others.
        mark: Called with the name of each stage when it is done.
    """
    maps = network.backbone(inputs)
    mark("backbone")
    levels = network.neck.solo_levels(maps)
    mark("pyramid")
    scores = network.class_scores(levels) * wanted
    mark("classes")
    return Features(levels, scores)


def detect(
    network: SOLONetwork,
    features: Features,
    table: CellTable,
    thresholds: PostprocessConfig,
    slots: int,
    mark: Mark = lambda stage: None,
) -> SlotDetections:
    """Turn class scores and level inputs into detections, for images with at most ``slots`` candidates."""
    maps = slot_maps(network, features.levels, table)
    mark("masks")
    filled = fill(features.scores, thresholds.score_thr, slots)
    return suppress(filled, maps, table, thresholds)


def fill(scores: Tensor, score_thr: float, slots: int) -> Slots:
    """Put the candidates among the class scores (N, cells, classes) into slots."""
    images, _, classes = scores.shape
    flat = scores.flatten(1)
    above = flat > score_thr
    place = above.cumsum(1) - 1
    place = place.masked_fill(~above, slots).clamp(max=slots)  # the last one takes what has no place
    numbers = torch.arange(flat.shape[1], device=flat.device).expand_as(place)
    chosen = torch.zeros((images, slots + 1), dtype=torch.int64, device=flat.device)
    chosen = chosen.scatter_(1, place, numbers)[:, :slots]
    counts = above.sum(1)
    filled = torch.arange(slots, device=flat.device) < counts[:, None]
    return Slots(chosen // classes, chosen % classes, flat.gather(1, chosen), filled, counts)


def suppress(slots: Slots, maps: SlotMaps, table: CellTable, thresholds: PostprocessConfig) -> SlotDetections:
    """Rescore by maskness, drop small masks, run Matrix-NMS; see ``postprocessing.suppress``."""
    areas, maskness, packed = measure(maps, slots.cells, thresholds.mask_thr)
    valid = slots.filled & (areas > table.stride[slots.cells])
    scores, entering = _best((slots.scores * maskness).masked_fill(~valid, -1.0), thresholds.nms_pre)
    labels, areas = slots.labels.gather(1, entering), areas.gather(1, entering)
    packed = packed.gather(1, entering[..., None].expand(-1, -1, packed.shape[2]))
    factors = decay_factors(packed, areas, labels, thresholds.kernel, thresholds.sigma)
    scores = (scores * factors).masked_fill(scores < 0, -1.0)
    scores, best = _best(scores, thresholds.max_per_image)
    cells = slots.cells.gather(1, entering.gather(1, best))
    kept = (scores >= thresholds.filter_thr).sum(1)
    soft = _in_chunks(maps, cells, maps.scores)
    return SlotDetections(scores, labels.gather(1, best), soft, torch.stack([kept, slots.counts]))


def measure(maps: SlotMaps, cells: Tensor, mask_thr: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return areas and maskness (N, S), float32, and packed masks (N, S, B), uint8, of cells (N, S)."""
    statistics = maps.statistics(cells, mask_thr)
    return statistics.areas, statistics.sums / statistics.areas.clamp(min=1), statistics.packed


def _best(scores: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Return the ``most`` greatest scores (N, k) of each image and where they were, ties in order."""
    values, order = scores.sort(dim=1, descending=True, stable=True)
    return values[:, :most], order[:, :most]


def _in_chunks(maps: SlotMaps, cells: Tensor, compute: Callable[[Tensor], Tensor]) -> Tensor:
    return torch.cat([compute(chunk) for chunk in cells.split(_chunk_length(maps, len(cells)), dim=1)], dim=1)


def _chunk_length(maps: SlotMaps, images: int) -> int:
    height, width = maps.size
    return max(CHUNK_BYTES // (4 * images * height * width), 1)
