"""Run an exported model with any engine: network inputs from images, results from raw outputs.

    exported = ExportedModel.from_onnx("solo.onnx")
    inputs, geometry = exported.prepare(image)
    outputs = session.run(None, {"images": inputs})          onnxruntime, IxRT, IGIE, ...
    result = exported.result(outputs, geometry, image)

The engine runs the network up to the raw outputs of its heads; candidates, Matrix-NMS and full-size masks are
computed here.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from solo_infer.config import BasePostprocessConfig, ModelConfig
from solo_infer.errors import ExportError
from solo_infer.export.onnx import exporter_of
from solo_infer.inference.detections import Detections
from solo_infer.inference.engines.metadata import CONFIG_KEY, HEADS, OUTPUTS_KEY, SIZE_KEY
from solo_infer.inference.engines.onnx_file import import_onnx
from solo_infer.inference.preprocess import Geometry, plan_fixed_size, prepare
from solo_infer.results.result import Result
from solo_infer.runtime.messages import quoted


@dataclass(frozen=True)
class ExportedModel:
    """Configuration and input size of an exported network.

    Attributes:
        config: Configuration of the model.
        size: (height, width) of the network input in pixels.
    """

    config: ModelConfig
    size: tuple[int, int]

    @classmethod
    def from_onnx(cls, path: str | os.PathLike[str]) -> ExportedModel:
        """Read the metadata of a file of ``export_onnx``.

        Raises:
            ExportError: The file cannot be read, or was not written by ``export_onnx``.
        """
        onnx = import_onnx()
        from google.protobuf.message import DecodeError

        try:
            model = onnx.load_model(os.fspath(path), load_external_data=False)
        except (OSError, DecodeError) as error:
            raise ExportError(f"{os.fspath(path)} is not a readable ONNX file: {error}.") from error
        return cls.from_metadata({entry.key: entry.value for entry in model.metadata_props})

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> ExportedModel:
        """Read the metadata of an exported network, e.g. onnxruntime's ``custom_metadata_map``.

        Raises:
            ExportError: The metadata were not written by ``export_onnx``.
        """
        outputs = metadata.get(OUTPUTS_KEY, HEADS)
        if outputs != HEADS:
            raise ExportError(
                f"The model returns {quoted(outputs)}, not the raw outputs of its heads: use "
                "solo_infer.load_model for it."
            )
        try:
            height, width = json.loads(metadata[SIZE_KEY])
            return cls(ModelConfig.from_dict(json.loads(metadata[CONFIG_KEY])), (int(height), int(width)))
        except (KeyError, ValueError, TypeError) as error:
            reason = str(error).rstrip(".")
            raise ExportError(
                f"Metadata {sorted(metadata)} were not written by export_onnx: {reason}."
            ) from error

    def prepare(self, image: np.ndarray) -> tuple[np.ndarray, Geometry]:
        """Return the network input (1, 3, H, W) float32 and the sizes of an image (H, W, 3) uint8 RGB."""
        geometry = plan_fixed_size(image, self.size, self.config.preprocessing)
        inputs = prepare([image], [geometry], self.config.preprocessing, torch.device("cpu"))
        return inputs.contiguous().numpy(), geometry

    def result(
        self,
        outputs: Sequence[Any] | Mapping[str, Any],
        geometry: Geometry,
        image: np.ndarray | None = None,
        thresholds: BasePostprocessConfig | None = None,
    ) -> Result:
        """Turn the outputs of an engine for one image into a result.

        Args:
            outputs: Arrays or tensors; see ``detections_from_outputs``.
            geometry: Sizes of the image, from ``prepare``.
            image: (H, W, 3) uint8 RGB, for drawing.
            thresholds: Post-processing settings. Defaults to the model's own.

        Raises:
            ExportError: The outputs do not belong to this network.
        """
        detections = detections_from_outputs(outputs, geometry, self.config, thresholds)
        return Result(
            scores=detections.scores,
            labels=detections.labels,
            boxes=detections.boxes,
            packed_masks=detections.packed_masks,
            image_size=geometry.original,
            categories=self.config.categories,
            image=image,
        )


@torch.no_grad()
def detections_from_outputs(
    outputs: Sequence[Any] | Mapping[str, Any],
    geometry: Geometry,
    config: ModelConfig,
    thresholds: BasePostprocessConfig | None = None,
) -> Detections:
    """Turn the raw outputs of an exported network for one image into detections.

    Args:
        outputs: Arrays or tensors of any float dtype, by name or in the order of the exported outputs, with a
            first axis of 1.
        geometry: Sizes of the image.
        config: Configuration of the model.
        thresholds: Post-processing settings. Defaults to the model's own.

    Raises:
        ExportError: Outputs are missing or have other shapes than those of this model and input size, or the
            family cannot be exported.
        ConfigError: The thresholds belong to another family.
    """
    if thresholds is not None:
        config = replace(config, thresholds=thresholds)
    exporter = exporter_of(config.architecture)
    names = exporter.output_names(config.architecture)
    shapes = exporter.output_shapes(config.architecture, geometry.padded)
    tensors = _check_outputs(outputs, names, shapes, geometry)
    return exporter.decode_outputs(tensors, geometry, config.architecture, config.thresholds)


def _check_outputs(
    outputs: Sequence[Any] | Mapping[str, Any],
    names: Sequence[str],
    shapes: Sequence[tuple[int, ...]],
    geometry: Geometry,
) -> list[Tensor]:
    """Return the outputs as tensors in order."""
    if isinstance(outputs, Mapping):
        missing = [name for name in names if name not in outputs]
        if missing:
            raise ExportError(f"Outputs {', '.join(missing)} are missing: got {', '.join(outputs)}.")
        outputs = [outputs[name] for name in names]
    if len(outputs) != len(names):
        raise ExportError(f"{len(outputs)} outputs: expected {len(names)}: {', '.join(names)}.")
    tensors = [
        output if isinstance(output, Tensor) else torch.from_numpy(np.asarray(output)) for output in outputs
    ]
    for name, tensor, expected in zip(names, tensors, shapes, strict=True):
        if tuple(tensor.shape) != expected:
            raise ExportError(
                f"Output {name} is {tuple(tensor.shape)}: expected {expected} for an input of "
                f"{geometry.padded[0]} x {geometry.padded[1]} pixels (height x width)."
            )
    return tensors
