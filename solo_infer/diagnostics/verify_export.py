"""Comparison of an exported file with the PyTorch model that it was exported from."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import cast

import numpy as np
import torch

from solo_infer.data.images import LoadedImage, load_image
from solo_infer.data.sources import ImageSource
from solo_infer.diagnostics import procedural_weights
from solo_infer.diagnostics.pairing import pair_with, reference_of
from solo_infer.diagnostics.parity import Check
from solo_infer.errors import ConfigError
from solo_infer.segmenters.auto import load_model
from solo_infer.segmenters.base import Segmenter
from solo_infer.segmenters.engine_model import EngineModel

# Greatest accepted differences of (scores, mask IoU, fraction of instances without a partner). A score moves
# more than the logits behind it where a pixel of a mask crosses its threshold; two candidates of nearly equal
# scores may change places.
LIMITS = {torch.float32: (2e-3, 2e-3, 0.02), torch.bfloat16: (0.2, 0.5, 0.2), torch.float16: (0.02, 0.2, 0.1)}


def verify_file(
    path: str | os.PathLike[str],
    *,
    reference: str | os.PathLike[str] | None = None,
    image: ImageSource | None = None,
    engine: str | None = None,
    dtype: str | torch.dtype = torch.float32,
) -> Iterator[Check]:
    """Compare the detections of an exported file with those of its PyTorch model on one image.

    Both get the same network input, and the settings of the file.

    Args:
        path: ``.onnx`` or ``.xml`` file.
        reference: Name or path of the PyTorch model. Defaults to the one in the metadata of the file.
        image: Image to segment. Defaults to a procedural one.
        engine: "onnxruntime" or "openvino"; see ``load_model``.
        dtype: Dtype in which the engine computes.

    Raises:
        ExportError: The file cannot be used.
        WeightsError: The PyTorch model cannot be loaded.
        ConfigError: The file names no PyTorch model, it is of another architecture, or neither of the two
            finds an instance in the image.
    """
    exported = load_model(path, engine=engine, dtype=dtype)
    if not isinstance(exported, EngineModel):
        raise ConfigError(f"{os.fspath(path)} is not an exported model: expected an .onnx or .xml file.")
    model = _load_reference(exported, reference)
    size = exported.session.exported.photo_size or (480, 640)
    loaded = (
        load_image(image) if image is not None else LoadedImage(procedural_photo(*size), "procedural photo")
    )
    geometry = exported._plan(loaded.pixels)
    (expected,), (found,) = (
        segmenter.detect(segmenter._prepare([loaded.pixels], [geometry]), [geometry])
        for segmenter in (model, cast(Segmenter, exported))
    )
    if not len(expected.scores) and not len(found.scores):
        raise ConfigError(
            f"Neither model finds an instance in {loaded.name}: pass an image that has some (--image FILE)."
        )
    scores, iou_loss, unpaired = LIMITS[exported.dtype]
    reference_detections = reference_of(expected, geometry.original[1])
    # Instances whose scores differ by more than the limit are the same, too.
    pairs = pair_with(found, reference_detections, geometry.original, 10 * scores)
    name = os.path.basename(os.fspath(path))
    yield Check(name, "scores", pairs.score_difference, scores)
    yield Check(name, "masks: 1 - IoU", pairs.iou_loss, iou_loss)
    yield Check(name, "unpaired", pairs.unpaired, unpaired)


def _load_reference(exported: EngineModel, reference: str | os.PathLike[str] | None) -> Segmenter:
    """Return the PyTorch model of a file, with the settings of the file."""
    config, name = exported.config, reference or exported.session.exported.source
    if not name:
        raise ConfigError(
            f"{exported.session.path} does not name the model that it was exported from: pass its name or "
            "path (--reference MODEL)."
        )
    model = load_model(name, device="cpu")
    if model.config.architecture != config.architecture:
        raise ConfigError(
            f"{exported.session.path} has the architecture {config.architecture.name}, and {os.fspath(name)} "
            f"{model.config.architecture.name} or other sizes: expected the model that the file is of."
        )
    model.config = config
    return model


def procedural_photo(height: int = 480, width: int = 640) -> np.ndarray:
    """Return an image (height, width, 3) uint8 of blocks of random colors."""
    blocks = (procedural_weights.uniform("verify/export", (12, 16, 3)) * 256).astype(np.uint8)
    rows, columns = np.arange(height) * 12 // height, np.arange(width) * 16 // width
    return blocks[rows[:, None], columns]
