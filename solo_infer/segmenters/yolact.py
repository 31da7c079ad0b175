"""YOLACT models."""

from __future__ import annotations

from torch import Tensor

from solo_infer.config import BasePostprocessConfig, YOLACTConfig, YOLACTPostprocessConfig
from solo_infer.inference import yolact as yolact_postprocessing
from solo_infer.inference.preprocess import Geometry
from solo_infer.inference.solo import Detections
from solo_infer.models.yolact.anchors import level_sizes
from solo_infer.models.yolact.network import Predictions, YOLACTNetwork
from solo_infer.runtime.stopwatch import Stopwatch
from solo_infer.segmenters.base import Segmenter


class YOLACT(Segmenter):
    """A YOLACT model, OpenMMLab's or the author's; see ``Segmenter`` for what it does.

    Boxes of its results are the detected ones, not the bounds of the masks.
    """

    architecture = YOLACTConfig
    network: YOLACTNetwork

    def class_scores(self, inputs: Tensor) -> Tensor:
        """Return the scores (N, anchors, classes) of network inputs (N, 3, H, W)."""
        network: YOLACTNetwork = self.inference_network
        return yolact_postprocessing.class_scores(network.bbox_head(network.features(inputs)).logits)

    def _find(
        self, inputs: Tensor, geometries: list[Geometry], thresholds: BasePostprocessConfig, watch: Stopwatch
    ) -> list[Detections]:
        assert isinstance(thresholds, YOLACTPostprocessConfig)
        network: YOLACTNetwork = self.inference_network
        maps = network.backbone(inputs)
        watch.mark("backbone")
        levels = network.neck(maps[1:])
        watch.mark("pyramid")
        found = network.bbox_head(levels)
        watch.mark("classes")
        prototypes = network.mask_head(levels[0])
        watch.mark("masks")
        detections = self._detect(levels, found, prototypes, geometries, thresholds)
        watch.mark("post")
        return detections

    def _detect(
        self,
        levels: list[Tensor],
        found: Predictions,
        prototypes: Tensor,
        geometries: list[Geometry],
        thresholds: YOLACTPostprocessConfig,
    ) -> list[Detections]:
        """Turn the predictions and prototypes (N, P, h, w) of a batch into detections."""
        anchors = self.network.anchors(levels, geometries[0].padded)
        sizes = level_sizes(levels)
        detections = []
        for index, geometry in enumerate(geometries):
            scores = yolact_postprocessing.class_scores(found.logits[index])
            if self._wanted is not None:
                scores = scores * self._wanted.to(scores.device)
            clip_to = None if self.network.config.is_original else geometry.resized
            instances = yolact_postprocessing.find_instances(
                scores, found, index, anchors, sizes, clip_to, thresholds
            )
            detections.append(
                yolact_postprocessing.make_detections(
                    instances, prototypes[index], geometry, thresholds.mask_thr
                )
            )
        return detections
