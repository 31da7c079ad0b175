"""Time and memory of the mask branch and post-processing by the number of candidates, as JSON and as a chart.

    python benchmarks/candidates.py solo_r50 --counts 10 500 20000 300000

The network has procedural weights and runs on noise at 800 x 1216 pixels. Random class scores, of which the
given number exceeds the threshold, replace its own. Each count runs in a separate process.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from solo_infer.diagnostics.benchmark import describe_environment
from solo_infer.diagnostics.verify import procedural_model
from solo_infer.inference.preprocess import plan, prepare
from solo_infer.inference.solo import detect_features, extract_features
from solo_infer.runtime.stopwatch import Stopwatch

INPUT_SIZE = (800, 1216)
IMAGE_SIZE = (427, 640)  # resized and padded to INPUT_SIZE
FOLDER = Path(__file__).parent
RUNS = 3


def random_scores(shape: tuple[int, ...], count: int) -> Tensor:
    """Return class scores of which ``count`` exceed the score threshold of 0.1."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.zeros(math.prod(shape))
    candidates = torch.randperm(len(scores), generator=generator)[:count]
    scores[candidates] = 0.11 + 0.8 * torch.rand(count, generator=generator)
    return scores.view(shape)


@torch.no_grad()
def measure(name: str, count: int) -> dict[str, float]:
    """Return seconds of the mask branch and post-processing, and the memory that candidates add."""
    image = np.random.default_rng(1).integers(0, 256, (*IMAGE_SIZE, 3), dtype=np.uint8)
    model = procedural_model(name)
    config, network = model.config, model.inference_network
    geometries = [plan(image, config.preprocessing)]
    inputs = prepare([image], geometries, config.preprocessing, model.device)
    features = extract_features(network, inputs, None, Stopwatch())
    shape = tuple(features.scores.shape)

    def detect(count: int) -> tuple[float, int]:
        stopwatch = Stopwatch()
        candidates = features._replace(scores=random_scores(shape, count))
        (detections,) = detect_features(network, candidates, geometries, config.thresholds, stopwatch)
        return sum(stopwatch.seconds.values()), len(detections.scores)

    detect(0)
    before = peak_mib()
    runs = sorted(detect(count) for _ in range(RUNS))
    seconds, instances = runs[RUNS // 2]
    return {
        "candidates": count,
        "seconds": round(seconds, 3),
        "added_mib": round(peak_mib() - before),
        "peak_mib": round(peak_mib()),
        "instances": instances,
    }


def peak_mib() -> float:
    """Return the peak memory of this process in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def draw(rows: list[dict[str, float]], name: str, path: Path) -> None:
    """Draw seconds and MiB by the number of candidates."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.2), constrained_layout=True)
    counts = [row["candidates"] for row in rows]
    for axes, key, label in (
        (left, "seconds", "seconds"),
        (right, "peak_mib", "peak memory of the process, MiB"),
    ):
        axes.plot(counts, [row[key] for row in rows], "o-", color="#2a6f97")
        axes.set(xscale="log", xlabel="candidates", ylabel=label, ylim=(0, None))
        axes.grid(alpha=0.3)
    figure.suptitle(f"{name}, {INPUT_SIZE[0]} x {INPUT_SIZE[1]}: masks and post-processing")
    figure.savefig(path, dpi=110)


def main() -> None:
    """Measure each count in a separate process."""
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
    target = FOLDER / f"candidates_{options.model}"
    report = {
        "model": options.model,
        "input": INPUT_SIZE,
        "environment": describe_environment(torch.device("cpu")),
        "rows": rows,
    }
    target.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
    draw(rows, options.model, target.with_suffix(".png"))


if __name__ == "__main__":
    main()
