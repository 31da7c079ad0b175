"""Prediction of a large image by tiles."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch import Tensor

from solo_infer.config.display import DISPLAY_THRESHOLD
from solo_infer.config.tiling import Tiling
from solo_infer.data.images import LoadedImage
from solo_infer.data.prefetch import PrefetchedImage
from solo_infer.inference.detections import Detections
from solo_infer.inference.stitching import stitch
from solo_infer.inference.tiling import Fragment, TileGrid, fragments_of
from solo_infer.ops.mask_crops import MaskCrops
from solo_infer.results.result import Result
from solo_infer.runtime.neutral_state import neutral_state
from solo_infer.segmenters.batching import with_loading

if TYPE_CHECKING:
    from solo_infer.segmenters.base import Segmenter

GPU_BATCH = 8  # least number of tiles per forward pass on a GPU


def predict_by_tiles(
    model: Segmenter,
    images: Iterable[PrefetchedImage],
    tiling: Tiling,
    batch_size: int,
) -> Iterator[Result]:
    """Iterate over the results of images; see ``predict_tiled``."""
    for prefetched in images:
        result = predict_tiled(model, prefetched.image, tiling, batch_size=batch_size)
        yield with_loading(result, prefetched)
        del result, prefetched  # a large image is not in memory while the next one is loaded


@neutral_state()
def predict_tiled(
    model: Segmenter,
    image: LoadedImage,
    tiling: Tiling,
    *,
    batch_size: int,
) -> Result:
    """Segment an image tile by tile and stitch the instances across the borders of the tiles.

    Of each tile, only the parts of the masks around the instances are kept, in host memory. Instances without
    pixels are left out.

    Args:
        model: Model.
        image: Decoded image.
        tiling: Size and overlap of the tiles.
        batch_size: Tiles in memory at a time; on a GPU, where they share forward passes, at least 8.
    """
    height, width = image.pixels.shape[:2]
    grid = TileGrid.of((height, width), tiling)
    fragments: list[Fragment] = []
    timings: dict[str, float] = defaultdict(float)
    display_threshold = DISPLAY_THRESHOLD
    step = batch_size if model.device.type == "cpu" else max(batch_size, GPU_BATCH)
    for start in range(0, len(grid), step):
        numbers = range(start, min(start + step, len(grid)))
        tiles = [LoadedImage(_pixels(image, grid, number), image.name) for number in numbers]
        for number, result in zip(numbers, model.predict_batch(tiles), strict=True):
            masks = cast(Tensor, result.packed_masks)
            detections = Detections(result.scores, result.labels, result.boxes, masks)
            fragments += fragments_of(detections, number, grid)
            display_threshold = result.display_threshold
            for stage, seconds in result.timings.items():
                timings[stage] += seconds
    start_time = time.perf_counter()
    stitched = stitch(fragments, grid)
    instances = [instance for instance in stitched if instance.score >= model.config.thresholds.filter_thr]
    timings["stitch"] = time.perf_counter() - start_time
    boxes = [instance.box for instance in instances]
    return Result(
        scores=torch.tensor([i.score for i in instances], dtype=torch.float32, device=model.device),
        labels=torch.tensor([i.label for i in instances], dtype=torch.int64, device=model.device),
        boxes=torch.tensor(boxes, dtype=torch.float32, device=model.device).reshape(-1, 4),
        packed_masks=MaskCrops.join([i.crop for i in instances], grid.image_size, model.device),
        image_size=grid.image_size,
        categories=model.config.categories,
        image=image.pixels,
        source=image.name,
        timings=dict(timings),
        display_threshold=display_threshold,
        frame_index=image.frame_index,
        frame_time=image.frame_time,
    )


def _pixels(image: LoadedImage, grid: TileGrid, number: int) -> np.ndarray:
    """Return a copy of the pixels of a tile."""
    window = grid.window(number)
    return image.pixels[window.top : window.bottom, window.left : window.right].copy()
