"""Parity of YOLACT models with mmdet: feature pyramid, heads, prototypes, detections."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple, cast

import torch
from numpy.lib.npyio import NpzFile
from torch import Tensor

from solo_infer.diagnostics.pairing import pair_detections
from solo_infer.diagnostics.parity import Check, Tolerances, pyramid_difference, sampled_difference
from solo_infer.inference.preprocess import Geometry
from solo_infer.models.yolact.head import ANCHORS_PER_CELL
from solo_infer.models.yolact.network import YOLACTNetwork
from solo_infer.segmenters.base import Segmenter


def check_yolact(
    segmenter: Segmenter, inputs: Tensor, geometry: Geometry, golden: NpzFile, tolerances: Tolerances
) -> Iterator[Check]:
    """Compare a YOLACT model with a golden file: outputs of the plain network, detections of the model.

    Args:
        segmenter: Model with the weights of the golden file.
        inputs: (1, 3, H, W) network input of the golden file, on the device and in the dtype of the model.
        geometry: Sizes of the image.
        golden: Golden file.
        tolerances: Greatest accepted differences.
    """
    check = partial(Check, segmenter.config.architecture.name)
    outputs = _network_outputs(cast(YOLACTNetwork, segmenter.network), inputs)
    (detections,) = segmenter.detect(inputs, [geometry])
    yield check("pyramid / std", pyramid_difference(outputs.pyramid, golden), tolerances.pyramid)
    for quantity, values in (
        ("cls", outputs.class_logits),
        ("box", outputs.box_deltas),
        ("coeff", outputs.coefficients),
    ):
        difference = _head_difference(values, quantity, outputs.pyramid, golden)
        yield check(f"{quantity} / std", difference, tolerances.head)
    prototype_difference = sampled_difference(outputs.prototypes, "proto", golden)
    yield check("prototypes / std", prototype_difference, tolerances.head)
    pairs = pair_detections(detections, golden, geometry.original, tolerances.final_scores)
    yield check("final scores", pairs.score_difference, tolerances.final_scores)
    yield check("boxes, px", pairs.box_difference, tolerances.boxes)
    yield check("1 - mask IoU", pairs.iou_loss, tolerances.cropped_iou_loss)
    yield check("unpaired", pairs.unpaired, tolerances.unpaired)


class _Outputs(NamedTuple):
    pyramid: list[Tensor]  # P3 to P7, each (1, C, h, w)
    class_logits: Tensor  # (anchors, classes + 1)
    box_deltas: Tensor  # (anchors, 4)
    coefficients: Tensor  # (anchors, prototypes)
    prototypes: Tensor  # (1, prototypes, h, w)


@torch.no_grad()
def _network_outputs(network: YOLACTNetwork, inputs: Tensor) -> _Outputs:
    """Return the outputs of a plain network."""
    levels = network.features(inputs)
    predictions, prototypes = network.bbox_head(levels), network.mask_head(levels[0])
    logits, deltas, coefficients = (values[0] for values in predictions)
    return _Outputs(levels, logits, deltas, coefficients, prototypes)


def _head_difference(values: Tensor, quantity: str, pyramid: list[Tensor], golden: NpzFile) -> float:
    """Return the greatest difference of predictions (anchors, K), in standard deviations."""
    counts = [ANCHORS_PER_CELL * feature.shape[-2] * feature.shape[-1] for feature in pyramid]
    differences = []
    for level, (feature, level_values) in enumerate(zip(pyramid, values.split(counts), strict=True)):
        maps = level_values.reshape(*feature.shape[-2:], -1).permute(2, 0, 1)  # the layout of mmdet's layers
        differences.append(sampled_difference(maps, f"{quantity}{level}", golden))
    return max(differences)
