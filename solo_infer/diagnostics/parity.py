"""Comparison of network outputs with the samples in a golden file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from numpy.lib.npyio import NpzFile
from torch import Tensor


@dataclass(frozen=True)
class Tolerances:
    """Greatest accepted differences from mmdet in float32.

    Attributes:
        pyramid: Values of the feature pyramid, in standard deviations of their map.
        head: Kernels and mask features of SOLOv2; class logits, box deltas, mask coefficients and prototypes
            of YOLACT; in standard deviations of their map.
        class_scores: Class scores of SOLO that are local maxima on both sides, 0..1.
        mask_scores: Mask scores of SOLO, 0..1.
        final_scores: Scores of paired detections, 0..1.
        boxes: Boxes of paired detections of YOLACT, in pixels of the image.
        iou_loss: 1 - IoU of paired masks that differ by more than ``pairing.EDGE_PIXELS``.
        cropped_iou_loss: The same for YOLACT, whose masks are cropped to their boxes.
        unpaired: Fraction of detections without a partner, 0..1.
    """

    pyramid: float
    head: float
    class_scores: float
    mask_scores: float
    final_scores: float
    boxes: float
    iou_loss: float
    cropped_iou_loss: float
    unpaired: float


@dataclass(frozen=True)
class Check:
    """Comparison of one quantity.

    Attributes:
        model: Name of the model, or of its architecture.
        quantity: Name of the quantity and its unit.
        difference: Measured difference.
        limit: Greatest accepted difference.
    """

    model: str
    quantity: str
    difference: float
    limit: float

    @property
    def passed(self) -> bool:
        """Whether the difference is within the limit. NaN is not."""
        return self.difference <= self.limit


def pyramid_difference(pyramid: Sequence[Tensor], golden: NpzFile) -> float:
    """Return the greatest difference of the feature pyramid (1, C, h, w), in standard deviations."""
    return max(sampled_difference(feature, f"fpn{level}", golden) for level, feature in enumerate(pyramid))


def sampled_difference(maps: Tensor, name: str, golden: NpzFile) -> float:
    """Return the greatest difference at the samples of a map, in standard deviations of the map.

    Args:
        maps: Feature map in the layout of mmdet.
        name: Prefix of the entries "index", "value" and "std" in the golden file.
        golden: Golden file.
    """
    values = maps.float().cpu().flatten()[torch.from_numpy(golden[f"{name}_index"])]
    return max_abs(values - torch.from_numpy(golden[f"{name}_value"])) / float(golden[f"{name}_std"])


def max_abs(difference: Tensor) -> float:
    """Return the greatest absolute value of a tensor."""
    return float(difference.abs().max())
