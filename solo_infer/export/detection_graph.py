"""Detections with static shapes in operators that ONNX has: candidates, NMS and the outputs of a graph.

``inference.solo`` and ``inference.tiny`` select candidates dynamically and hold masks as bits. Here every
shape follows from the shape of the network input and the settings, masks are float32, and all images of a
batch are processed together. ``solo_graph``, ``tiny_graph`` and ``yolact_graph`` build modules from these
functions, which ``torch.export`` turns into graphs.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from solo_infer.config import PostprocessConfig, PreprocessConfig
from solo_infer.inference.nms import compared_labels
from solo_infer.ops.matrix_nms import decay

# Greatest number of detections in a row, each of which suppresses the next one, for ``greedy_keep``.
GREEDY_STEPS = 16


class GraphDetections(NamedTuple):
    """Detections of each image of a batch, best first, padded to M."""

    scores: Tensor  # (N, M) float32 in 0..1, 0 in the padding
    labels: Tensor  # (N, M) int64, 0 in the padding
    boxes: Tensor  # (N, M, 4) float32 x1 y1 x2 y2 in pixels of the network input, zeros in the padding
    masks: Tensor  # (N, M, h, w) float32 soft masks in 0..1
    counts: Tensor  # (N,) int64, number of detections


class GraphCandidates(NamedTuple):
    """The best (cell, class) pairs of each image of a batch, best first."""

    scores: Tensor  # (N, K) float32
    cells: Tensor  # (N, K) int64
    labels: Tensor  # (N, K) int64
    valid: Tensor  # (N, K) bool, above the score threshold


class TupleOutputs(nn.Module):
    """Detections as a plain tuple, which ``torch.export.save`` can write."""

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Map network inputs (N, 3, H, W) to the fields of ``GraphDetections``."""
        return tuple(self.detector(images))


class NormalizedPixels(nn.Module):
    """Detections from RGB pixels: normalization, then the network.

    Args:
        detector: Maps normalized network inputs to ``GraphDetections``.
        config: Mean and standard deviation of the channels.
    """

    def __init__(self, detector: nn.Module, config: PreprocessConfig) -> None:
        super().__init__()
        self.detector = detector
        self.takes_any_batch = detector.takes_any_batch
        for name, values in (("mean", config.mean), ("std", config.std)):
            tensor = torch.tensor(values, dtype=torch.float32, device="cpu").view(1, 3, 1, 1)
            self.register_buffer(name, tensor, persistent=False)

    def forward(self, pixels: Tensor) -> GraphDetections:
        """Map pixels (N, 3, H, W) uint8 RGB to detections."""
        return self.detector((pixels.float() - self.get_buffer("mean")) / self.get_buffer("std"))


def best_candidates(scores: Tensor, score_thr: float, count: int) -> GraphCandidates:
    """Return the best (cell, class) pairs of the class scores (N, cells, classes) of a batch.

    Args:
        scores: Class scores, float32 in 0..1.
        score_thr: Score that a candidate must exceed.
        count: Number of pairs K to return, more than the pairs above the threshold if possible.
    """
    classes = scores.shape[2]
    flat = scores.flatten(1)
    pairs = flat.shape[1]
    # A small network input may have fewer pairs than ``count``.
    values, index = pad(flat, (0, count)).topk(count, dim=1)
    index = index.clamp(max=pairs - 1)
    cells = index.div(classes, rounding_mode="floor")
    return GraphCandidates(values, cells, index - cells * classes, values > score_thr)


def rows_of(values: Tensor, index: Tensor) -> Tensor:
    """Return rows (N, K, C) of values (N, R, C), by their index (N, K)."""
    return values.gather(1, index[..., None].expand(-1, -1, values.shape[2]))


def masks_of(masks: Tensor, index: Tensor) -> Tensor:
    """Return masks (N, M, h, w) out of (N, K, h, w), by their index (N, M)."""
    image = torch.arange(masks.shape[0], dtype=torch.int64, device=masks.device)[:, None]
    return masks[image, index]


def suppress(
    inside: Tensor, areas: Tensor, labels: Tensor, scores: Tensor, thresholds: PostprocessConfig
) -> tuple[Tensor, Tensor]:
    """Run Matrix-NMS or greedy NMS on the masks of each image of a batch.

    Args:
        inside: (N, K, h, w) float32, 1 inside the masks, else 0.
        areas: (N, K) float32, pixels inside.
        labels: (N, K) int64.
        scores: (N, K) float32, 0 for candidates that are left out.
        thresholds: Post-processing settings.

    Returns:
        Scores (N, M) after NMS, best first, 0 in the padding; their index (N, M) among the candidates.
    """
    ranked, order = scores.topk(scores.shape[1], dim=1)
    pixels = inside.flatten(2)
    intersections = torch.bmm(pixels, pixels.transpose(1, 2))
    intersections = rows_of(intersections, order)
    intersections = intersections.gather(2, order[:, None].expand(-1, order.shape[1], -1))
    areas, groups = areas.gather(1, order), compared_labels(labels, thresholds).gather(1, order)
    unions = areas[:, :, None] + areas[:, None] - intersections
    ious = pairs_in_order(intersections / unions.clamp(min=1), groups)
    if thresholds.nms == "greedy":
        ranked = ranked * greedy_keep((ious > thresholds.nms_iou).float())
    else:
        ranked = ranked * decay(ious, thresholds.kernel, thresholds.sigma)
    best, rank = ranked.topk(min(thresholds.max_per_image, ranked.shape[1]), dim=1)
    return best * (best >= thresholds.filter_thr), order.gather(1, rank)


def pairs_in_order(ious: Tensor, labels: Tensor) -> Tensor:
    """Return the IoUs (N, K, K) of pairs [i, j] with i before j and equal labels (N, K), otherwise 0."""
    count = ious.shape[1]
    index = torch.arange(count, dtype=torch.int64, device=ious.device)
    before = index[:, None] < index
    return ious * (before & (labels[:, :, None] == labels[:, None]))


def greedy_keep(suppresses: Tensor) -> Tensor:
    """Return what greedy NMS keeps, (N, K) float32 of 1 and 0.

    A detection is kept if no kept one before it suppresses it. Starting with all, that rule is applied
    ``GREEDY_STEPS`` times, after which it holds unless a longer chain of suppressions exists.

    Args:
        suppresses: (N, K, K) float32, 1 at [i, j] if i would suppress j and is before it, otherwise 0.
    """
    keep = torch.ones_like(suppresses[:, :1])
    for _ in range(GREEDY_STEPS):
        keep = 1 - torch.bmm(keep, suppresses).clamp(max=1)
    return keep[:, 0]


def mask_bounds(inside: Tensor, stride: int) -> Tensor:
    """Return the boxes (N, K, 4) float32 x1 y1 x2 y2 of masks in pixels of the network input.

    Args:
        inside: (N, K, h, w) bool.
        stride: Pixels of the network input per pixel of the masks.
    """
    edges = []
    for occupied in (inside.any(dim=2), inside.any(dim=3)):  # columns, rows
        length = occupied.shape[2]
        position = torch.arange(length, dtype=torch.float32, device=inside.device)
        first = torch.where(occupied, position, float(2**20)).amin(dim=2)
        end = torch.where(occupied, position + 1, 0.0).amax(dim=2)
        edges.append((torch.minimum(first, end), end))
    (left, right), (top, bottom) = edges
    return torch.stack([left, top, right, bottom], dim=2) * stride


def pack_detections(scores: Tensor, labels: Tensor, boxes: Tensor, masks: Tensor) -> GraphDetections:
    """Return the outputs of a graph: padding, where the scores are 0, gets label 0 and an empty box."""
    found = scores > 0
    return GraphDetections(scores, labels * found, boxes * found[..., None], masks, found.sum(dim=1))
