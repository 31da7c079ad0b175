"""A model for engines: its network as ONNX with fixed shapes, and its results from what an engine returns.

    export_onnx(model, "solo.onnx", size=(800, 1216))

    heads = StaticHeads.from_onnx("solo.onnx")
    inputs, geometry = heads.prepare(image)
    outputs = session.run(None, {"images": inputs})          onnxruntime, IxRT, IGIE, ...
    result = heads.result(outputs, geometry, image)

The engine runs the network up to its raw heads (``models.raw_heads`` says which outputs there are); what
depends on the image, the candidates and Matrix-NMS, is done here.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from solo_infer._version import __version__
from solo_infer.config import ModelConfig, PostprocessConfig, PreprocessConfig, SOLOConfig
from solo_infer.errors import ExportError
from solo_infer.export import onnx_recorder
from solo_infer.export.raw_heads import RawAxisMaps, RawCellMaps, RawHeads, output_names
from solo_infer.inference import solo
from solo_infer.inference.preprocess import Geometry, prepare
from solo_infer.inference.solo import Detections
from solo_infer.models.layers.deform_conv import DeformableConv
from solo_infer.models.optimized.optimize import folded
from solo_infer.models.solo.network import SOLONetwork, scores_of
from solo_infer.results.result import Result
from solo_infer.runtime.atomic_files import write_whole
from solo_infer.segmenters.base import Segmenter

MIN_SIDE = 64  # pixels: below it the coarsest level is a single one
DIVISOR = 32  # of both sides: all levels then have whole sizes
LEVEL_STEPS = (8, 8, 16, 32, 32)  # input pixels for one of each level, whatever strides a configuration names
_CONFIG, _SIZE = "solo_infer.config", "solo_infer.size"  # names of the metadata


def export_onnx(
    model: Segmenter, path: str | os.PathLike[str], *, size: tuple[int, int], opset: int = 13
) -> Path:
    """Write a SOLO network as ONNX: one image of one size in, the raw outputs of its heads out.

    The graph is in float32 with BatchNorm folded, holds no computed shape, and passes ONNX's own checker. Its
    metadata has the model's configuration (architecture with its grids, preprocessing, thresholds, class
    names) and the size.

    Args:
        model: A SOLO, Decoupled SOLO or Decoupled Light SOLO, on any device.
        path: The file, which appears whole or not at all.
        size: Height and width of the network input in pixels, multiples of 32.
        opset: 13, or 11 for older engines.

    Returns:
        The path.

    Raises:
        ExportError: The size or opset cannot be, the network is no SOLO network or has an operator that these
            opsets lack (deformable convolutions), ``onnx`` is not installed, or the file cannot be written.
    """
    _require_onnx()
    height, width = size
    if min(size) < MIN_SIDE or height % DIVISOR or width % DIVISOR:
        raise ExportError(
            f"size={height} x {width} (height x width): expected multiples of {DIVISOR} from {MIN_SIDE} on."
        )
    if not isinstance(model.network, SOLONetwork):
        raise ExportError(f"{model!r} cannot be exported: expected a model of the SOLO family.")
    if any(isinstance(module, DeformableConv) for module in model.network.modules()):
        raise ExportError("Deformable convolutions have no counterpart in ONNX: expected a model without.")
    import onnx

    # A copy of its own, as moving and casting change a module's weights in place.
    network = RawHeads(folded(copy.deepcopy(model.network).cpu().float()))
    names = output_names(model.network.config)
    graph = onnx_recorder.record(network, torch.zeros(1, 3, height, width), names, opset)
    metadata = {
        _CONFIG: json.dumps(model.config.to_dict()),
        _SIZE: json.dumps([height, width]),
        "solo_infer.version": __version__,
    }
    onnx.helper.set_model_props(graph, metadata)
    onnx.checker.check_model(graph, full_check=True)
    target = Path(path)
    try:
        return write_whole(target, lambda staged: onnx.save_model(graph, str(staged)))
    except OSError as error:
        raise ExportError(f"{target} cannot be written: {error.strerror or error}.") from error


def _require_onnx() -> None:
    try:
        import onnx  # noqa: F401
    except ImportError as error:
        raise ExportError(
            f"ONNX needs the package onnx ({error}): pip install 'solo-infer[export]'."
        ) from error


@dataclass(frozen=True)
class ExportedModel:
    """What a host must know of an exported network: its configuration and its input size.

    Attributes:
        config: The model's configuration.
        size: Height and width of the network input in pixels.
    """

    config: ModelConfig
    size: tuple[int, int]

    @classmethod
    def from_onnx(cls, path: str | os.PathLike[str]) -> ExportedModel:
        """Read what ``export_onnx`` wrote into a file.

        Raises:
            ExportError: It cannot be read, or is not of ours.
        """
        _require_onnx()
        import onnx
        from google.protobuf.message import DecodeError

        try:
            model = onnx.load_model(os.fspath(path), load_external_data=False)
        except (OSError, DecodeError) as error:
            raise ExportError(f"{os.fspath(path)} is no ONNX file that can be read: {error}.") from error
        return cls.from_metadata({entry.key: entry.value for entry in model.metadata_props})

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> ExportedModel:
        """Read an exported network's metadata, as onnxruntime's ``custom_metadata_map`` has it.

        Raises:
            ExportError: It is not of ours.
        """
        try:
            height, width = json.loads(metadata[_SIZE])
            return cls(ModelConfig.from_dict(json.loads(metadata[_CONFIG])), (int(height), int(width)))
        except (KeyError, ValueError, TypeError) as error:
            raise ExportError(
                f"Metadata {sorted(metadata)} are not those of a network that export_onnx wrote: {error}."
            ) from error

    def prepare(self, image: np.ndarray) -> tuple[np.ndarray, Geometry]:
        """Return the network input (1, 3, H, W) float32 of an image (H, W, 3) uint8 RGB, and its sizes."""
        geometry = fit(image, self.size, self.config.preprocessing)
        inputs = prepare(image, geometry, self.config.preprocessing, torch.device("cpu"))
        return inputs[None].numpy(), geometry

    def result(
        self,
        outputs: Sequence[Any] | Mapping[str, Any],
        geometry: Geometry,
        image: np.ndarray | None = None,
        thresholds: PostprocessConfig | None = None,
    ) -> Result:
        """Turn what an engine returned for one image into a result.

        Args:
            outputs: As for ``detections_from_heads``.
            geometry: From ``prepare``.
            image: The image (H, W, 3) uint8 RGB, for drawing.
            thresholds: Settings of the post-processing; the model's own if not given.

        Raises:
            ExportError: The outputs are not those of this network.
        """
        found = detections_from_heads(outputs, geometry, self.config, thresholds)
        return Result(
            scores=found.scores,
            labels=found.labels,
            boxes=found.boxes,
            packed_masks=found.packed_masks,
            image_size=geometry.original,
            categories=self.config.categories,
            image=image,
        )


def fit(image: np.ndarray, size: tuple[int, int], config: PreprocessConfig) -> Geometry:
    """Return the sizes of an image (H, W, 3) on its way through a network of a fixed input size.

    It is scaled as the model scales it, or to what fits into the input if that is smaller. An image whose own
    padded size is the input's gives the model's own result; others are padded more than the model pads them,
    which GroupNorm and the coordinate channels see.
    """
    height, width = image.shape[:2]
    resized = config.resized_shape(height, width)
    if resized[0] > size[0] or resized[1] > size[1]:
        scale = min(size[0] / height, size[1] / width)
        resized = max(int(height * scale), 1), max(int(width * scale), 1)
    return Geometry((height, width), resized, size)


@torch.no_grad()
def detections_from_heads(
    outputs: Sequence[Any] | Mapping[str, Any],
    geometry: Geometry,
    config: ModelConfig,
    thresholds: PostprocessConfig | None = None,
) -> Detections:
    """Turn the raw outputs of the heads for one image into its instances, as the model itself does.

    Args:
        outputs: Arrays or tensors, by name or in the order of ``models.raw_heads.output_names``; in any
            floating point type, the first axis is of one image.
        geometry: The image's sizes.
        config: The model's configuration.
        thresholds: Settings of the post-processing; the model's own if not given.

    Raises:
        ExportError: Outputs are missing, of other shapes than this model and geometry have, or the model is
            not of the SOLO family.
    """
    architecture, settings = config.architecture, thresholds or config.thresholds
    if not isinstance(architecture, SOLOConfig) or not isinstance(settings, PostprocessConfig):
        raise ExportError(f"A {architecture.name} model has other outputs: expected one of the SOLO family.")
    tensors = _checked(outputs, geometry, architecture)
    grids = architecture.num_grids
    levels = len(grids)
    scores = scores_of(tensors[:levels])[0]
    candidates = solo.find_candidates(scores, settings.score_thr)
    masks = tensors[levels:]
    maps: RawCellMaps | RawAxisMaps
    if architecture.head == "solo":
        maps = RawCellMaps(grids, masks)
    else:
        maps = RawAxisMaps(grids, masks[:levels], masks[levels:])
    counts = torch.tensor([grid * grid for grid in grids])
    of_cells = (
        torch.tensor(architecture.strides, dtype=torch.float32).repeat_interleave(counts).to(scores.device)
    )
    return solo.detect(candidates, maps, 0, of_cells, geometry, settings)


def _checked(
    outputs: Sequence[Any] | Mapping[str, Any], geometry: Geometry, architecture: SOLOConfig
) -> list[Tensor]:
    """Return the outputs as tensors in order, of the shapes that they must have."""
    names = output_names(architecture)
    if isinstance(outputs, Mapping):
        missing = [name for name in names if name not in outputs]
        if missing:
            raise ExportError(f"Outputs {', '.join(missing)} are missing: got {', '.join(outputs)}.")
        outputs = [outputs[name] for name in names]
    if len(outputs) != len(names):
        raise ExportError(f"{len(outputs)} outputs: expected {len(names)}: {', '.join(names)}.")
    tensors = [torch.as_tensor(output) for output in outputs]
    for name, tensor, expected in zip(names, tensors, _shapes(geometry.padded, architecture), strict=True):
        if tuple(tensor.shape) != expected:
            raise ExportError(
                f"Output {name} is {tuple(tensor.shape)}: expected {expected} for an input of "
                f"{geometry.padded[0]} x {geometry.padded[1]} pixels (height x width)."
            )
    return tensors


def _shapes(size: tuple[int, int], architecture: SOLOConfig) -> list[tuple[int, ...]]:
    """Return the shapes of all outputs for an input size."""
    grids, plain = architecture.num_grids, architecture.head == "solo"
    shapes: list[tuple[int, ...]] = [(1, architecture.num_classes, grid, grid) for grid in grids]
    per_axis = 1 if plain else 2  # decoupled maps are made at twice the size of the level
    maps = [
        (1, grid * grid if plain else grid, size[0] * per_axis // step, size[1] * per_axis // step)
        for grid, step in zip(grids, LEVEL_STEPS, strict=True)
    ]
    return shapes + maps * per_axis
