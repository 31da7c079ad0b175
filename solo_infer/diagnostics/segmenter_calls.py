"""Calls of a segmenter below its public interface, for parity checks and benchmarks."""

from __future__ import annotations

import torch
from torch import Tensor

from solo_infer.data.images import LoadedImage
from solo_infer.inference.preprocess import Geometry, plan, prepare
from solo_infer.inference.solo import Detections
from solo_infer.results.result import Result
from solo_infer.runtime.stopwatch import Stopwatch
from solo_infer.segmenters.base import Segmenter


@torch.no_grad()
def detect(segmenter: Segmenter, inputs: Tensor, geometries: list[Geometry]) -> list[Detections]:
    """Return the detections of each image of a batch of network inputs.

    Args:
        segmenter: Model.
        inputs: (N, 3, H, W) normalized network inputs, on the device and in the dtype of the model.
        geometries: Sizes of each image.
    """
    return segmenter._find(inputs, geometries, segmenter.config.thresholds, Stopwatch())


def predict_batch(
    segmenter: Segmenter, images: list[LoadedImage], synchronized: bool = False
) -> list[Result]:
    """Return the results of a batch of loaded images.

    Args:
        segmenter: Model.
        images: Images.
        synchronized: Whether to synchronize the device after each stage, for timings by stage.
    """
    batch = [(image, {}) for image in images]  # type: ignore[var-annotated]
    return segmenter._segment(batch, segmenter.config.thresholds, synchronized)


@torch.no_grad()
def count_candidates(segmenter: Segmenter, image: LoadedImage) -> int:
    """Return the number of (cell or anchor, class) pairs of an image above the score threshold."""
    config = segmenter.config
    geometry = plan(image.pixels, config.preprocessing)
    inputs = prepare(image.pixels, geometry, config.preprocessing, segmenter.device)[None]
    scores = segmenter.class_scores(inputs.to(segmenter.dtype))
    return int((scores > config.thresholds.score_thr).sum())
