"""3x3 convolutions of the networks on the CPU: oneDNN's, Winograd's in operations of torch, and compiled.

    OMP_NUM_THREADS=2 python benchmarks/convolutions.py
    OMP_NUM_THREADS=2 python benchmarks/convolutions.py --instructions avx2

The methods run in turn. Prints the shortest times in milliseconds as a table in Markdown.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from functools import partial
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor

from solo_infer.ops import winograd
from solo_infer.ops.native.library import KernelLibrary, load_kernels
from solo_infer.runtime.native_library import instruction_sets

# Channels, and sizes of the maps that are convolved together.
LAYERS: Sequence[tuple[int, Sequence[tuple[int, int]]]] = (
    (256, [(96, 168)]),
    (256, [(64, 108), (64, 108), (32, 54)]),
    (256, [(40, 40), (36, 36), (24, 24), (16, 16), (12, 12)]),
    (512, [(24, 42)]),
    (128, [(68, 120)]),
    (64, [(134, 200)]),
    (48, [(136, 240)]),
    (32, [(136, 240)]),
    (16, [(136, 240)]),
)


def methods(maps: list[Tensor], library: KernelLibrary) -> dict[str, Callable[[], object]]:
    """Return functions that convolve maps, by the names of their methods."""
    channels = maps[0].shape[1]
    weight = torch.randn(channels, channels, 3, 3).contiguous(memory_format=torch.channels_last)
    functions: dict[str, Callable[[], object]] = {
        "oneDNN": lambda: [F.conv2d(x, weight, padding=1) for x in maps]
    }
    for name, kernels in (("operations of torch", None), ("compiled", library)):
        with patch.object(winograd, "kernel_library", return_value=kernels):
            transformed = winograd.transform_weight(weight)
        functions[name] = partial(winograd.convolve, maps, transformed)
    return functions


@torch.inference_mode()
def main() -> None:
    """Measure all layers."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--instructions", choices=instruction_sets(), default=next(iter(instruction_sets()), None)
    )
    parser.add_argument("--runs", type=int, default=15)
    options = parser.parse_args()
    library = load_kernels(options.instructions)
    if library is None:
        parser.error("the kernels are not installed")
    print("| channels | maps | oneDNN | operations of torch | compiled |\n| --- | --- | --- | --- | --- |")
    for channels, sizes in LAYERS:
        maps = [torch.randn(1, channels, *size).to(memory_format=torch.channels_last) for size in sizes]
        functions = methods(maps, library)
        seconds: dict[str, list[float]] = {name: [] for name in functions}
        for _ in range(options.runs):
            for name, run in functions.items():
                start = time.perf_counter()
                run()
                seconds[name].append(time.perf_counter() - start)
        cells = [f"{1000 * min(times):.1f}" for times in seconds.values()]
        names = ", ".join(f"{height} x {width}" for height, width in sizes)
        print(f"| {channels} | {names} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
