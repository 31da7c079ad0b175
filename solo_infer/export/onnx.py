"""Export of a model as ONNX with static shapes.

    export_onnx(model, "solo.onnx", size=(800, 1216))

The exported network computes the raw outputs of its heads. ``solo_infer.export.engine`` prepares images for
an engine that runs it, and turns its outputs into results.
"""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import Any

import torch

from solo_infer._version import __version__
from solo_infer.config import ArchitectureConfig
from solo_infer.config.families import family_of
from solo_infer.config.validation import is_int, require_instance, require_path
from solo_infer.errors import ExportError
from solo_infer.export import onnx_recorder
from solo_infer.inference.engines.metadata import CONFIG_KEY, HEADS, OUTPUTS_KEY, SIZE_KEY, VERSION_KEY
from solo_infer.inference.engines.onnx_file import import_onnx
from solo_infer.runtime.atomic_files import write_whole
from solo_infer.runtime.messages import quoted
from solo_infer.runtime.output_files import require_writable
from solo_infer.segmenters.base import Segmenter

MIN_SIDE = 64  # pixels; below it the coarsest level has a single one
DIVISOR = 32  # divides both sides, so that the sizes of all levels are integers


def export_onnx(
    model: Segmenter, path: str | os.PathLike[str], *, size: tuple[int, int], opset: int = 13
) -> Path:
    """Write a SOLO network as ONNX: one image of one size in, the raw outputs of its heads out.

    The graph is in float32 with BatchNorm folded, has only static shapes, and passes ONNX's checker. Its
    metadata hold the configuration of the model and the input size.

    Args:
        model: SOLO, Decoupled SOLO, Decoupled Light SOLO or SOLOv2, on any device.
        path: File to write. It is written completely or not at all.
        size: (height, width) of the network input in pixels, multiples of 32.
        opset: ONNX opset: 13, or 11 for older engines.

    Returns:
        The path.

    Raises:
        ExportError: The size or opset is not supported, the family or an operator of the network (deformable
            convolutions) cannot be exported, ``onnx`` is not installed, or the file cannot be written.
    """
    onnx = import_onnx()
    target = require_path("path", path)
    require_instance("model", model, Segmenter)
    if not is_int(opset):
        raise ExportError(f"opset={quoted(opset)}: expected 11 or 13.")
    require_writable("path", target, error_type=ExportError)
    height, width = check_size(size)
    architecture = model.config.architecture
    exporter = exporter_of(architecture)
    # A copy, because moving and casting change the weights of a module in place.
    network = exporter.export_network(copy.deepcopy(model.network).cpu().float())
    names = exporter.output_names(architecture)
    graph = onnx_recorder.record(
        network, torch.zeros(1, 3, height, width, dtype=torch.float32, device="cpu"), names, opset
    )
    metadata = {
        CONFIG_KEY: json.dumps(model.config.to_dict()),
        SIZE_KEY: json.dumps([height, width]),
        VERSION_KEY: __version__,
        OUTPUTS_KEY: HEADS,
    }
    onnx.helper.set_model_props(graph, metadata)
    onnx.checker.check_model(graph, full_check=True)
    try:
        return write_whole(target, lambda staged: onnx.save_model(graph, str(staged)))
    except OSError as error:
        raise ExportError(f"{target} cannot be written: {error.strerror or error}.") from error


def exporter_of(architecture: ArchitectureConfig) -> Any:
    """Return the export module of the family of an architecture.

    Raises:
        ExportError: The family cannot be exported.
    """
    family = family_of(architecture)
    if family.exporter is None:
        raise ExportError(f"A {architecture.name} model cannot be exported: expected one of the SOLO family.")
    return family.load("exporter")


def check_size(size: Any) -> tuple[int, int]:
    """Return (height, width) of a network input.

    Raises:
        ExportError: It is not a pair of multiples of 32 of at least 64.
    """
    if not (isinstance(size, list | tuple) and len(size) == 2 and all(map(is_int, size))):
        raise ExportError(f"size={quoted(size)}: expected (height, width) in pixels.")
    height, width = size
    if min(size) < MIN_SIDE or height % DIVISOR or width % DIVISOR:
        raise ExportError(
            f"size={height} x {width} (height x width): expected multiples of {DIVISOR}, at least {MIN_SIDE}."
        )
    return height, width
