"""Latency and memory of two checkouts of solo_infer on one image, measured alternately.

    python benchmarks/compare_checkouts.py ../before . street.jpg --model tiny --dtype float32 bfloat16

Each checkout runs in a separate process. The processes predict in turn, one image at a time, so that a change
of the machine's speed affects both. Report the median of the paired ratios; minima and medians are beside it.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

WARMUP = 2


def work(root: str, image: str, model_name: str, dtype: str) -> None:
    """Predict once per line of standard input; print seconds, stage timings and peak memory as JSON."""
    sys.path.insert(0, root)
    from solo_infer import load_model

    model = load_model(model_name, device="cpu", dtype=dtype)
    for _ in range(WARMUP):
        model(image)
    print("ready", flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        result = model(image)
        seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps([seconds, dict(result.timings), peak, len(result)]), flush=True)


def compare(roots: list[str], image: str, model: str, dtype: str, rounds: int) -> dict[str, object]:
    """Return the figures of one model and dtype; those of the first checkout come first in each pair."""
    command = [sys.executable, __file__, *roots, image, "--model", model, "--dtype", dtype, "--worker"]
    workers = [
        subprocess.Popen([*command, root], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for root in roots
    ]
    for worker in workers:
        line = worker.stdout.readline()
        if line.strip() != "ready":
            raise SystemExit(f"The process of {model} ended early: {line}")
    runs: tuple[list, list] = ([], [])
    for index in range(rounds):
        for side in (0, 1) if index % 2 == 0 else (1, 0):
            workers[side].stdin.write("go\n")
            workers[side].stdin.flush()
            runs[side].append(json.loads(workers[side].stdout.readline()))
    for worker in workers:
        worker.stdin.close()
        worker.wait()
    seconds = [[run[0] for run in side] for side in runs]
    return {
        "model": Path(model).name,
        "dtype": dtype,
        "rounds": rounds,
        "paired_ratio_median": round(statistics.median(b / a for a, b in zip(*seconds, strict=True)), 3),
        "min_ms": [round(1000 * min(side), 1) for side in seconds],
        "median_ms": [round(1000 * statistics.median(side), 1) for side in seconds],
        "peak_mib": [round(side[-1][2]) for side in runs],
        "instances": [side[0][3] for side in runs],
    }


def main() -> None:
    """Compare two checkouts."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("roots", nargs=2, metavar="CHECKOUT")
    parser.add_argument("image")
    parser.add_argument("--model", nargs="+", default=["tiny"])
    parser.add_argument("--dtype", nargs="+", default=["float32"])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work(args.worker, args.image, args.model[0], args.dtype[0])
        return
    roots = [str(Path(root).resolve()) for root in args.roots]
    for model in args.model:
        for dtype in args.dtype:
            print(json.dumps(compare(roots, args.image, model, dtype, args.rounds)), flush=True)


if __name__ == "__main__":
    main()
