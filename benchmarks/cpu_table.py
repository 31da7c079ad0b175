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
import sys
from typing import Any

import torch
from loads import LOADS
from subjects import MASK_RCNN, MODELS, Run, build, mask_rcnn, measure_in_turn, mmdet_variant

from solo_infer import load_image
from solo_infer.data.images import LoadedImage
from solo_infer.diagnostics.packages import installed_version
from solo_infer.runtime.cpu import cpu_name
from solo_infer.segmenters.auto_dtype import choose_dtype

VARIANTS = ("mmdet", "torchvision", "float32", "bfloat16")
_PACKAGES = ("solo-infer", "torch", "torchvision", "mmdet")


def variants_of(name: str, image: LoadedImage) -> dict[str, Run]:
    """Return functions that segment an image, the one to compare with first."""
    if name == MASK_RCNN:
        return {"torchvision": mask_rcnn(image)}
    model, half = build(name), build(name, dtype="bfloat16")
    return {
        **mmdet_variant(model, image),
        "float32": lambda: model.predict_batch([image]),
        "bfloat16": lambda: half.predict_batch([image]),
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
                    figures = measure_in_turn(variants, options.runs)
            except PermissionError as error:
                figures = {"skipped": str(error)}
            report["results"].append({"model": name, "load": load, **figures})
            print(json.dumps(report["results"][-1]), file=sys.stderr)
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
