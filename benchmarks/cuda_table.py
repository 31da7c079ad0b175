"""All models beside mmdet and torchvision's Mask R-CNN on an NVIDIA GPU, in one process.

    python benchmarks/cuda_table.py street.jpg > benchmarks/cuda_table.json

For each model, the variants run in turn: mmdet with the same weights (where it is installed and has the
model), this library in three dtypes, and in float32 without Triton kernels and without CUDA graphs. Times are
from the decoded image to masks at its size: in this library packed on the host, in the other ones on the
device. Those of a batch are per image. float32 uses TF32 in convolutions, as PyTorch sets it. Weights are
procedural, except for tiny's. Prints JSON, and each row on standard error.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import platform
import sys
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import torch
from subjects import MASK_RCNN, MODELS, Run, build, mask_rcnn, measure_in_turn, mmdet_variant

from solo_infer import load_image
from solo_infer.data.images import LoadedImage
from solo_infer.diagnostics.packages import installed_version
from solo_infer.inference import network_graphs, solo_static
from solo_infer.ops import dispatch

_PACKAGES = ("solo-infer", "torch", "torchvision", "triton", "mmdet")


@contextlib.contextmanager
def without_triton() -> Iterator[None]:
    """Run the PyTorch functions instead of Triton kernels."""
    with patch.object(dispatch, "triton_allowed", return_value=False):
        yield


@contextlib.contextmanager
def without_graphs() -> Iterator[None]:
    """Launch each kernel of a network instead of a CUDA graph."""
    with contextlib.ExitStack() as stack:
        for module in (solo_static, network_graphs):
            stack.enter_context(patch.object(module, "graphs_allowed", return_value=False))
        yield


def variants_of(name: str, image: LoadedImage) -> dict[str, Run]:
    """Return functions that segment an image on the GPU, the one to compare with first."""
    if name == MASK_RCNN:
        return {"torchvision": mask_rcnn(image, "cuda")}

    def run(model: Any, context: Any = contextlib.nullcontext) -> Run:
        def predict() -> object:
            with context():
                return model.predict_batch([image])

        return predict

    plain = build(name, "cuda")
    return {
        **mmdet_variant(plain, image),
        **{dtype: run(build(name, "cuda", dtype)) for dtype in ("float32", "bfloat16", "float16")},
        "float32 without Triton": run(build(name, "cuda"), without_triton),
        "float32 without graphs": run(plain, without_graphs),
    }


def batched(name: str, image: LoadedImage, size: int, runs: int) -> dict[str, Any]:
    """Return the seconds per image of batches."""
    models = {dtype: build(name, "cuda", dtype) for dtype in ("float32", "float16")}
    variants: dict[str, Run] = {
        dtype: lambda model=model: model.predict_batch([image] * size)  # type: ignore[misc]
        for dtype, model in models.items()
    }
    figures = measure_in_turn(variants, runs, warmup=3, synchronize=torch.cuda.synchronize)
    return {dtype: float(f"{seconds / size:.4g}") for dtype, seconds in figures["seconds"].items()}


def main() -> None:
    """Measure all models."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("image", help="photo")
    parser.add_argument("--model", nargs="+", choices=(*MODELS, MASK_RCNN), default=[*MODELS, MASK_RCNN])
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--runs", type=int, default=20)
    options = parser.parse_args()
    image = load_image(options.image)
    report: dict[str, Any] = {
        "gpu": torch.cuda.get_device_name(),
        "system": platform.platform(),
        "threads": torch.get_num_threads(),
        "image": list(image.pixels.shape[:2]),
        "runs": options.runs,
        "batch_size": options.batch_size,
        "versions": {package: installed_version(package) for package in _PACKAGES},
        "results": [],
    }
    for name in options.model:
        variants = variants_of(name, image)
        figures = measure_in_turn(variants, options.runs, warmup=4, synchronize=torch.cuda.synchronize)
        if name != MASK_RCNN:
            figures["batch"] = batched(name, image, options.batch_size, max(options.runs // 4, 1))
        report["results"].append({"model": name, **figures})
        print(json.dumps(report["results"][-1]), file=sys.stderr, flush=True)
        torch.cuda.empty_cache()
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
