"""Instances and peak memory of a mosaic of photos that is segmented by tiles, on the CPU (Linux).

    python benchmarks/tiles.py PHOTO [PHOTO ...] [--cell 512] [--rows 3] [--columns 4] [--tile 512 128]

Photos are scaled and cropped to squares, which are repeated to fill the mosaic. Compares the number of
instances with those of the squares alone, unless ``--mosaic-only``. Prints JSON.
"""

import argparse
import json
import re
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from solo_infer import load_model
from solo_infer.diagnostics.benchmark import STAGES

SCORES = (0.0, 0.1, 0.3, 0.5)


def memory_mib(field):
    """Return VmRSS (current) or VmHWM (peak) of this process."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(rf"{field}:\s+(\d+)", status).group(1)) // 1024


def square(path, side):
    """Return the center of a photo as (side, side, 3) uint8."""
    with Image.open(path) as photo:
        return np.array(ImageOps.fit(photo.convert("RGB"), (side, side), Image.Resampling.BICUBIC))


def count(results):
    """Return the number of instances by least score."""
    return {score: sum(len(result.filter(score)) for result in results) for score in SCORES}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photos", nargs="+")
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--cell", type=int, default=512, metavar="PIXELS")
    parser.add_argument("--rows", type=int, default=3)
    parser.add_argument("--columns", type=int, default=4)
    parser.add_argument("--tile", type=int, nargs=2, default=(512, 128), metavar=("SIZE", "OVERLAP"))
    parser.add_argument("--mosaic-only", action="store_true")
    parser.add_argument("--drawing", help="file for the drawing of the mosaic")
    options = parser.parse_args()
    Image.MAX_IMAGE_PIXELS = None
    squares = [square(photo, options.cell) for photo in options.photos]
    cells = [squares[index % len(squares)] for index in range(options.rows * options.columns)]
    model = load_model(options.model, device="cpu")
    model(squares[0])
    report = {"model": options.model, "tile": list(options.tile), "threads": torch.get_num_threads()}
    if not options.mosaic_only:
        singles = [model(cell) for cell in squares]
        report["photos"] = count([singles[index % len(squares)] for index in range(len(cells))])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mosaic.jpg"
        rows = [
            np.hstack(cells[start : start + options.columns])
            for start in range(0, len(cells), options.columns)
        ]
        Image.fromarray(np.vstack(rows)).save(path, quality=95)
        del rows, cells
        Path("/proc/self/clear_refs").write_text("5")  # reset the peak, which making the mosaic raised
        before, start = memory_mib("VmRSS"), time.perf_counter()
        result = model(path, tile=tuple(options.tile))
        report |= {"seconds": round(time.perf_counter() - start, 1), "before_mib": before}
        report |= {
            "peak_mib": memory_mib("VmHWM"),
            "image": list(result.image_size),
            "mosaic": count([result]),
        }
        report |= {"masks_mib": round(result.packed_masks.data.numel() / 2**20, 1)}
        report |= {stage: round(result.timings[stage], 1) for stage in ("load", *STAGES, "stitch")}
    if options.drawing:
        result.save(options.drawing, min_score=0.3)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
