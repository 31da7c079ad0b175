"""YOLACT models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from solo_infer.config import YOLACTConfig, YOLACTPostprocessConfig
from solo_infer.inference.detections import Detections
from solo_infer.inference.preprocess import Geometry
from solo_infer.inference.yolact import class_scores, detect_batch, image_boxes
from solo_infer.ops.paste_masks import paste_masks
from solo_infer.runtime.neutral_state import neutral_state
from solo_infer.runtime.stopwatch import Stopwatch
from solo_infer.segmenters.base import Segmenter
from solo_infer.segmenters.engine_model import EngineModel

if TYPE_CHECKING:
    from solo_infer.models.yolact.network import YOLACTNetwork


class YOLACT(Segmenter):
    """YOLACT, mmdet's or the original variant; see ``Segmenter`` for its methods.

    The boxes of its results are the detected ones, not the bounds of the masks.
    """

    family = YOLACTConfig.family
    network: YOLACTNetwork

    def _detect(
        self,
        inputs: Tensor,
        geometries: Sequence[Geometry],
        thresholds: YOLACTPostprocessConfig,
        stopwatch: Stopwatch,
    ) -> list[Detections]:
        network, class_mask = self.inference_network, self._class_mask_on(inputs.device)
        return detect_batch(self._graphs, network, inputs, geometries, thresholds, class_mask, stopwatch)

    @neutral_state()
    def count_candidates(self, inputs: Tensor) -> list[int]:
        """Return the number of (anchor, class) pairs above ``score_thr`` of each image."""
        network: YOLACTNetwork = self.inference_network
        scores = class_scores(network.bbox_head(network.features(inputs)).logits)
        class_mask = self._class_mask_on(inputs.device)
        if class_mask is not None:
            scores = scores * class_mask
        above = scores > self.config.thresholds.score_thr
        return above.flatten(1).sum(dim=1).tolist()


class EngineYOLACT(EngineModel, YOLACT):  # type: ignore[misc]  # it has no network
    """YOLACT in an inference engine."""

    @staticmethod
    def paste(
        scores: Tensor,
        labels: Tensor,
        boxes: Tensor,
        soft: Tensor,
        geometry: Geometry,
        thresholds: YOLACTPostprocessConfig,
    ) -> Detections:
        """Return the detections of one image; the masks are cropped to their boxes already."""
        size = geometry.original
        relative = boxes / boxes.new_tensor([*geometry.resized[::-1]] * 2)
        packed = paste_masks(soft, size, size, size, thresholds.mask_thr).packed
        return Detections(scores, labels, image_boxes(relative, size), packed)
