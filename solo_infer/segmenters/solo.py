"""SOLO, Decoupled SOLO and Decoupled Light SOLO models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from solo_infer.config import BasePostprocessConfig, ModelConfig, PostprocessConfig, SOLOConfig
from solo_infer.inference import solo as postprocessing
from solo_infer.inference.preprocess import Geometry
from solo_infer.inference.solo import Detections
from solo_infer.inference.solo_cuda import FastPath
from solo_infer.models.solo.network import SOLONetwork
from solo_infer.ops.preprocess import upload
from solo_infer.runtime.stopwatch import Stopwatch
from solo_infer.segmenters.base import Segmenter

if TYPE_CHECKING:
    from typing_extensions import Self


class SOLO(Segmenter):
    """A SOLO, Decoupled SOLO or Decoupled Light SOLO model; see ``Segmenter`` for what it does."""

    architecture = SOLOConfig
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
        self, inputs: Tensor, geometries: list[Geometry], thresholds: BasePostprocessConfig, watch: Stopwatch
    ) -> list[Detections]:
        assert isinstance(thresholds, PostprocessConfig)
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
        thresholds: PostprocessConfig,
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
