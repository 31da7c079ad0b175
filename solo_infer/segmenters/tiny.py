"""Tiny, the family of the embedded model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from solo_infer.config import TinyConfig, TinyPostprocessConfig
from solo_infer.inference.detections import Detections
from solo_infer.inference.preprocess import Geometry
from solo_infer.inference.tiny import class_scores, detect_batch
from solo_infer.inference.tiny_masks import paste_soft_masks
from solo_infer.models.tiny.network import TinyNetwork
from solo_infer.runtime.stopwatch import Stopwatch
from solo_infer.segmenters.engine_model import EngineModel
from solo_infer.segmenters.solo import SOLO


class Tiny(SOLO):
    """Model of the family of the embedded one; see ``Segmenter`` for its methods."""

    family = TinyConfig.family
    network: TinyNetwork  # type: ignore[assignment]

    def _detect(  # type: ignore[override]  # the base class checks the type of the thresholds
        self,
        inputs: Tensor,
        geometries: Sequence[Geometry],
        thresholds: TinyPostprocessConfig,
        stopwatch: Stopwatch,
    ) -> list[Detections]:
        network, class_mask = self.inference_network, self._class_mask_on(inputs.device)
        return detect_batch(self._graphs, network, inputs, geometries, thresholds, class_mask, stopwatch)

    @torch.no_grad()
    def count_candidates(self, inputs: Tensor) -> list[int]:
        """Return the number of (cell, class) pairs above ``score_thr`` of each image."""
        logits = self.inference_network(inputs).cells.class_logits
        above = class_scores(logits, self._class_mask_on(inputs.device)) > self.config.thresholds.score_thr
        return above.flatten(1).sum(dim=1).tolist()


class EngineTiny(EngineModel, Tiny):  # type: ignore[misc]  # it has no network
    """Tiny in an inference engine."""

    @staticmethod
    def paste(
        scores: Tensor,
        labels: Tensor,
        boxes: Tensor,
        soft: Tensor,
        geometry: Geometry,
        thresholds: TinyPostprocessConfig,
    ) -> Detections:
        """Return the detections of one image; their boxes are those of the masks at its original size."""
        packed, mask_boxes = paste_soft_masks(soft, geometry, thresholds.mask_thr)
        return Detections(scores, labels, mask_boxes, packed)
