"""What users hold: a model that takes images and gives results."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from solo_infer import postprocessing
from solo_infer._stopwatch import Stopwatch
from solo_infer.base import Segmenter
from solo_infer.config import ModelConfig, Thresholds
from solo_infer.fast_path import FastPath
from solo_infer.models import SOLONetwork
from solo_infer.postprocessing import Detections
from solo_infer.preprocessing import Geometry, upload

if TYPE_CHECKING:
    from typing_extensions import Self


class SOLO(Segmenter):
    """A SOLO, Decoupled SOLO or Decoupled Light SOLO model; see ``Segmenter`` for what it does."""

    network: SOLONetwork

    def __init__(self, config: ModelConfig, network: SOLONetwork) -> None:
        super().__init__(config, network)
        strides = [
            stride
            for grid, stride in zip(config.architecture.num_grids, config.architecture.strides, strict=True)
            for _ in range(grid * grid)
        ]
        self._strides = torch.tensor(strides, dtype=torch.float32)  # (cells,)
        self._fast_path = FastPath(config.architecture)

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
        other._fast_path = FastPath(self.config.architecture)  # graphs belong to one network
        return other

    def _find(
        self, inputs: Tensor, geometries: list[Geometry], thresholds: Thresholds, watch: Stopwatch
    ) -> list[Detections]:
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
        maps = self.network.mask_maps(levels, cells) if len(cells) else None
        watch.mark("masks")
        detections = [
            postprocessing.detect(found, maps, index, self._strides, geometry, thresholds)
            for index, (found, geometry) in enumerate(zip(candidates, geometries, strict=True))
        ]
        watch.mark("post")
        return detections
