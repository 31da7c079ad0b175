"""Times of one model in PyTorch, ONNX Runtime and OpenVINO, in one run on the CPU.

    OMP_NUM_THREADS=2 python benchmarks/engines.py --output benchmarks/engines.json

Each image goes through every variant in turn, so that the load of the machine meets all of them alike. Times
are from the decoded image to the ``Result``. Beside them stand the differences from PyTorch in float32:
number of instances, greatest score difference and least mask IoU of paired instances.

The model decoupled_light_r50 has procedural weights of the published layout, which cost the same time as
trained ones for the same number of candidates.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from pathlib import Path

import subjects
import torch

from solo_infer import load_image, load_model
from solo_infer.diagnostics.benchmark import percentiles
from solo_infer.diagnostics.device_checks import cpu_name
from solo_infer.diagnostics.packages import installed_version
from solo_infer.diagnostics.pairing import pair_with, reference_of
from solo_infer.export.model_file import export_model
from solo_infer.inference.detections import Detections
from solo_infer.runtime.atomic_files import write_text

MODELS = ("tiny", "decoupled_light_r50")
VARIANTS = {
    "torch float32": ("torch", "float32"),
    "torch bfloat16": ("torch", "bfloat16"),
    "onnxruntime float32": ("onnxruntime", "float32"),
    "openvino float32": ("openvino", "float32"),
    "openvino bfloat16": ("openvino", "bfloat16"),
}
PAIRED_SCORES = 0.2  # greatest score difference of two instances that are the same


def build(name, engine, dtype, path):
    """Return a model in PyTorch, or its exported file in an engine."""
    if engine != "torch":
        return load_model(path, engine=engine, dtype=dtype)
    return subjects.build(name, dtype=dtype)


def compare(result, reference):
    """Return the differences of a result from the reference."""
    width = result.image_size[1]
    detections, expected = (
        Detections(item.scores, item.labels, item.boxes, item.packed_masks) for item in (result, reference)
    )
    pairs = pair_with(detections, reference_of(expected, width), result.image_size, PAIRED_SCORES)
    return {
        "instances": len(result),
        "reference_instances": len(reference),
        "score_difference": pairs.score_difference,
        "least_mask_iou": 1 - pairs.iou_loss,
        "unpaired": pairs.unpaired,
    }


def measure(name, images, runs, folder):
    """Return the times and differences of all variants of a model."""
    plain = build(name, "torch", "float32", None)
    path = export_model(plain, Path(folder) / f"{name}.onnx")
    models = {title: build(name, *settings, path) for title, settings in VARIANTS.items()}
    seconds = {title: [] for title in models}
    differences = {title: {} for title in models}
    for image in images:
        reference = None
        for title, model in models.items():  # the first run of each size compiles, and is not timed
            (result,) = model.predict_batch([image])
            reference = result if reference is None else reference
            differences[title][Path(image.name).name] = compare(result, reference)
    for _ in range(runs):
        for image in images:
            for title, model in models.items():
                start = time.perf_counter()
                model.predict_batch([image])
                seconds[title].append(time.perf_counter() - start)
    base = statistics.median(seconds["torch float32"])
    return {
        title: {
            "milliseconds": vars(percentiles(seconds[title])),
            "speedup": base / statistics.median(seconds[title]),
            "differences": differences[title],
        }
        for title in models
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("images", nargs="*", default=["examples/street.jpg"], help="photos")
    parser.add_argument("--model", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--output", type=Path, help="JSON file to write")
    args = parser.parse_args()
    images = [load_image(path) for path in args.images]
    packages = ("solo-infer", "torch", "onnxruntime", "openvino")
    report = {
        "processor": cpu_name(),
        "system": platform.platform(),
        "threads": torch.get_num_threads(),
        "runs": args.runs,
        "images": {Path(image.name).name: list(image.pixels.shape[:2]) for image in images},
        "versions": {name: installed_version(name) for name in packages},
    }
    with tempfile.TemporaryDirectory() as folder:
        report["models"] = {name: measure(name, images, args.runs, folder) for name in args.model}
    text = json.dumps(report, indent=2)
    if args.output:
        write_text(args.output, text + "\n")
    for name, variants in report["models"].items():
        for title, values in variants.items():
            print(
                f"{name:<22}{title:<22}{values['milliseconds']['median']:>9.1f} ms{values['speedup']:>7.2f}x"
            )


if __name__ == "__main__":
    main()
