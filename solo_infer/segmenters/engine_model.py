"""Models that run in an inference engine instead of PyTorch.

The engine computes scores, labels, boxes and soft masks; preprocessing, masks at image size and results are
those of every model.
"""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from solo_infer.config import BasePostprocessConfig, ModelConfig
from solo_infer.config.display import DISPLAY_THRESHOLD
from solo_infer.errors import ConfigError, DeviceError, ExportError, ImageError
from solo_infer.inference.detections import Detections, empty_detections
from solo_infer.inference.engines.sessions import SUFFIXES, EngineSession
from solo_infer.inference.preprocess import Geometry, plan, plan_fixed_size, to_pixels
from solo_infer.runtime.device import resolve_device, resolve_dtype
from solo_infer.runtime.messages import quoted
from solo_infer.runtime.stopwatch import Stopwatch

if TYPE_CHECKING:
    from typing_extensions import Self

_CPU = torch.device("cpu")


def is_engine_file(name_or_path: object) -> bool:
    """Return whether a name is the path of an exported model: an existing ``.onnx`` or ``.xml`` file."""
    try:
        path = _to_path(name_or_path)
        return path.suffix.lower() in SUFFIXES and path.is_file()
    except (TypeError, ValueError, OSError):  # not the name of a file; load_checkpoint explains it
        return False


def _to_path(name_or_path: Any) -> Path:
    return Path(os.path.expanduser(os.fsdecode(name_or_path)))


def engine_path(name_or_path: str | os.PathLike[str], engine: str | None) -> Path:
    """Return the path of an exported model.

    Raises:
        ConfigError: There is no such file, or it is not an ``.onnx`` or ``.xml`` file.
    """
    if not is_engine_file(name_or_path):
        raise ConfigError(
            f"engine={engine!r} with {quoted(name_or_path)}: expected an existing .onnx or .xml file. "
            "Write it with 'solo-infer export MODEL --output FILE.onnx'."
        )
    return _to_path(name_or_path)


class EngineModel:
    """Methods of a ``Segmenter`` whose network runs in an engine. Placed before the class of the family.

    Thread-safe. Copies made by ``with_thresholds``, ``with_settings`` and ``only`` share the engine. A pickle
    holds the path of the file, not its content.

    Args:
        session: Opened file.

    Attributes:
        config: Configuration of the model. The thresholds are part of the file: only ``filter_thr`` can be
            raised and ``max_per_image`` lowered.
        session: Opened file, with the name of the engine.
    """

    config: ModelConfig
    session: EngineSession
    _class_mask: Tensor | None
    _display_threshold: float

    def __init__(self, session: EngineSession) -> None:
        self.session = session
        self.config = session.exported.config
        self._class_mask = None
        self._display_threshold = DISPLAY_THRESHOLD

    @staticmethod
    @abstractmethod
    def paste(
        scores: Tensor, labels: Tensor, boxes: Tensor, soft: Tensor, geometry: Geometry, thresholds: Any
    ) -> Detections:
        """Return the detections of one image at its original size.

        Args:
            scores: (K,) float32, best first.
            labels: (K,) int64.
            boxes: (K, 4) float32 x1 y1 x2 y2 in pixels of the network input.
            soft: (K, h, w) float32 soft masks in 0..1.
            geometry: Sizes of the image.
            thresholds: Post-processing settings.
        """

    @property
    def network(self) -> NoReturn:
        """Raise ``ExportError``: there is no ``torch.nn.Module``."""
        raise self._no_network()

    def _no_network(self) -> ExportError:
        source = self.session.exported.source
        return ExportError(
            f"{self.session.path} runs in {self.session.name} and has no PyTorch network, so that it cannot "
            f"be trained, exported, compiled or saved: load the model that it was exported from"
            f"{f', {source}' if source else ''}."
        )

    @property
    def inference_network(self) -> NoReturn:
        """Raise ``ExportError``: there is no ``torch.nn.Module``."""
        raise self._no_network()

    @property
    def device(self) -> torch.device:
        """The CPU."""
        return _CPU

    @property
    def dtype(self) -> torch.dtype:
        """Dtype in which the engine computes."""
        return self.session.dtype

    @property
    def input_dtype(self) -> torch.dtype:
        """Dtype of the network input."""
        return torch.float32

    def to(self, device: str | torch.device | None = None, dtype: str | torch.dtype | None = None) -> Self:
        """Return this model, if the device is the CPU and the dtype that of the engine.

        Raises:
            DeviceError: The device or the dtype is another one.
        """
        if device is not None and str(device) != "auto":
            check_engine_device(resolve_device(device))
        if dtype is not None and resolve_dtype(dtype) is not self.dtype:
            raise DeviceError(
                f"dtype={dtype}: {self.session.path} was opened in {str(self.dtype).removeprefix('torch.')}. "
                "Pass dtype=... to load_model, with the engine openvino."
            )
        return self

    def compile(self, **options: Any) -> NoReturn:
        """Raise ``ExportError``: there is no network that torch could compile."""
        raise self._no_network()

    def save_pretrained(self, folder: str | os.PathLike[str]) -> NoReturn:
        """Raise ``ExportError``: there are no weights to save."""
        raise self._no_network()

    def with_thresholds(self, thresholds: BasePostprocessConfig) -> Self:
        """Return a copy with other post-processing settings; see ``config`` for those that can change."""
        self._check_thresholds(replace(self.config, thresholds=thresholds).thresholds)
        return super().with_thresholds(thresholds)  # type: ignore[misc]

    def with_settings(self, **settings: Any) -> Self:
        """Return a copy with other settings of a call; see ``Segmenter.with_settings``.

        Raises:
            ConfigError: A setting is wrong, or is part of the file and cannot be changed.
        """
        other = super().with_settings(**settings)  # type: ignore[misc]
        self._check_thresholds(other.config.thresholds)
        size = self.session.exported.size
        if size is not None and other.config.preprocessing != self.session.exported.config.preprocessing:
            raise ConfigError(
                f"input_size={settings.get('input_size')}: {self.session.path} has the fixed input size "
                f"{size[0]} x {size[1]} (height x width). Export the model without --input-size."
            )
        return other

    def _settings(self, thresholds: BasePostprocessConfig | None) -> BasePostprocessConfig:
        settings = super()._settings(thresholds)  # type: ignore[misc]
        self._check_thresholds(settings)
        return settings

    def _check_thresholds(self, thresholds: BasePostprocessConfig) -> None:
        """Raise ``ConfigError`` if settings that are part of the graph differ from it."""
        own = self.session.exported.config.thresholds
        filter_thr = max(thresholds.filter_thr, own.filter_thr)
        max_per_image = min(thresholds.max_per_image, own.max_per_image)
        allowed = replace(own, filter_thr=filter_thr, max_per_image=max_per_image)
        if thresholds != allowed:
            changed = [
                f"{name}={getattr(thresholds, name)} instead of {getattr(own, name)}"
                for name in vars(own)
                if getattr(thresholds, name) != getattr(allowed, name)
            ]
            raise ConfigError(
                f"{', '.join(changed)}: post-processing is part of {self.session.path}, where only "
                "filter_thr can be raised and max_per_image lowered. Export the model with these settings, "
                "or use the model that it was exported from."
            )

    def _plan(self, pixels: np.ndarray) -> Geometry:
        size, preprocessing = self.session.exported.size, self.config.preprocessing
        photo_size = self.session.exported.photo_size
        if photo_size is not None and pixels.shape[:2] != photo_size:
            raise ImageError(
                f"The image has {pixels.shape[0]} x {pixels.shape[1]} pixels (height x width): "
                f"{self.session.path} takes photos of {photo_size[0]} x {photo_size[1]}. Export "
                "the model without --photo-size for images of any size."
            )
        if size is None or photo_size is not None:
            return plan(pixels, preprocessing)
        return plan_fixed_size(pixels, size, preprocessing)

    def _prepare(self, pixels: Sequence[np.ndarray], geometries: Sequence[Geometry]) -> Tensor:
        """Return what the file takes: photos (N, H, W, 3) uint8, or network inputs (N, 3, H, W)."""
        if self.session.exported.photo_size is not None:
            return torch.from_numpy(np.stack(pixels))
        inputs = super()._prepare(pixels, geometries)  # type: ignore[misc]
        is_uint8 = self.session.exported.takes_pixels
        return to_pixels(inputs, self.config.preprocessing) if is_uint8 else inputs

    def _detect(
        self, inputs: Tensor, geometries: Sequence[Geometry], thresholds: Any, stopwatch: Stopwatch
    ) -> list[Detections]:
        """Return the detections of each image; images run one after the other."""
        results = []
        for image, geometry in zip(inputs.split(1), geometries, strict=True):
            outputs = self.session.run(image.contiguous().numpy())
            stopwatch.mark("engine")
            results.append(self._to_detections(outputs, geometry, thresholds))
            stopwatch.mark("post")
        return results

    def _to_detections(
        self, outputs: dict[str, np.ndarray], geometry: Geometry, thresholds: BasePostprocessConfig
    ) -> Detections:
        """Return the detections of one image from the outputs of the engine.

        Raises:
            ExportError: The outputs do not have the shapes, the dtypes or the labels of the model.
        """
        arrays = [torch.from_numpy(outputs[name]) for name in ("scores", "labels", "boxes", "masks")]
        scores, labels, boxes, soft = arrays
        classes = len(self.config.categories)
        count = scores.shape[-1] if scores.ndim == 2 else -1
        shapes = [(1, count), (1, count), (1, count, 4), (1, count, *soft.shape[-2:])]
        dtypes = [torch.float32, torch.int64, torch.float32, torch.float32]
        returned = [(tuple(array.shape), array.dtype) for array in arrays]
        if returned != list(zip(shapes, dtypes, strict=True)):
            raise ExportError(
                f"{self.session.path} returned {returned}: expected scores (1, M) float32, labels (1, M) "
                "int64, boxes (1, M, 4) float32 and masks (1, M, h, w) float32."
            )
        if count and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
            raise ExportError(f"{self.session.path} returned labels outside of its {classes} classes.")
        found = (scores[0] > 0) & (scores[0] >= thresholds.filter_thr)
        if self._class_mask is not None:
            found &= self._class_mask[labels[0]] > 0
        index = torch.nonzero(found).flatten()[: thresholds.max_per_image]
        if not len(index):
            return empty_detections(geometry.original, _CPU)
        scores, labels, boxes, soft = (array[0, index] for array in arrays)
        return self.paste(scores, labels, boxes, soft, geometry, thresholds)

    def count_candidates(self, inputs: Tensor) -> list[int]:
        """Raise ``ExportError``: an exported model does not return its candidates."""
        raise ExportError(f"{self.session.path} does not return its candidates: use the PyTorch model.")

    def __repr__(self) -> str:
        architecture, size = self.config.architecture, self.session.exported.size
        size = self.session.exported.photo_size or size
        shape = "any size" if size is None else f"{size[0]} x {size[1]}"
        dtype = str(self.dtype).removeprefix("torch.")
        return (
            f"<{type(self).__name__} {architecture.name} {architecture.backbone}, {architecture.num_classes} "
            f"classes, {shape}, {dtype} in {self.session.name}>"
        )


def check_engine_device(device: torch.device) -> None:
    """Raise ``DeviceError`` unless a device is the CPU."""
    if device.type != "cpu":
        raise DeviceError(
            f"device={str(device)!r}: exported models run on the CPU. Use device='cpu', or the model that "
            "the file was exported from."
        )
