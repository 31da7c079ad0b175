"""Instance segmentation with SOLO and YOLACT: published weights in, mmdet's results out.

from solo_infer import SOLO

result = SOLO.from_pretrained("decoupled_r50_3x")("street.jpg")
result.save("street_segmented.jpg")
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from solo_infer._version import __version__

if TYPE_CHECKING:
    from solo_infer.config import (
        Categories,
        ModelConfig,
        PostprocessConfig,
        PreprocessConfig,
        SOLOConfig,
        YOLACTConfig,
        YOLACTPostprocessConfig,
    )
    from solo_infer.data.images import load_image
    from solo_infer.data.video_sources import Video
    from solo_infer.errors import (
        CacheError,
        CheckpointError,
        ClusterError,
        ConfigError,
        DataError,
        DeviceError,
        DownloadError,
        ExportError,
        ImageError,
        KeywordError,
        OfflineError,
        ResultError,
        SoloInferError,
        TrainingError,
        UnknownModelError,
        WeightsError,
    )
    from solo_infer.evaluation.evaluate import evaluate
    from solo_infer.export.onnx import export_onnx
    from solo_infer.results.result import Instance, Result
    from solo_infer.segmenters.auto import load_model
    from solo_infer.segmenters.base import Segmenter
    from solo_infer.segmenters.solo import SOLO
    from solo_infer.segmenters.yolact import YOLACT
    from solo_infer.training.fine_tune import fine_tune
    from solo_infer.weights.manifest import available_models

# Resolved on first use, so that ``import solo_infer`` and ``solo-infer --help`` do not import torch.
_MODULES = {
    "segmenters.solo": ("SOLO",),
    "segmenters.yolact": ("YOLACT",),
    "segmenters.auto": ("load_model",),
    "segmenters.base": ("Segmenter",),
    "results.result": ("Result", "Instance"),
    "config": (
        "Categories",
        "ModelConfig",
        "PostprocessConfig",
        "PreprocessConfig",
        "SOLOConfig",
        "YOLACTConfig",
        "YOLACTPostprocessConfig",
    ),
    "data.images": ("load_image",),
    "data.video_sources": ("Video",),
    "evaluation.evaluate": ("evaluate",),
    "training.fine_tune": ("fine_tune",),
    "export.onnx": ("export_onnx",),
    "weights.manifest": ("available_models",),
    "errors": (
        "CacheError",
        "CheckpointError",
        "ClusterError",
        "ConfigError",
        "DataError",
        "DeviceError",
        "DownloadError",
        "ExportError",
        "ImageError",
        "KeywordError",
        "OfflineError",
        "ResultError",
        "SoloInferError",
        "TrainingError",
        "UnknownModelError",
        "WeightsError",
    ),
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "SOLO",
    "YOLACT",
    "CacheError",
    "Categories",
    "CheckpointError",
    "ClusterError",
    "ConfigError",
    "DataError",
    "DeviceError",
    "DownloadError",
    "ExportError",
    "ImageError",
    "Instance",
    "KeywordError",
    "ModelConfig",
    "OfflineError",
    "PostprocessConfig",
    "PreprocessConfig",
    "Result",
    "ResultError",
    "SOLOConfig",
    "Segmenter",
    "SoloInferError",
    "TrainingError",
    "UnknownModelError",
    "Video",
    "WeightsError",
    "YOLACTConfig",
    "YOLACTPostprocessConfig",
    "__version__",
    "available_models",
    "evaluate",
    "export_onnx",
    "fine_tune",
    "load_image",
    "load_model",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'solo_infer' has no attribute {name!r}")
    return getattr(importlib.import_module(f"solo_infer.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
