"""Latency of SOLO models on a CPU beside busy processes, and with a CPU quota (Linux).

    OMP_NUM_THREADS=2 python benchmarks/busy_machine.py --runs 5 > busy_machine.json
    OMP_NUM_THREADS=2 OMP_WAIT_POLICY=passive python benchmarks/busy_machine.py --runs 5

For each load (no other process, one, two, and a quota of one CPU, for which the script needs a writable
control group) the variants of one network run in turn, in one process:

- plain: all convolutions by oneDNN,
- winograd: Winograd convolutions, by the compiled kernel where it is installed,
- one thread: "winograd" with ``torch.set_num_threads(1)``,
- adapted: "winograd" with as many threads as the load leaves CPUs (what the library does).

Ratios are medians of the ratios to "plain" of the same round. Weights are procedural. Prints JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from unittest import mock

import torch
from loads import LOADS
from peak_memory import make_image

from solo_infer import load_model
from solo_infer.diagnostics.verify import procedural_model
from solo_infer.models.optimized import halved_p2, upsampled_conv, winograd_conv
from solo_infer.ops.native.library import kernel_library
from solo_infer.runtime import environment
from solo_infer.runtime.cpu import cpu_name
from solo_infer.segmenters.base import Segmenter


@contextlib.contextmanager
def plain() -> Iterator[None]:
    """Compute all convolutions by oneDNN."""
    with contextlib.ExitStack() as stack:
        for module in (halved_p2, upsampled_conv, winograd_conv):
            stack.enter_context(mock.patch.object(module, "can_use_winograd", lambda x: False))
        yield


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Compute with one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextlib.contextmanager
def adapted() -> Iterator[None]:
    """Adapt the number of threads to the load."""
    with mock.patch.dict(os.environ, {environment.ADAPT_THREADS: "1"}):
        yield


VARIANTS: dict[str, Callable[[], contextlib.AbstractContextManager[None]]] = {
    "plain": plain,
    "winograd": contextlib.nullcontext,
    "one thread": one_thread,
    "adapted": adapted,
}


def measure(model: Segmenter, image: object, runs: int) -> dict[str, object]:
    """Return the seconds of each variant, and the medians of the ratios to the first one."""
    seconds: dict[str, list[float]] = {name: [] for name in VARIANTS}
    for index in range(runs + 1):
        for name, variant in VARIANTS.items():
            with variant():
                start = time.perf_counter()
                model(image)
                elapsed = time.perf_counter() - start
            if index:  # the first round prepares kernels and weights
                seconds[name].append(round(elapsed, 4))
    plain_seconds = next(iter(seconds.values()))
    ratios = {
        name: statistics.median(b / a for a, b in zip(plain_seconds, values, strict=True))
        for name, values in seconds.items()
    }
    return {
        "seconds": seconds,
        "median": {name: round(statistics.median(values), 3) for name, values in seconds.items()},
        "ratio_to_plain": {name: round(ratio, 3) for name, ratio in ratios.items()},
    }


def main() -> None:
    """Measure all models under all loads."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    models = ["decoupled_r50", "decoupled_light_r50", "solo_r50"]
    parser.add_argument("--model", nargs="+", default=models, help="presets, or folders and published names")
    parser.add_argument("--size", type=int, nargs=2, default=(427, 640), metavar=("H", "W"))
    parser.add_argument("--load", nargs="+", default=list(LOADS), choices=LOADS)
    parser.add_argument("--input-size", type=int, nargs=2, metavar=("SHORT", "LONG"), help="network input")
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_args()
    variables = {name: value for name, value in os.environ.items() if name.startswith(("OMP", "GOMP", "KMP"))}
    library = kernel_library()
    report = {
        "processor": cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "environment": variables,
        "kernels": library.instructions if library is not None else None,
        "results": [],
    }
    os.environ[environment.ADAPT_THREADS] = "0"
    image = make_image(*args.size)
    for name in args.model:
        model = procedural_model(name) if name in models else load_model(name, device="cpu")
        if args.input_size:
            model = model.with_settings(input_size=args.input_size)
        for load in args.load:
            before = os.getloadavg()[0]
            try:
                with LOADS[load]():
                    figures = measure(model, image, args.runs)
            except PermissionError as error:
                figures = {"skipped": str(error)}
            result = {"model": name, "load": load, "load_average_before": round(before, 1), **figures}
            report["results"].append(result)
            print(json.dumps({key: result[key] for key in result if key != "seconds"}), file=sys.stderr)
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
