"""Instance segmentation with SOLO and YOLACT: published weights in, mmdet's instances out."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from solo_infer._version import __version__

if TYPE_CHECKING:
    from solo_infer.categories import Categories
    from solo_infer.config import Architecture, ModelConfig, Preprocessing, Thresholds
    from solo_infer.errors import SoloInferError
    from solo_infer.result import Instance, Result
    from solo_infer.segmenter import SOLO, YOLACT, load_model
    from solo_infer.weights.manifest import available_models
    from solo_infer.yolact_config import YolactArchitecture, YolactThresholds

# Imported on first use, so that the command line answers --help without loading torch.
_HOMES = {
    "SOLO": "segmenter",
    "YOLACT": "segmenter",
    "load_model": "segmenter",
    "Result": "result",
    "Instance": "result",
    "ModelConfig": "config",
    "Architecture": "config",
    "Preprocessing": "config",
    "Thresholds": "config",
    "YolactArchitecture": "yolact_config",
    "YolactThresholds": "yolact_config",
    "Categories": "categories",
    "SoloInferError": "errors",
    "available_models": "weights.manifest",
}

__all__ = [
    "SOLO",
    "YOLACT",
    "Architecture",
    "Categories",
    "Instance",
    "ModelConfig",
    "Preprocessing",
    "Result",
    "SoloInferError",
    "Thresholds",
    "YolactArchitecture",
    "YolactThresholds",
    "__version__",
    "available_models",
    "load_model",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'solo_infer' has no attribute {name!r}")
    return getattr(importlib.import_module(f"solo_infer.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
