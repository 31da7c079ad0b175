"""Time, multiplications and rate of each stage of the models on the CPU, beside their lower bound.

    OMP_NUM_THREADS=2 python benchmarks/stage_profile.py street.jpg --output benchmarks/stages.json
    OMP_NUM_THREADS=2 python benchmarks/stage_profile.py street.jpg --dtype bfloat16

GFLOP counts a multiplication and an addition as two operations, of convolutions and matrix products only:
"direct" of the plain network, "computed" of the optimized one. The lower bound of a stage is what it computes
at the rate of a 3x3 convolution of 256 channels by oneDNN, the fastest operation of the networks, measured
before each model. Times are the shortest ones of all runs, from the decoded image to masks at its size.
Weights are procedural, except for tiny's. Prints the tables in Markdown.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from subjects import MODELS, build
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from solo_infer import load_image
from solo_infer.data.images import LoadedImage
from solo_infer.diagnostics.packages import installed_version
from solo_infer.inference.preprocess import plan, prepare
from solo_infer.models.optimized.optimize import OptimizedNetworkCache
from solo_infer.ops.native import kernel_masks, pointwise, stem, winograd
from solo_infer.ops.native.library import KernelLibrary
from solo_infer.runtime.atomic_files import write_text
from solo_infer.runtime.cpu import cpu_name
from solo_infer.runtime.stopwatch import Stopwatch
from solo_infer.segmenters.base import Segmenter

_PACKAGES = ("solo-infer", "torch")
_COLUMNS = ("milliseconds", "gflop_direct", "gflop_computed", "gflop_per_second", "lower_bound_milliseconds")


class _KernelFlops:
    """Counter of the operations of compiled kernels, which torch's counter does not see."""

    def __init__(self) -> None:
        self.total = 0
        self._patches = ExitStack()

    def __enter__(self) -> _KernelFlops:
        self._count(winograd, "convolve", _winograd_flops)
        self._count(pointwise, "convolve", _pointwise_flops)
        self._count(stem, "run_stem", _stem_flops)
        self._count(kernel_masks, "kernel_mask_statistics", _mask_flops)
        return self

    def __exit__(self, *_: object) -> None:
        self._patches.close()

    def _count(self, module: ModuleType, name: str, flops: Callable[..., int]) -> None:
        function = getattr(module, name)

        def count(*args: Any, **kwargs: Any) -> Any:
            self.total += flops(*args)
            return function(*args, **kwargs)

        self._patches.enter_context(patch.object(module, name, count))


def _winograd_flops(
    library: KernelLibrary, _: object, outputs: Sequence[Tensor], weight: Tensor, *__: Any
) -> int:
    tiles = sum(len(y) * -(-y.shape[1] // 4) * -(-y.shape[2] // 4) for y in outputs)
    channels = outputs[0].shape[3]
    columns = -(-channels // library.block_columns) * library.block_columns  # with those of zeros
    return 2 * tiles * weight.numel() * channels // columns


def _pointwise_flops(_: object, pixels: Tensor, __: object, ___: object, outputs: Tensor, ____: float) -> int:
    return 2 * outputs.numel() * pixels.shape[3]


def _stem_flops(_: object, pixels: Tensor, __: object, ___: object, outputs: Tensor) -> int:
    count, height, width, channels = pixels.shape
    return 2 * count * -(-height // 2) * -(-width // 2) * outputs.shape[3] * 49 * channels


def _mask_flops(_: object, kernels: Tensor, features: Tensor, __: float) -> int:
    return 2 * kernels.numel() * len(features)


class _FlopStopwatch(Stopwatch):
    """Stopwatch that counts the operations between marks instead of the time."""

    def __init__(self, counter: FlopCounterMode, kernels: _KernelFlops) -> None:
        super().__init__()
        self.gflop: dict[str, float] = {}
        self._counter, self._kernels, self._counted = counter, kernels, 0

    def mark(self, stage: str) -> None:
        """Add the operations since the last mark, or the start, to a stage."""
        total = self._counter.get_total_flops() + self._kernels.total
        self.gflop[stage] = self.gflop.get(stage, 0.0) + (total - self._counted) / 1e9
        self._counted = total


def _convolution_flops(x: Sequence[int], weight: Sequence[int], *_: Any, out_shape: Any, **__: Any) -> int:
    return 2 * math.prod(out_shape) * math.prod(weight[1:])


def _sum_flops(_: Any, x: Sequence[int], weight: Sequence[int], *__: Any, out_shape: Any, **___: Any) -> int:
    return 2 * math.prod(out_shape) * math.prod(weight[1:])


# Operators of oneDNN that torch's counter does not know.
_ONEDNN_FLOPS = {
    torch.ops.mkldnn._convolution_pointwise: _convolution_flops,
    torch.ops.mkldnn._convolution_pointwise_: _sum_flops,
    torch.ops.mkldnn._linear_pointwise: _convolution_flops,
}


def count_gflop(model: Segmenter, image: LoadedImage) -> dict[str, float]:
    """Return the GFLOP of each stage of a model on an image."""
    settings = model.config.preprocessing
    geometries = [plan(image.pixels, settings)]
    inputs = prepare([image.pixels], geometries, settings, model.device, model.dtype)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the counter does not see the operations of other threads
    try:
        with (
            FlopCounterMode(display=False, custom_mapping=_ONEDNN_FLOPS) as counter,
            _KernelFlops() as kernels,
        ):
            stopwatch = _FlopStopwatch(counter, kernels)
            model.detect(inputs, geometries, stopwatch=stopwatch)
    finally:
        torch.set_num_threads(threads)
    return stopwatch.gflop


def plain(model: Segmenter) -> Segmenter:
    """Return a model that predicts with its plain network."""
    model._optimized = OptimizedNetworkCache(model.network, lambda network: network)
    return model


def convolution_rate(dtype: torch.dtype) -> float:
    """Return the GFLOP/s of a 3x3 convolution of 256 channels and 100 x 152 pixels."""
    x, weight = (
        torch.ones(shape, dtype=dtype).contiguous(memory_format=torch.channels_last)
        for shape in ((1, 256, 100, 152), (256, 256, 3, 3))
    )
    seconds = []
    with torch.no_grad():
        for _ in range(8):
            start = time.perf_counter()
            F.conv2d(x, weight, padding=1)
            seconds.append(time.perf_counter() - start)
    return 2 * 9 * 256 * x.numel() / min(seconds) / 1e9


def profile(name: str, image: LoadedImage, dtype: str, runs: int) -> dict[str, Any]:
    """Return the figures of each stage of a model."""
    direct = count_gflop(plain(build(name, dtype=dtype)), image)
    model = build(name, dtype=dtype)
    model.predict_batch([image])
    computed = count_gflop(model, image)
    rate = convolution_rate(model.dtype)
    timings = [model.predict_batch([image])[0].timings for _ in range(runs)]
    stages = {}
    for stage in timings[0]:
        seconds = min(timing[stage] for timing in timings)
        gflop = computed.get(stage, 0.0)
        stages[stage] = {
            "milliseconds": round(1000 * seconds, 1),
            "gflop_direct": round(direct.get(stage, 0.0), 2),
            "gflop_computed": round(gflop, 2),
            "gflop_per_second": round(gflop / seconds, 1),
            "lower_bound_milliseconds": round(1000 * gflop / rate, 1),
        }
    keys = ("milliseconds", "gflop_direct", "gflop_computed", "lower_bound_milliseconds")
    total = {key: round(sum(stage[key] for stage in stages.values()), 1) for key in keys}
    total["gflop_per_second"] = round(1000 * total["gflop_computed"] / total["milliseconds"], 1)
    size = plan(image.pixels, model.config.preprocessing).padded
    return {"input": list(size), "convolution_gflop_per_second": round(rate, 1), **stages, "total": total}


def table(name: str, figures: dict[str, Any]) -> str:
    """Return the figures of a model as a table in Markdown."""
    height, width = figures["input"]
    lines = [
        f"{name}, {height} x {width}, convolution at {figures['convolution_gflop_per_second']} GFLOP/s",
        "",
        "| stage | ms | GFLOP, direct | GFLOP, computed | GFLOP/s | lower bound, ms |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for stage, values in figures.items():
        if isinstance(values, dict):
            lines.append(f"| {' | '.join([stage, *(str(values[key]) for key in _COLUMNS)])} |")
    return "\n".join(lines)


def main() -> None:
    """Profile models on a photo."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("image", help="photo")
    parser.add_argument("--model", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--output", type=Path, help="JSON file to write")
    options = parser.parse_args()
    image = load_image(options.image)
    report: dict[str, Any] = {
        "processor": cpu_name(),
        "system": platform.platform(),
        "threads": torch.get_num_threads(),
        "dtype": options.dtype,
        "runs": options.runs,
        "image": list(image.pixels.shape[:2]),
        "versions": {package: installed_version(package) for package in _PACKAGES},
        "models": {},
    }
    for name in options.model:
        report["models"][name] = profile(name, image, options.dtype, options.runs)
        print(table(name, report["models"][name]), end="\n\n", flush=True)
    if options.output:
        write_text(options.output, json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
