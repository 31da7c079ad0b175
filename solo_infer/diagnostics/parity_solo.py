"""Parity of SOLO models with mmdet: feature pyramid, kernels, class scores, mask scores, detections."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple, cast

import torch
from numpy.lib.npyio import NpzFile
from torch import Tensor

from solo_infer.diagnostics.pairing import pair_detections
from solo_infer.diagnostics.parity import Check, Tolerances, max_abs, pyramid_difference, sampled_difference
from solo_infer.inference.preprocess import Geometry
from solo_infer.models.solo.head import HeadOutput
from solo_infer.models.solo.network import SOLONetwork
from solo_infer.models.solo.scores import class_scores_from_logits
from solo_infer.models.solo.solov2_head import SOLOv2Output
from solo_infer.segmenters.base import Segmenter


def check_solo(
    segmenter: Segmenter, inputs: Tensor, geometry: Geometry, golden: NpzFile, tolerances: Tolerances
) -> Iterator[Check]:
    """Compare a SOLO model with a golden file: outputs of the plain network, detections of the model.

    Args:
        segmenter: Model with the weights of the golden file.
        inputs: (1, 3, H, W) network input of the golden file, on the device and in the dtype of the model.
        geometry: Sizes of the image.
        golden: Golden file.
        tolerances: Greatest accepted differences.
    """
    check = partial(Check, segmenter.config.architecture.name)
    cells = torch.from_numpy(golden["mask_cells"]).to(inputs.device)
    outputs = _network_outputs(cast(SOLONetwork, segmenter.network), inputs, cells)
    (detections,) = segmenter.detect(inputs, [geometry])
    yield check("pyramid / std", pyramid_difference(outputs.pyramid, golden), tolerances.pyramid)
    for quantity, difference in _kernel_differences(outputs.raw, golden).items():
        yield check(f"{quantity} / std", difference, tolerances.head)
    yield check(
        "class scores", _class_score_difference(outputs.class_scores, golden), tolerances.class_scores
    )
    mask_samples = outputs.mask_scores.gather(1, torch.from_numpy(golden["mask_index"]))
    mask_difference = max_abs(mask_samples - torch.from_numpy(golden["mask_value"]))
    yield check("mask scores", mask_difference, tolerances.mask_scores)
    pairs = pair_detections(detections, golden, geometry.original, tolerances.final_scores)
    yield check("final scores", pairs.score_difference, tolerances.final_scores)
    yield check("1 - mask IoU", pairs.iou_loss, tolerances.iou_loss)
    yield check("unpaired", pairs.unpaired, tolerances.unpaired)


class _Outputs(NamedTuple):
    pyramid: list[Tensor]  # P2 to P6, each (1, C, h, w)
    class_scores: Tensor  # (cells, classes) float32 in 0..1, 0 where not a local maximum
    mask_scores: Tensor  # (K, pixels) float32 in 0..1, on the CPU
    raw: HeadOutput | SOLOv2Output


@torch.no_grad()
def _network_outputs(network: SOLONetwork, inputs: Tensor, cells: Tensor) -> _Outputs:
    """Return the outputs of a plain network, with the mask scores of the cells (K,)."""
    maps = network.backbone(inputs)
    pyramid, levels = network.neck.pyramid(maps), network.neck(maps)
    raw = network.mask_head(levels)
    class_scores = class_scores_from_logits(raw.class_logits)
    (masks,) = network.mask_head.masks(levels, [cells])
    return _Outputs(pyramid, class_scores[0], masks.scores(cells).flatten(1).cpu(), raw)


def _kernel_differences(raw: HeadOutput | SOLOv2Output, golden: NpzFile) -> dict[str, float]:
    """Return the greatest differences of the kernels and mask features of SOLOv2, in standard deviations."""
    if not isinstance(raw, SOLOv2Output):
        return {}
    kernels = [sampled_difference(x, f"kernel{level}", golden) for level, x in enumerate(raw.kernels)]
    return {
        "kernels": max(kernels),
        "mask features": sampled_difference(raw.mask_features, "feature", golden),
    }


def _class_score_difference(class_scores: Tensor, golden: NpzFile) -> float:
    """Return the greatest difference of the class scores that are local maxima on both sides."""
    scores = class_scores.cpu().flatten()[torch.from_numpy(golden["class_index"])]
    return max_abs((scores - torch.from_numpy(golden["class_value"]))[scores > 0])
