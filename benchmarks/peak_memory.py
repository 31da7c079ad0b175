"""Peak memory of one prediction on the CPU, above the loaded weights (Linux).

    python benchmarks/peak_memory.py [--model solo_r50] [--size 800 1333] [--everything]

``--everything`` makes every (cell, class) pair a candidate: the worst case. Prints JSON.
"""

import argparse
import json
import re
import time
from pathlib import Path

import numpy as np
import torch

from solo_infer.data.images import load_image
from solo_infer.diagnostics.benchmark import count_candidates
from solo_infer.diagnostics.verify import SOLO_MODELS, SOLOV2_MODELS, procedural_model


def memory_kib(field):
    """Return VmRSS (current) or VmHWM (peak) of this process."""
    return int(re.search(rf"{field}:\s+(\d+)", Path("/proc/self/status").read_text()).group(1))


def make_image(height, width):
    """Return an image (H, W, 3) uint8 of colored blocks of several sizes."""
    rng, image = np.random.default_rng(0), np.zeros((height, width, 3))
    for block in (128, 32, 8):
        coarse = rng.integers(0, 256, (-(-height // block), -(-width // block), 3))
        image += np.repeat(np.repeat(coarse, block, 0), block, 1)[:height, :width] / 3
    return image.astype(np.uint8)


def make_all_candidates(network):
    """Give all (cell, class) pairs the same score, which removes no local maximum."""
    with torch.no_grad():
        network.mask_head.conv_cls.weight.zero_()
        network.mask_head.conv_cls.bias.zero_()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="solo_r50", choices=(*SOLO_MODELS, *SOLOV2_MODELS))
    parser.add_argument("--size", type=int, nargs=2, default=(800, 1333), metavar=("H", "W"))
    parser.add_argument("--everything", action="store_true", help="make every (cell, class) pair a candidate")
    options = parser.parse_args()
    model = procedural_model(options.model)
    if options.everything:
        make_all_candidates(model.network)
    image = make_image(*options.size)
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak, which loading raised
    before, start = memory_kib("VmRSS"), time.perf_counter()
    result = model(image)
    seconds, peak = time.perf_counter() - start, memory_kib("VmHWM")
    report = {
        "model": options.model,
        "image": list(options.size),
        "candidates": count_candidates(model, load_image(image)),
        "detections": len(result),
        "weights_loaded_mib": round(before / 1024),
        "peak_above_weights_mib": round((peak - before) / 1024),
        "seconds": round(seconds, 1),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
