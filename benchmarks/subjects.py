"""Subjects of the benchmarks: models of this library, mmdet's and torchvision's, on one image."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from mmdet_baseline import mmdet_runner

from solo_infer import load_model
from solo_infer.data.images import LoadedImage
from solo_infer.diagnostics.verify import procedural_model
from solo_infer.errors import ConfigError
from solo_infer.segmenters.base import Segmenter

MODELS = ("solo_r50", "decoupled_r50", "decoupled_light_r50", "solov2_r50", "yolact_r50", "tiny")
MASK_RCNN = "maskrcnn_resnet50_fpn"

Run = Callable[[], object]


def build(name: str, device: str = "cpu", dtype: str = "float32") -> Segmenter:
    """Return a model with procedural weights, which take the time of trained ones, or tiny."""
    model = load_model("tiny", device="cpu") if name == "tiny" else procedural_model(name)
    return model.to(device, dtype)


def mmdet_variant(model: Segmenter, image: LoadedImage) -> dict[str, Run]:
    """Return mmdet with the weights of a model, if it is installed and has the model."""
    try:
        run = mmdet_runner(model)
    except ConfigError as error:
        print(f"without mmdet: {error}", file=sys.stderr)
        return {}
    return {"mmdet": lambda: run(image)}


def mask_rcnn(image: LoadedImage, device: str = "cpu") -> Run:
    """Return torchvision's Mask R-CNN with random weights and 100 instances, in float32."""
    from torchvision.models.detection import maskrcnn_resnet50_fpn

    network = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, box_score_thresh=0.0)
    network.eval().to(device)
    pixels = torch.from_numpy(image.pixels.copy()).permute(2, 0, 1)

    @torch.inference_mode()
    def run() -> object:
        (found,) = network([pixels.to(device).float() / 255])
        return found["masks"] > 0.5

    return run


def measure_in_turn(
    variants: dict[str, Run], runs: int, *, warmup: int = 1, synchronize: Run = lambda: None
) -> dict[str, Any]:
    """Return the median seconds of each variant, and the medians of the ratios of the first one to each."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for index in range(warmup + runs):
        for name, run in variants.items():
            start = time.perf_counter()
            run()
            synchronize()
            if index >= warmup:  # kernels and weights are prepared
                seconds[name].append(time.perf_counter() - start)
    first = next(iter(seconds.values()))
    return {
        "seconds": {name: float(f"{statistics.median(values):.4g}") for name, values in seconds.items()},
        "speedup": {
            name: round(statistics.median(a / b for a, b in zip(first, values, strict=True)), 2)
            for name, values in seconds.items()
        },
    }
