"""Images to forward passes, and detections to results."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from solo_infer.config import Categories
from solo_infer.config.validation import require, require_instance
from solo_infer.data.images import LoadedImage
from solo_infer.data.prefetch import PrefetchedImage, in_batches
from solo_infer.inference.detections import Detections
from solo_infer.inference.preprocess import Geometry
from solo_infer.results.result import Result
from solo_infer.runtime.stopwatch import Stopwatch

if TYPE_CHECKING:
    from solo_infer.segmenters.base import Segmenter


def check_batch(batch: Sequence[LoadedImage]) -> None:
    """Raise ``ConfigError`` unless a batch is a list or tuple of loaded images."""
    require(
        isinstance(batch, list | tuple), f"batch is a {type(batch).__name__}: expected a list or a tuple."
    )
    for image in batch:
        require_instance("An image of the batch", image, LoadedImage)


def forward_groups(geometries: Sequence[Geometry], device: torch.device) -> list[list[int]]:
    """Return the indices of the images of each forward pass.

    GroupNorm and the coordinate channels see the padding, so that only images of equal padded size may share
    a forward pass. On the CPU each image is processed alone: a batch gains nothing there, and it rounds
    differently, which can move a score across a threshold.

    Args:
        geometries: Sizes of the images.
        device: Device of the network.
    """
    if device.type == "cpu":
        return [[index] for index in range(len(geometries))]
    groups: dict[tuple[int, int], list[int]] = defaultdict(list)
    for index, geometry in enumerate(geometries):
        groups[geometry.padded].append(index)
    return list(groups.values())


def make_results(
    batch: Sequence[LoadedImage],
    detections: Sequence[Detections],
    categories: Categories,
    stopwatch: Stopwatch,
    display_threshold: float,
) -> list[Result]:
    """Return the results of images that shared a forward pass.

    Args:
        batch: Decoded images.
        detections: Their detections.
        categories: Class names of the model.
        stopwatch: Times of the stages of all images together.
        display_threshold: Lowest score that is drawn, 0..1.
    """
    timings = {stage: seconds / len(batch) for stage, seconds in stopwatch.seconds.items()}
    return [
        make_result(image, image_detections, categories, timings, display_threshold)
        for image, image_detections in zip(batch, detections, strict=True)
    ]


def make_result(
    image: LoadedImage,
    detections: Detections,
    categories: Categories,
    timings: Mapping[str, float],
    display_threshold: float,
) -> Result:
    """Return the result of one image.

    Args:
        image: Decoded image.
        detections: Its detections.
        categories: Class names of the model.
        timings: Seconds by stage.
        display_threshold: Lowest score that is drawn, 0..1.
    """
    return Result(
        scores=detections.scores,
        labels=detections.labels,
        boxes=detections.boxes,
        packed_masks=detections.packed_masks,
        image_size=image.pixels.shape[:2],
        categories=categories,
        image=image.pixels,
        source=image.name,
        timings=timings,
        display_threshold=display_threshold,
        frame_index=image.frame_index,
        frame_time=image.frame_time,
    )


def predict_in_batches(
    model: Segmenter, images: Iterator[PrefetchedImage], batch_size: int
) -> Iterator[Result]:
    """Iterate over the results of images, of which ``batch_size`` are in memory at a time.

    Args:
        model: Model.
        images: Loaded images.
        batch_size: Images per call of ``predict_batch``.
    """
    for batch in in_batches(images, batch_size):
        results = model.predict_batch([prefetched.image for prefetched in batch])
        for result, prefetched in zip(results, batch, strict=True):
            yield with_loading(result, prefetched)


def with_loading(result: Result, prefetched: PrefetchedImage) -> Result:
    """Return a result whose timings include the loading of its image."""
    return replace(result, timings={**prefetched.timings, **result.timings})
