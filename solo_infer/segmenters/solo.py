"""SOLO, Decoupled SOLO, Decoupled Light SOLO and SOLOv2 models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from solo_infer.config import PostprocessConfig, SOLOConfig
from solo_infer.inference import solo_static
from solo_infer.inference.detections import Detections
from solo_infer.inference.preprocess import Geometry
from solo_infer.inference.solo import detect_batch, extract_features, paste_soft_masks
from solo_infer.runtime.neutral_state import neutral_state
from solo_infer.runtime.stopwatch import Stopwatch
from solo_infer.segmenters.base import Segmenter
from solo_infer.segmenters.engine_model import EngineModel

if TYPE_CHECKING:
    from solo_infer.models.solo.network import SOLONetwork


class SOLO(Segmenter):
    """SOLO, Decoupled SOLO, Decoupled Light SOLO or SOLOv2; see ``Segmenter`` for its methods."""

    family = SOLOConfig.family
    network: SOLONetwork

    def _detect(
        self,
        inputs: Tensor,
        geometries: Sequence[Geometry],
        thresholds: PostprocessConfig,
        stopwatch: Stopwatch,
    ) -> list[Detections]:
        network, class_mask = self.inference_network, self._class_mask_on(inputs.device)
        if solo_static.is_supported(inputs.device, thresholds):
            if class_mask is None:
                class_mask = inputs.new_ones(len(self.config.categories), dtype=torch.float32)
            return solo_static.detect_batch(
                self._graphs, network, inputs, geometries, thresholds, class_mask, stopwatch
            )
        return detect_batch(network, inputs, geometries, thresholds, class_mask, stopwatch)

    @neutral_state()
    def count_candidates(self, inputs: Tensor) -> list[int]:
        """Return the number of (cell, class) pairs above ``score_thr`` of each image."""
        class_mask = self._class_mask_on(inputs.device)
        features = extract_features(self.inference_network, inputs, class_mask, Stopwatch())
        above = features.scores > self.config.thresholds.score_thr
        return above.flatten(1).sum(dim=1).tolist()


class EngineSOLO(EngineModel, SOLO):  # type: ignore[misc]  # it has no network
    """SOLO, Decoupled SOLO, Decoupled Light SOLO or SOLOv2 in an inference engine."""

    @staticmethod
    def paste(
        scores: Tensor,
        labels: Tensor,
        boxes: Tensor,
        soft: Tensor,
        geometry: Geometry,
        thresholds: PostprocessConfig,
    ) -> Detections:
        """Return the detections of one image; their boxes are those of the masks at its original size."""
        packed, mask_boxes = paste_soft_masks(soft, geometry, thresholds.mask_thr)
        return Detections(scores, labels, mask_boxes, packed)
