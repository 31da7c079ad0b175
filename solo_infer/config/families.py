"""Registry of the model families.

Everything that differs between families hangs on one row of ``FAMILIES``. Parts of higher layers are named
by import paths and resolved when they are used, so that this module stays light and at the bottom.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from solo_infer.config.architecture import ArchitectureConfig, BasePostprocessConfig, Preset
from solo_infer.config.solo import SOLO_PRESETS, PostprocessConfig, SOLOConfig
from solo_infer.config.tiny import TINY_PRESETS, TinyConfig, TinyPostprocessConfig
from solo_infer.config.validation import bounded_repr, require
from solo_infer.config.yolact import YOLACT_PRESETS, YOLACTConfig, YOLACTPostprocessConfig


@dataclass(frozen=True)
class Family:
    """One model family.

    Attributes:
        architecture: Configuration of its networks.
        postprocess: Its post-processing settings.
        presets: Published settings by name.
        network: Import path of the ``nn.Module`` class, built from an ``architecture``.
        segmenter: Import path of the ``Segmenter`` subclass.
        checkpoints: Import path of the module that recognizes the family's checkpoints
            (``solo_infer.weights.families``).
        parity: Import path of the function that compares a model with mmdet's goldens, None if mmdet has no
            such model.
        exporter: Import path of the module that exports the network and decodes its raw outputs, None if the
            family has none.
        detector: Import path of the ``nn.Module`` class that maps network inputs to detections with static
            shapes, built from a network and the configuration of its model; None if whole models of the
            family cannot be exported.
        engine_segmenter: Import path of the ``Segmenter`` subclass that runs such exported models, None with
            ``detector``.
    """

    architecture: type[ArchitectureConfig]
    postprocess: type[BasePostprocessConfig]
    presets: Mapping[str, Preset]
    network: str
    segmenter: str
    checkpoints: str
    parity: str | None = None
    exporter: str | None = None
    detector: str | None = None
    engine_segmenter: str | None = None

    def load(self, field: str) -> Any:
        """Import and return the object that a field names: "package.module" or "package.module:name"."""
        module, _, name = getattr(self, field).partition(":")
        imported = importlib.import_module(module)
        return getattr(imported, name) if name else imported


FAMILIES: dict[str, Family] = {
    SOLOConfig.family: Family(
        architecture=SOLOConfig,
        postprocess=PostprocessConfig,
        presets=SOLO_PRESETS,
        network="solo_infer.models.solo.network:SOLONetwork",
        segmenter="solo_infer.segmenters.solo:SOLO",
        checkpoints="solo_infer.weights.families.solo",
        parity="solo_infer.diagnostics.parity_solo:check_solo",
        exporter="solo_infer.export.solo_heads",
        detector="solo_infer.export.solo_graph:SOLODetector",
        engine_segmenter="solo_infer.segmenters.solo:EngineSOLO",
    ),
    YOLACTConfig.family: Family(
        architecture=YOLACTConfig,
        postprocess=YOLACTPostprocessConfig,
        presets=YOLACT_PRESETS,
        network="solo_infer.models.yolact.network:YOLACTNetwork",
        segmenter="solo_infer.segmenters.yolact:YOLACT",
        checkpoints="solo_infer.weights.families.yolact",
        parity="solo_infer.diagnostics.parity_yolact:check_yolact",
        detector="solo_infer.export.yolact_graph:YOLACTDetector",
        engine_segmenter="solo_infer.segmenters.yolact:EngineYOLACT",
    ),
    TinyConfig.family: Family(
        architecture=TinyConfig,
        postprocess=TinyPostprocessConfig,
        presets=TINY_PRESETS,
        network="solo_infer.models.tiny.network:TinyNetwork",
        segmenter="solo_infer.segmenters.tiny:Tiny",
        checkpoints="solo_infer.weights.families.tiny",
        exporter="solo_infer.export.tiny_heads",
        detector="solo_infer.export.tiny_graph:TinyDetector",
        engine_segmenter="solo_infer.segmenters.tiny:EngineTiny",
    ),
}


def family_of(architecture: ArchitectureConfig) -> Family:
    """Return the family of an architecture.

    Raises:
        ConfigError: It belongs to no registered family.
    """
    name = getattr(architecture, "family", None)
    known = ", ".join(family.architecture.__name__ for family in FAMILIES.values())
    require(name in FAMILIES, f"architecture={bounded_repr(architecture)}: expected one of {known}.")
    return FAMILIES[str(name)]
