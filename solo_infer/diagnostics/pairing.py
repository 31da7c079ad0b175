"""Pairing of detections with those of a golden file or of another model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.lib.npyio import NpzFile

from solo_infer.inference.solo import Detections
from solo_infer.ops import packed_masks, rle

EDGE_PIXELS = 5  # number of pixels by which masks may differ regardless of their IoU
MIN_PAIR_IOU = 0.5  # mask IoU from which two detections are the same instance


@dataclass(frozen=True)
class Pairs:
    """Agreement of two lists of detections of one image.

    Attributes:
        score_difference: Greatest score difference of a pair.
        box_difference: Greatest box difference of a pair, in pixels; 0 for a reference without boxes.
        iou_loss: Greatest 1 - IoU of the pairs whose masks differ by more than ``EDGE_PIXELS``.
        unpaired: Fraction of all detections of both lists without a partner. Detections near the end of the
            list are excluded, because rounding may add or drop them.
    """

    score_difference: float
    box_difference: float
    iou_loss: float
    unpaired: float


def pair_detections(
    detections: Detections, golden: NpzFile, image_size: tuple[int, int], score_tolerance: float
) -> Pairs:
    """Pair each golden detection with the unpaired detection of greatest mask IoU; see ``pair_with``.

    Args:
        detections: Detections of one image.
        golden: Golden file with "scores", "labels", masks as RLE and optionally "boxes", best first.
        image_size: (height, width) of the image in pixels.
        score_tolerance: Greatest score difference within a pair. Labels must be equal.
    """
    boxes = golden["boxes"] if "boxes" in golden else None
    reference = Reference(golden["scores"], golden["labels"], golden_masks(golden, image_size), boxes)
    return pair_with(detections, reference, image_size, score_tolerance)


class Reference(NamedTuple):
    """Detections of one image to compare with, best first."""

    scores: np.ndarray  # (N,) float32
    labels: np.ndarray  # (N,) int64
    masks: Iterable[np.ndarray]  # (H, W) bool each
    boxes: np.ndarray | None = None  # (N, 4) float32 x1 y1 x2 y2 in pixels; None to not compare them


def reference_of(detections: Detections, width: int) -> Reference:
    """Return detections of another model as a reference, without boxes, which follow from the masks.

    Args:
        detections: Detections of one image.
        width: Width of the image in pixels.
    """
    masks = packed_masks.unpack(detections.packed_masks.cpu(), width).numpy()
    return Reference(detections.scores.cpu().numpy(), detections.labels.cpu().numpy(), masks)


def pair_with(
    detections: Detections, reference: Reference, image_size: tuple[int, int], score_tolerance: float
) -> Pairs:
    """Pair each detection of a reference with the unpaired detection of greatest mask IoU.

    Args:
        detections: Detections of one image.
        reference: Detections to compare with.
        image_size: (height, width) of the image in pixels.
        score_tolerance: Greatest score difference within a pair. Labels must be equal.
    """
    scores, labels = detections.scores.cpu().numpy(), detections.labels.cpu().numpy()
    masks = packed_masks.unpack(detections.packed_masks.cpu(), image_size[1]).numpy()
    golden_scores, golden_labels = reference.scores, reference.labels
    is_free = np.ones(len(scores), bool)
    is_unmatched = np.ones(len(golden_scores), bool)
    score_difference = box_difference = iou_loss = 0.0
    for rank, golden_mask in enumerate(reference.masks):
        is_near = np.abs(scores - golden_scores[rank]) <= score_tolerance
        options = np.flatnonzero(is_free & is_near & (labels == golden_labels[rank]))
        if len(options) == 0:
            continue
        intersections = (masks[options] & golden_mask).sum(axis=(1, 2))
        unions = (masks[options] | golden_mask).sum(axis=(1, 2))
        ious = np.where(unions > 0, intersections / np.maximum(unions, 1), 1.0)
        best = int(ious.argmax())
        if ious[best] < MIN_PAIR_IOU:
            continue
        partner = options[best]
        is_free[partner] = is_unmatched[rank] = False
        score_difference = max(score_difference, float(np.abs(scores[partner] - golden_scores[rank])))
        if reference.boxes is not None:
            box = detections.boxes[partner].cpu().numpy()
            box_difference = max(box_difference, float(np.abs(box - reference.boxes[rank]).max()))
        if unions[best] - intersections[best] > EDGE_PIXELS:
            iou_loss = max(iou_loss, 1.0 - float(ious[best]))
    last_score = float(golden_scores[-1]) + score_tolerance if len(golden_scores) else score_tolerance
    unpaired = (is_unmatched & (golden_scores > last_score)).sum() + (is_free & (scores > last_score)).sum()
    total = max(len(golden_scores) + len(scores), 1)
    return Pairs(score_difference, box_difference, iou_loss, int(unpaired) / total)


def golden_masks(golden: NpzFile, image_size: tuple[int, int]) -> Iterator[np.ndarray]:
    """Yield the masks (H, W), bool, of the detections of a golden file."""
    text, offsets = golden["rle_counts"].tobytes(), golden["rle_offsets"]
    for start, end in zip(offsets[:-1], offsets[1:], strict=True):
        yield rle.decode({"size": list(image_size), "counts": text[start:end].decode("ascii")})
