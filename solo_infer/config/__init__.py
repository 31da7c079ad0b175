"""Configuration of models: architecture, preprocessing, post-processing, class names.

Frozen dataclasses that check their values. Nothing here imports torch.
"""

from solo_infer.config.architecture import ArchitectureConfig, BasePostprocessConfig
from solo_infer.config.categories import COCO, Categories
from solo_infer.config.model import ModelConfig
from solo_infer.config.preprocess import PreprocessConfig
from solo_infer.config.presets import PRESETS, find_preset
from solo_infer.config.solo import PostprocessConfig, SOLOConfig
from solo_infer.config.tiny import TinyConfig, TinyPostprocessConfig
from solo_infer.config.yolact import YOLACTConfig, YOLACTPostprocessConfig

__all__ = [
    "COCO",
    "PRESETS",
    "ArchitectureConfig",
    "BasePostprocessConfig",
    "Categories",
    "ModelConfig",
    "PostprocessConfig",
    "PreprocessConfig",
    "SOLOConfig",
    "TinyConfig",
    "TinyPostprocessConfig",
    "YOLACTConfig",
    "YOLACTPostprocessConfig",
    "find_preset",
]
