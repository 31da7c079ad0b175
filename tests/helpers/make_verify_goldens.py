"""Make ``solo_infer/assets/goldens/*.npz`` from the goldens of the reference kit (outputs of mmdet).

    PYTHONPATH=tests:. python tests/helpers/make_verify_goldens.py KIT_DIRECTORY

``preprocessing.npz`` requires OpenCV, which runs mmdet's test pipeline on a procedural image.
"""

import sys
import zlib
from pathlib import Path

import cv2
import numpy as np

from solo_infer.config import PreprocessConfig
from solo_infer.diagnostics import procedural_weights
from solo_infer.diagnostics.verify import GOLDENS, INPUT_KEY, MODELS
from solo_infer.inference.preprocess import plan

MIN_CLASS_SCORE = 0.03  # lower class scores are not kept
CELLS, PIXELS = 6, 64  # number of mask samples per level
SAMPLED = ("index", "value", "std")
DETECTIONS = ("scores", "labels", "rle_counts", "rle_offsets")


def trim_yolact(golden):
    names = [
        "proto",
        *(f"{output}{level}" for output in ("fpn", "cls", "box", "coeff") for level in range(5)),
    ]
    out = {f"{name}_{key}": golden[f"{name}_{key}"] for name in names for key in SAMPLED}
    return out | {key: golden[f"img0_{key}"] for key in (*DETECTIONS, "boxes")}


def trim(golden):
    out = {}
    start, cells, pixels, values = 0, [], [], []
    for level in range(5):
        for key in SAMPLED:
            out[f"fpn{level}_{key}"] = golden[f"fpn{level}_{key}"]
        grid = golden[f"cls{level}"].shape[-1]
        cells.append(golden[f"mask{level}_cells"][:CELLS] + start)
        pixels += [golden[f"mask{level}_index"][:PIXELS]] * CELLS
        values.append(golden[f"mask{level}_value"][0, :CELLS, :PIXELS])
        start += grid * grid
    classes = [golden[f"cls{level}"][0].reshape(80, -1) for level in range(5)]
    scores = np.concatenate(classes, axis=1).T.ravel()  # (cells, classes)
    out["class_index"] = np.flatnonzero(scores >= MIN_CLASS_SCORE)
    out["class_value"] = scores[out["class_index"]]
    out["mask_cells"], out["mask_value"] = np.concatenate(cells), np.concatenate(values)
    out["mask_index"] = np.stack(pixels)
    for name in ("feature", *(f"kernel{level}" for level in range(5))):
        if f"{name}_value" in golden:  # SOLOv2
            out |= {f"{name}_{key}": golden[f"{name}_{key}"] for key in SAMPLED}
    for key in DETECTIONS:
        out[key] = golden[f"img0_{key}"]
    return out


def preprocessing():
    image = (procedural_weights.uniform("verify/photo", (97, 143, 3)) * 256).astype(np.uint8)
    config = PreprocessConfig()
    sizes = plan(image, config)
    height, width = sizes.resized
    resized = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR).astype(np.float32)
    padded = np.zeros((*sizes.padded, 3), np.float32)
    padded[:height, :width] = (resized - np.float32(config.mean)) / np.float32(config.std)
    planes = np.ascontiguousarray(padded.transpose(2, 0, 1))
    return {"crc32": zlib.crc32(planes.tobytes()), "grid": planes[:, ::64, ::64]}


def main():
    kit_goldens = Path(sys.argv[1]) / "goldens"
    np.savez_compressed(GOLDENS / "preprocessing.npz", **preprocessing())
    for model in MODELS:
        with np.load(kit_goldens / f"{model}__{INPUT_KEY}.npz") as golden:
            trimmed = trim_yolact(golden) if model.startswith("yolact") else trim(golden)
            np.savez_compressed(GOLDENS / f"{model}.npz", **trimmed)


if __name__ == "__main__":
    main()
