"""Export of whole models: network, candidates, NMS and soft masks in one file.

    export_model(model, "tiny.onnx")
    solo_infer.load_model("tiny.onnx")("street.jpg")

The graph is traced by ``torch.export``. ``solo_infer.export.onnx`` exports the raw outputs of the heads for
engines of accelerators.
"""

from __future__ import annotations

import copy
import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from solo_infer._version import __version__
from solo_infer.config.families import family_of
from solo_infer.config.validation import is_int, require_bools, require_choice, require_instance, require_path
from solo_infer.errors import ExportError
from solo_infer.export.detection_graph import NormalizedPixels, TupleOutputs
from solo_infer.export.onnx import DIVISOR, check_size
from solo_infer.export.photo_input import PhotoDetector
from solo_infer.inference.engines.metadata import INPUT_NAME, MAX_SIDE, OUTPUT_NAMES, ExportedConfig
from solo_infer.inference.engines.onnx_file import import_onnx
from solo_infer.runtime.atomic_files import write_whole
from solo_infer.runtime.messages import first_line, quoted, shortened
from solo_infer.runtime.neutral_state import neutral_state
from solo_infer.runtime.output_files import require_writable
from solo_infer.segmenters.base import Segmenter

Format = Literal["onnx", "openvino", "torch"]
SUFFIXES: dict[str, str] = {".onnx": "onnx", ".xml": "openvino", ".pt2": "torch"}
OPSET = 18  # the first one that torch's exporter writes without a conversion
_EXAMPLE_SIZE = (96, 160)  # of the network input that a graph of any size is traced with
# Sides of a network input of any size, in units of 32 pixels. To torch.export, sides of one pixel, which the
# last level of 64 pixels has, from longer ones; engines take them too.
_MIN_UNITS, _MAX_UNITS = 3, 256
_MAX_BATCH = 1024
_TORCH_VERSION = "2.6"  # the first one whose exporter takes a traced program


@neutral_state()
def export_model(
    model: Segmenter,
    path: str | os.PathLike[str],
    *,
    format: Format | None = None,
    size: tuple[int, int] | None = None,
    pixels: bool = False,
    photo_size: tuple[int, int] | None = None,
    source: str = "",
) -> Path:
    """Write a model with its post-processing as one file, which ``load_model`` and other programs run.

    The input "images" is (N, 3, H, W); N is 1 for SOLO, Decoupled SOLO and SOLOv2, and free for others. The
    outputs are those of ``solo_infer.export.detection_graph.GraphDetections``. The settings of the model,
    such as its thresholds, become part of the graph, and its configuration part of the metadata.

    Args:
        model: Model without deformable convolutions, on any device. It is exported in float32.
        path: File to write. It is written completely or not at all; that of OpenVINO gets a ``.bin`` file
            beside it.
        format: "onnx" (opset 18), "openvino" or "torch" (``torch.export``). Defaults to that of the suffix:
            ``.onnx``, ``.xml`` or ``.pt2``.
        size: (height, width) of the network input in pixels, multiples of 32. Defaults to any multiples of
            32; YOLACT has one size.
        pixels: Whether the network input is uint8 RGB pixels, which the graph normalizes, instead of
            normalized float32.
        photo_size: (height, width) in pixels of the photos that the graph takes instead of network inputs:
            "images" is (N, H, W, 3) uint8 RGB, which the graph resizes, normalizes and pads. Boxes and masks
            are those of the network input, whose size follows.
        source: Name or path of the model, with which ``solo-infer verify`` compares the file.

    Returns:
        The path.

    Raises:
        ExportError: The size, the format or an operator of the network is not supported, a package is not
            installed, or the file cannot be written.
        ConfigError: An argument has the wrong type.
    """
    target = require_path("path", path)
    require_instance("model", model, Segmenter)
    require_bools({"pixels": pixels})
    require_instance("source", source, str)
    kind = format_of(target, format)
    for file in (target, *([target.with_suffix(".bin")] if kind == "openvino" else [])):
        require_writable("path", file, error_type=ExportError)
    exported = _exported_config(model, size, pixels, photo_size, source)
    write = _WRITERS[kind]
    program = trace(build_detector(model, pixels, exported.photo_size), exported)
    try:
        write(program, exported.to_metadata(__version__), target)
    except OSError as error:
        raise ExportError(f"{target} cannot be written: {error.strerror or error}.") from error
    return target


def format_of(path: Path, format: str | None) -> str:
    """Return the format of a file to write, which follows from its suffix by default.

    Raises:
        ExportError: The suffix is of no format, or of another one.
        ConfigError: The format is unknown.
    """
    if format is not None:
        require_choice("format", format, _WRITERS)
    suffixes = {name: suffix for suffix, name in SUFFIXES.items()}
    by_suffix = SUFFIXES.get(path.suffix)
    if by_suffix is None or (format is not None and format != by_suffix):
        expected = ", ".join(SUFFIXES) if format is None else suffixes[format]
        raise ExportError(f"{quoted(path, 200)}: expected a file name that ends in {expected}.")
    return by_suffix


def build_detector(
    model: Segmenter, pixels: bool = False, photo_size: tuple[int, int] | None = None
) -> nn.Module:
    """Return the module of a model that is exported: network inputs to ``GraphDetections``, in float32.

    Args:
        model: Model, on any device.
        pixels: Whether the module takes pixels instead of normalized values.
        photo_size: (height, width) in pixels of the photos that the module takes instead of network inputs.

    Raises:
        ExportError: The family cannot be exported, or the network has deformable convolutions.
    """
    family = family_of(model.config.architecture)
    if family.detector is None:
        raise ExportError(f"A {model.config.architecture.name} model cannot be exported.")
    # A copy, because moving and casting change the weights of a module in place.
    network = copy.deepcopy(model.network).cpu().float().eval()
    detector = family.load("detector")(network, model.config)
    if photo_size is not None:
        return PhotoDetector(detector, model.config.preprocessing, photo_size).eval()
    whole = NormalizedPixels(detector, model.config.preprocessing) if pixels else detector
    return whole.eval()


def trace(detector: nn.Module, exported: ExportedConfig) -> Any:
    """Return the ``torch.export.ExportedProgram`` of a detector, for any number of images if it can.

    Raises:
        ExportError: This version of torch cannot trace the detector.
    """
    parameters = inspect.signature(torch.onnx.export).parameters
    if "dynamo" not in parameters or "dynamic_shapes" not in parameters:
        raise ExportError(
            f"torch {torch.__version__} cannot export detections: expected torch {_TORCH_VERSION} or later. "
            "The raw outputs of the heads can be exported with every version (--format onnx-heads)."
        )
    from torch.export import Dim, export

    any_batch = detector.takes_any_batch
    dynamic: dict[int, Any] = {0: Dim("batch", min=1, max=_MAX_BATCH)} if any_batch else {}
    if exported.size is None:
        units = {
            axis: Dim(name, min=_MIN_UNITS, max=_MAX_UNITS)
            for axis, name in ((2, "height_32"), (3, "width_32"))
        }
        dynamic |= {axis: DIVISOR * unit for axis, unit in units.items()}
    # With one image, a batch of any size would become a constant.
    images, dtype = 2 if any_batch else 1, torch.uint8
    if exported.photo_size is not None:
        shape: tuple[int, ...] = (images, *exported.photo_size, 3)
    else:
        shape = (images, 3, *(exported.size or _EXAMPLE_SIZE))
        dtype = torch.uint8 if exported.takes_pixels else torch.float32
    example = torch.zeros(shape, dtype=dtype, device="cpu")
    try:
        return export(TupleOutputs(detector), (example,), dynamic_shapes=(dynamic,), strict=False)
    except Exception as error:  # its classes differ between versions
        advice = (
            " Pass a fixed size of the network input (--input-size H W)." if exported.size is None else ""
        )
        raise ExportError(f"torch.export cannot trace the model: {shortened(error)}{advice}") from error


def to_onnx(program: Any, metadata: dict[str, str]) -> Any:
    """Return a traced program as ``onnx.ModelProto``, with the metadata of an exported model."""
    onnx = import_onnx()
    try:
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ExportError(
            f"torch's ONNX exporter needs the package onnxscript ({first_line(error)}): "
            "pip install 'solo-infer[export]'."
        ) from error
    try:
        exported: Any = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=OPSET,
            input_names=[INPUT_NAME],
            output_names=list(OUTPUT_NAMES),
            verbose=False,
        )
    except Exception as error:  # torch's exporter raises classes that differ between versions
        raise ExportError(f"torch's ONNX exporter failed: {shortened(error)}") from error
    graph: Any = exported.model_proto
    # Nodes carry the source lines that they come from, with the paths of this machine.
    for nodes in (graph.graph.node, *(function.node for function in graph.functions)):
        for node in nodes:
            node.ClearField("metadata_props")
            node.ClearField("doc_string")
    for value in (*graph.graph.input, *graph.graph.output, *graph.graph.value_info):
        value.ClearField("metadata_props")
    graph.graph.ClearField("metadata_props")
    onnx.helper.set_model_props(graph, metadata)
    onnx.checker.check_model(graph)
    return graph


def _write_onnx(program: Any, metadata: dict[str, str], target: Path) -> None:
    content = to_onnx(program, metadata).SerializeToString()
    write_whole(target, lambda staged: staged.write_bytes(content))


def _write_openvino(program: Any, metadata: dict[str, str], target: Path) -> None:
    """Write the ``.bin`` file and then the ``.xml`` file, both or, after an error, neither."""
    try:
        import openvino
    except ImportError as error:
        raise ExportError(
            f"OpenVINO needs the package openvino ({first_line(error)}): pip install 'solo-infer[openvino]'."
        ) from error
    model = openvino.Core().read_model(model=to_onnx(program, metadata).SerializeToString())
    for key, value in metadata.items():
        model.set_rt_info(value, key)

    def write_both(staged: Path) -> None:
        openvino.save_model(model, str(staged), compress_to_fp16=False)
        weights = staged.with_suffix(".bin")
        try:
            write_whole(target.with_suffix(".bin"), lambda other: os.replace(weights, other))
        finally:
            weights.unlink(missing_ok=True)

    write_whole(target, write_both)


def _write_torch(program: Any, metadata: dict[str, str], target: Path) -> None:
    write_whole(target, lambda staged: torch.export.save(program, staged, extra_files=dict(metadata)))


_WRITERS: dict[str, Callable[[Any, dict[str, str], Path], None]] = {
    "onnx": _write_onnx,
    "openvino": _write_openvino,
    "torch": _write_torch,
}


def _exported_config(
    model: Segmenter,
    size: tuple[int, int] | None,
    pixels: bool,
    photo_size: tuple[int, int] | None,
    source: str,
) -> ExportedConfig:
    """Return the metadata of the file that the arguments of ``export_model`` describe."""
    if photo_size is None:
        return ExportedConfig(model.config, _check_size(model, size), pixels, source)
    if size is not None or pixels:
        raise ExportError(
            "photo_size is given with size or pixels: the size of the network input follows from that of the "
            "photo, and the graph takes its pixels. Leave them out."
        )
    is_pair = isinstance(photo_size, tuple | list) and len(photo_size) == 2 and all(map(is_int, photo_size))
    if not is_pair or not all(0 < side <= MAX_SIDE for side in photo_size):
        raise ExportError(
            f"photo_size={quoted(photo_size)}: expected (height, width) of 1 to {MAX_SIDE} pixels."
        )
    return ExportedConfig.of_photos(model.config, (photo_size[0], photo_size[1]), source)


def _check_size(model: Segmenter, size: Any) -> tuple[int, int] | None:
    """Return the size of the network input, None for any size."""
    preprocessing = model.config.preprocessing
    if not preprocessing.keep_ratio:
        only = (preprocessing.short_side, preprocessing.short_side)
        if size is not None and tuple(size) != only:
            raise ExportError(f"size={quoted(size)}: this model takes {only[0]} x {only[1]}. Leave it out.")
        return only
    if size is None:
        return None
    return check_size(size)
