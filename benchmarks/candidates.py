"""Time and memory of post-processing by the number of candidates, as JSON and as a picture.

    python benchmarks/candidates.py solo_r50 --counts 10 500 20000 300000

The network, with procedural weights, runs on noise of 800 x 1216 pixels; its class scores are replaced by
random ones of which so many exceed the threshold. Each count has a process of its own.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import torch

from solo_infer import SOLO
from solo_infer.diagnostics.benchmark import environment
from solo_infer.diagnostics.verify import procedural_model
from solo_infer.inference.preprocess import Geometry

SIZE = (800, 1216)
HERE = Path(__file__).parent


def class_scores(model: SOLO, count: int) -> torch.Tensor:
    """Return class scores (1, cells, classes) of which ``count`` lie above the threshold."""
    cells, classes = len(model._strides), model.config.architecture.num_classes
    generator = torch.Generator().manual_seed(0)
    scores = torch.zeros(cells * classes)
    chosen = torch.randperm(len(scores), generator=generator)[:count]
    scores[chosen] = 0.11 + 0.8 * torch.rand(count, generator=generator)
    return scores.view(1, cells, classes)


@torch.no_grad()
def measure(name: str, count: int) -> dict[str, float]:
    """Return seconds of the mask branch and post-processing, and MiB that they add to the process's peak."""
    model = procedural_model(name)
    images = torch.randn(1, 3, *SIZE, generator=torch.Generator().manual_seed(1))
    levels = model.inference_network.features(images.contiguous(memory_format=torch.channels_last))
    scores = class_scores(model, count)
    geometry = Geometry((427, 640), (800, 1199), SIZE)
    before, times = peak_mib(), []
    for _ in range(3):
        start = time.perf_counter()
        found = model._detect(levels, scores, [geometry], model.config.thresholds)
        times.append(time.perf_counter() - start)
    return {
        "candidates": count,
        "seconds": round(sorted(times)[1], 3),
        "added_mib": round(peak_mib() - before),
        "peak_mib": round(peak_mib()),
        "instances": len(found[0].scores),
    }


def peak_mib() -> float:
    """Return the most memory that this process ever had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def draw(rows: list[dict[str, float]], name: str, path: Path) -> None:
    """Draw seconds and MiB over the number of candidates."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.2), constrained_layout=True)
    counts = [row["candidates"] for row in rows]
    for axes, key, label in ((left, "seconds", "seconds"), (right, "peak_mib", "peak of the process, MiB")):
        axes.plot(counts, [row[key] for row in rows], "o-", color="#2a6f97")
        axes.set(xscale="log", xlabel="candidates", ylabel=label, ylim=(0, None))
        axes.grid(alpha=0.3)
    figure.suptitle(f"{name}, {SIZE[0]} x {SIZE[1]}: masks and post-processing")
    figure.savefig(path, dpi=110)


def main() -> None:
    """Measure each count in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--counts", type=int, nargs="+", default=[10, 500, 20000, 300000])
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one is not None:
        print(json.dumps(measure(options.model, options.one)))
        return
    rows = []
    for count in options.counts:
        command = [sys.executable, __file__, options.model, "--one", str(count)]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        rows.append(json.loads(output.splitlines()[-1]))
        print(rows[-1])
    target = HERE / f"candidates_{options.model}"
    report = {
        "model": options.model,
        "input": SIZE,
        "environment": environment(torch.device("cpu")),
        "rows": rows,
    }
    target.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
    draw(rows, options.model, target.with_suffix(".png"))


if __name__ == "__main__":
    main()
