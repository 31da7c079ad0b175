"""What users hold: a model that takes images and gives results."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from solo_infer import postprocessing, yolact_postprocessing
from solo_infer._stopwatch import Stopwatch
from solo_infer.base import Segmenter
from solo_infer.config import AnyThresholds, Architecture, ModelConfig, Thresholds
from solo_infer.device import resolve_device, resolve_dtype
from solo_infer.fast_path import FastPath
from solo_infer.models import Network, SOLONetwork, YolactNetwork
from solo_infer.models.yolact import Predictions
from solo_infer.ops.anchors import level_sizes
from solo_infer.postprocessing import Detections
from solo_infer.preprocessing import Geometry, upload
from solo_infer.weights.pretrained import load_checkpoint
from solo_infer.yolact_config import YolactArchitecture, YolactThresholds

if TYPE_CHECKING:
    from typing_extensions import Self


class SOLO(Segmenter):
    """A SOLO, Decoupled SOLO or Decoupled Light SOLO model; see ``Segmenter`` for what it does."""

    architecture = Architecture
    network: SOLONetwork

    def __init__(self, config: ModelConfig, network: SOLONetwork) -> None:
        super().__init__(config, network)
        grids, levels = network.config.num_grids, network.config.strides
        strides = [stride for grid, stride in zip(grids, levels, strict=True) for _ in range(grid * grid)]
        self._strides = torch.tensor(strides, dtype=torch.float32)  # (cells,)
        self._fast_path = FastPath(network.config)

    def to(self, device: str | torch.device | None = None, dtype: str | torch.dtype | None = None) -> Self:
        """Move the model to a device, a dtype or both, in place, and return it.

        Raises:
            DeviceError: The device is not available, or cannot compute in the dtype.
        """
        super().to(device, dtype)
        self._strides = self._strides.to(self.device)
        return self

    def compile(self, **options: Any) -> Self:
        """See ``Segmenter.compile``."""
        other = super().compile(**options)
        other._fast_path = FastPath(self.network.config)  # graphs belong to one network
        return other

    def class_scores(self, inputs: Tensor) -> Tensor:
        """Return the scores (N, cells, classes) of network inputs (N, 3, H, W), 0 beside a local maximum."""
        _, scores = self.inference_network(inputs)
        return scores

    def _find(
        self, inputs: Tensor, geometries: list[Geometry], thresholds: AnyThresholds, watch: Stopwatch
    ) -> list[Detections]:
        assert isinstance(thresholds, Thresholds)
        network: SOLONetwork = self.inference_network
        if self._fast_path.fits(inputs.device, thresholds):
            return self._fast_path.find(
                network,
                inputs,
                self._class_weights(inputs.device),
                geometries,
                thresholds,
                lambda levels, scores, geometry: self._detect(levels, scores, [geometry], thresholds)[0],
                watch,
            )
        maps = network.backbone(inputs)
        watch.mark("backbone")
        levels = network.neck.solo_levels(maps)
        watch.mark("pyramid")
        scores = network.class_scores(levels)
        if self._wanted is not None:
            scores = scores * self._wanted.to(scores.device)
        watch.mark("classes")
        return self._detect(levels, scores, geometries, thresholds, watch)

    def _class_weights(self, device: torch.device) -> Tensor:
        """Return (classes,) float32: 1 for the classes to be found, 0 for others."""
        if self._wanted is None:
            return torch.ones(self.config.architecture.num_classes, device=device)
        return upload(self._wanted, device)

    def _detect(
        self,
        levels: list[Tensor],
        scores: Tensor,
        geometries: list[Geometry],
        thresholds: Thresholds,
        watch: Stopwatch | None = None,
    ) -> list[Detections]:
        """Turn level inputs and class scores (N, cells, classes) of a batch into detections."""
        watch = watch or Stopwatch()
        candidates = [postprocessing.find_candidates(image, thresholds.score_thr) for image in scores]
        cells = torch.cat([found.cells for found in candidates]).unique()
        maps = self.inference_network.mask_maps(levels, cells) if len(cells) else None
        watch.mark("masks")
        detections = [
            postprocessing.detect(found, maps, index, self._strides, geometry, thresholds)
            for index, (found, geometry) in enumerate(zip(candidates, geometries, strict=True))
        ]
        watch.mark("post")
        return detections


class YOLACT(Segmenter):
    """A YOLACT model, OpenMMLab's or the author's; see ``Segmenter`` for what it does.

    Boxes of its results are the detected ones, not the bounds of the masks.
    """

    architecture = YolactArchitecture
    network: YolactNetwork

    def class_scores(self, inputs: Tensor) -> Tensor:
        """Return the scores (N, anchors, classes) of network inputs (N, 3, H, W)."""
        network: YolactNetwork = self.inference_network
        return yolact_postprocessing.class_scores(network.bbox_head(network.features(inputs)).logits)

    def _find(
        self, inputs: Tensor, geometries: list[Geometry], thresholds: AnyThresholds, watch: Stopwatch
    ) -> list[Detections]:
        assert isinstance(thresholds, YolactThresholds)
        network: YolactNetwork = self.inference_network
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
        thresholds: YolactThresholds,
    ) -> list[Detections]:
        """Turn the predictions and prototypes (N, P, h, w) of a batch into detections."""
        anchors = self.network.anchors(levels, geometries[0].padded)
        sizes = level_sizes(levels)
        detections = []
        for index, geometry in enumerate(geometries):
            scores = yolact_postprocessing.class_scores(found.logits[index])
            if self._wanted is not None:
                scores = scores * self._wanted.to(scores.device)
            clip_to = None if self.network.config.is_authors else geometry.resized
            instances = yolact_postprocessing.find_instances(
                scores, found, index, anchors, sizes, clip_to, thresholds
            )
            detections.append(
                yolact_postprocessing.make_detections(
                    instances, prototypes[index], geometry, thresholds.mask_thr
                )
            )
        return detections


def family_of(config: ModelConfig) -> type[SOLO] | type[YOLACT]:
    """Return the class of the models of a configuration."""
    return SOLO if isinstance(config.architecture, Architecture) else YOLACT


def make_model(config: ModelConfig, network: Network) -> SOLO | YOLACT:
    """Return the model of a configuration and its network."""
    if isinstance(network, SOLONetwork):
        return SOLO(config, network)
    return YOLACT(config, network)


def load_model(
    name_or_path: str | os.PathLike[str],
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype = torch.float32,
    thresholds: AnyThresholds | None = None,
    config: ModelConfig | None = None,
    revision: str = "main",
    offline: bool | None = None,
) -> SOLO | YOLACT:
    """Load a model of whatever family its checkpoint is of.

    Arguments and errors are those of ``SOLO.from_pretrained``, but for that of a wrong family.
    """
    where, kind = resolve_device(device), resolve_dtype(dtype)
    checkpoint = load_checkpoint(name_or_path, config=config, revision=revision, offline=offline)
    model = family_of(checkpoint.config).from_checkpoint(checkpoint).to(where, kind)
    return model.with_thresholds(thresholds) if thresholds is not None else model
