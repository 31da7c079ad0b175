"""SOLO on CUDA: fixed slots, graphs, and one wait for the device in a batch.

The whole way from a network input to the candidates that survive is handed over without looking at a result.
Then the host reads how many detections and candidates there are (the one wait), and up-samples just those
masks. Images with more candidates than the first bucket of slots go through a larger one, those with more
than the largest take ``postprocessing``'s way, whose memory is bounded for any number.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from solo_infer.config import PostprocessConfig, SOLOConfig
from solo_infer.inference import solo_static
from solo_infer.inference.cuda_graphs import Capture, CudaGraph, GraphCache
from solo_infer.inference.preprocess import Geometry
from solo_infer.inference.solo import Detections
from solo_infer.inference.solo_static import Features, SlotDetections
from solo_infer.models.optimized.static_masks import CellTable
from solo_infer.models.solo.network import SOLONetwork
from solo_infer.ops.paste_masks import paste_masks
from solo_infer.runtime.device import graphs_allowed
from solo_infer.runtime.stopwatch import Stopwatch

# Slots for the candidates of an image. A photo of COCO has a few hundred at the published thresholds.
BUCKETS = (512, 2048)

# Level inputs, class scores and sizes of one image -> its detections, for any number of candidates.
Fallback = Callable[[list[Tensor], Tensor, Geometry], Detections]


class FastPath:
    """Detections of batches with as little waiting as possible. Any number of threads may share it.

    Args:
        config: Of the network.
        capture: What records a graph; another one in tests.
    """

    def __init__(self, config: SOLOConfig, capture: Capture = CudaGraph) -> None:
        self._config, self._capture = config, capture
        self.graphs = GraphCache(capture)

    def __getstate__(self) -> dict[str, Any]:
        return {
            "config": self._config,
            "capture": self._capture,
        }  # copies and pickles capture their own graphs

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    @staticmethod
    def fits(device: torch.device, thresholds: PostprocessConfig) -> bool:
        """Return whether the device gains by it and it does what the thresholds ask for."""
        return thresholds.nms == "matrix" and graphs_allowed(device)

    def find(
        self,
        network: SOLONetwork,
        inputs: Tensor,
        wanted: Tensor,
        geometries: list[Geometry],
        thresholds: PostprocessConfig,
        fallback: Fallback,
        watch: Stopwatch,
    ) -> list[Detections]:
        """Return the detections of each image of a batch.

        Args:
            network: The one that predicts.
            inputs: (N, 3, H, W), channels_last, in the network's dtype.
            wanted: (classes,) float32, 1 for the classes to be found, 0 for others.
            geometries: The images' sizes.
            thresholds: All settings.
            fallback: The way for images with more candidates than slots.
            watch: Marks the stages if it waits for each of them; then no graph is used.
        """
        table = cell_table(self._config, inputs.device)

        def compute(inputs: Tensor, wanted: Tensor) -> tuple[Features, SlotDetections]:
            features = solo_static.extract(network, inputs, wanted)
            return features, solo_static.detect(network, features, table, thresholds, BUCKETS[0])

        def finish(features: Features, found: SlotDetections) -> list[Detections]:
            return self._finish(network, features, found, geometries, thresholds, fallback)

        if watch.waits:
            features = solo_static.extract(network, inputs, wanted, watch.mark)
            detected = solo_static.detect(network, features, table, thresholds, BUCKETS[0], watch.mark)
            detections = finish(features, detected)
        else:
            key = (tuple(inputs.shape), inputs.dtype, inputs.device, BUCKETS[0], thresholds)
            with self.graphs.run(network, key, compute, (inputs, wanted)) as (features, detected):
                detections = finish(features, detected)
        watch.mark("post")
        return detections

    def _finish(
        self,
        network: SOLONetwork,
        features: Features,
        found: SlotDetections,
        geometries: list[Geometry],
        thresholds: PostprocessConfig,
        fallback: Fallback,
    ) -> list[Detections]:
        kept, candidates = found.counts.tolist()  # the one wait for the device
        detections = []
        for image, geometry in enumerate(geometries):
            if candidates[image] <= BUCKETS[0]:
                detections.append(_full_size(found, image, kept[image], geometry, thresholds))
                continue
            own = Features(
                [level[image : image + 1] for level in features.levels], features.scores[image, None]
            )
            if candidates[image] > BUCKETS[-1]:
                detections.append(fallback(own.levels, own.scores, geometry))
                continue
            slots = next(slots for slots in BUCKETS if slots >= candidates[image])
            again = solo_static.detect(
                network, own, cell_table(self._config, own.scores.device), thresholds, slots
            )
            count = int(again.counts[0, 0])
            detections.append(_full_size(again, 0, count, geometry, thresholds))
        return detections


def _full_size(
    found: SlotDetections, image: int, count: int, geometry: Geometry, thresholds: PostprocessConfig
) -> Detections:
    """Return the first ``count`` detections of an image; copies, since the slots may be a graph's own."""
    soft = found.masks[image, :count]
    enlarged = 4 * soft.shape[1], 4 * soft.shape[2]
    packed, boxes = paste_masks(soft, enlarged, geometry.resized, geometry.original, thresholds.mask_thr)
    return Detections(found.scores[image, :count].clone(), found.labels[image, :count].clone(), boxes, packed)


@functools.lru_cache(maxsize=16)
def cell_table(config: SOLOConfig, device: torch.device) -> CellTable:
    """Return where each cell of an architecture lies, on a device."""
    return CellTable.of(config, device)
