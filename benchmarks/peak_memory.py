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

from solo_infer import PostprocessConfig
from solo_infer.diagnostics.verify import MODELS, procedural_model


def memory_kib(field):
    """Return VmRSS (now) or VmHWM (the most so far) of this process."""
    return int(re.search(rf"{field}:\s+(\d+)", Path("/proc/self/status").read_text()).group(1))


def picture(height, width):
    """Return a picture of colored blocks of several sizes."""
    rng, image = np.random.default_rng(0), np.zeros((height, width, 3))
    for block in (128, 32, 8):
        coarse = rng.integers(0, 256, (-(-height // block), -(-width // block), 3))
        image += np.repeat(np.repeat(coarse, block, 0), block, 1)[:height, :width] / 3
    return image.astype(np.uint8)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="solo_r50", choices=MODELS)
    parser.add_argument("--size", type=int, nargs=2, default=(800, 1333), metavar=("H", "W"))
    parser.add_argument("--everything", action="store_true")
    options = parser.parse_args()
    model = procedural_model(options.model)
    if options.everything:
        with torch.no_grad():  # all scores equal: no local maximum is lost
            model.network.mask_head.conv_cls.weight.zero_()
            model.network.mask_head.conv_cls.bias.fill_(0.0)
    image = picture(*options.size)
    counted = []
    find = model.network.class_scores
    model.network.class_scores = lambda levels: counted.append(find(levels)) or counted[-1]
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of the loading
    before, start = memory_kib("VmRSS"), time.perf_counter()
    result = model(image)
    seconds, peak = time.perf_counter() - start, memory_kib("VmHWM")
    print(
        json.dumps(
            {
                "model": options.model,
                "image": list(options.size),
                "candidates": int((counted[0] > PostprocessConfig().score_thr).sum()),
                "detections": len(result),
                "weights_loaded_mib": round(before / 1024),
                "peak_above_weights_mib": round((peak - before) / 1024),
                "seconds": round(seconds, 1),
                "threads": torch.get_num_threads(),
                "torch": torch.__version__,
            }
        )
    )


if __name__ == "__main__":
    main()
