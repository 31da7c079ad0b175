"""All models beside mmdet and torchvision's Mask R-CNN on a CPU, under loads, in one process (Linux).

    OMP_NUM_THREADS=2 python benchmarks/cpu_table.py street.jpg --load 0 1 2 quota > cpu_table.json

For each load and model, the variants run in turn, so that the noise of the machine meets all of them alike:
mmdet with the same weights (where it is installed and has the model), and this library in float32 and
bfloat16. Times are from the decoded image to masks at its size. "auto" is the dtype that ``dtype="auto"``
stands for on this machine. Weights are procedural, except for tiny's. Mask R-CNN (ResNet-50, input of 800
pixels) has random weights and returns 100 instances. Prints JSON, and a table on standard error.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from loads import LOADS
from mmdet_baseline import mmdet_runner

from solo_infer import load_image, load_model
from solo_infer.data.images import LoadedImage
from solo_infer.diagnostics.packages import installed_version
from solo_infer.diagnostics.verify import procedural_model
from solo_infer.errors import ConfigError
from solo_infer.runtime.cpu import cpu_name
from solo_infer.segmenters.auto_dtype import choose_dtype

MODELS = ("solo_r50", "decoupled_r50", "decoupled_light_r50", "solov2_r50", "yolact_r50", "tiny")
MASK_RCNN = "maskrcnn_resnet50_fpn"
VARIANTS = ("mmdet", "torchvision", "float32", "bfloat16")
_PACKAGES = ("solo-infer", "torch", "torchvision", "mmdet")

Run = Callable[[], object]


def variants_of(name: str, image: LoadedImage) -> dict[str, Run]:
    """Return functions that segment an image, the one to compare with first."""
    if name == MASK_RCNN:
        return {"torchvision": _mask_rcnn(image)}
    model = load_model("tiny", device="cpu") if name == "tiny" else procedural_model(name)
    half = (load_model("tiny", device="cpu") if name == "tiny" else procedural_model(name)).to(
        "cpu", "bfloat16"
    )
    runs: dict[str, Run] = {}
    try:
        run_mmdet = mmdet_runner(model)
        runs["mmdet"] = lambda: run_mmdet(image)
    except ConfigError as error:  # it is not installed, or has no such model
        print(f"{name}: without mmdet: {error}", file=sys.stderr)
    return {
        **runs,
        "float32": lambda: model.predict_batch([image]),
        "bfloat16": lambda: half.predict_batch([image]),
    }


def _mask_rcnn(image: LoadedImage) -> Run:
    from torchvision.models.detection import maskrcnn_resnet50_fpn

    network = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, box_score_thresh=0.0).eval()
    pixels = torch.from_numpy(image.pixels.copy()).permute(2, 0, 1)

    @torch.inference_mode()
    def run() -> object:
        (found,) = network([pixels.float() / 255])
        return found["masks"] > 0.5

    return run


def measure(variants: dict[str, Run], runs: int) -> dict[str, Any]:
    """Return the median seconds of each variant, and the medians of the ratios of the first one to each."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for index in range(runs + 1):
        for name, run in variants.items():
            start = time.perf_counter()
            run()
            if index:  # the first round prepares kernels and weights
                seconds[name].append(time.perf_counter() - start)
    first = next(iter(seconds.values()))
    return {
        "seconds": {name: round(statistics.median(values), 4) for name, values in seconds.items()},
        "speedup": {
            name: round(statistics.median(a / b for a, b in zip(first, values, strict=True)), 2)
            for name, values in seconds.items()
        },
    }


def main() -> None:
    """Measure all models under all loads."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("image", help="photo")
    parser.add_argument("--model", nargs="+", choices=(*MODELS, MASK_RCNN), default=[*MODELS, MASK_RCNN])
    parser.add_argument(
        "--load", nargs="+", choices=LOADS, default=list(LOADS), help="busy processes, or quota"
    )
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    image = load_image(options.image)
    report: dict[str, Any] = {
        "processor": cpu_name(),
        "system": platform.platform(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "image": list(image.pixels.shape[:2]),
        "runs": options.runs,
        "versions": {package: installed_version(package) for package in _PACKAGES},
        "auto": str(choose_dtype(torch.device("cpu"))),
        "results": [],
    }
    for name in options.model:
        variants = {key: run for key, run in variants_of(name, image).items() if key in options.variants}
        for load in options.load:
            try:
                with LOADS[load]():
                    figures = measure(variants, options.runs)
            except PermissionError as error:
                figures = {"skipped": str(error)}
            report["results"].append({"model": name, "load": load, **figures})
            print(json.dumps(report["results"][-1]), file=sys.stderr)
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
