"""Registry of the model families: import paths of the rows, and a further family."""

import sys
import types
from dataclasses import dataclass, fields
from typing import ClassVar

import pytest
import torch
from helpers.results import assert_same
from torch import nn

from solo_infer import load_model
from solo_infer.config import (
    ArchitectureConfig,
    BasePostprocessConfig,
    Categories,
    ModelConfig,
    PreprocessConfig,
    SOLOConfig,
    TinyConfig,
    YOLACTConfig,
)
from solo_infer.config.architecture import Preset
from solo_infer.config.families import FAMILIES, Family, family_of
from solo_infer.errors import ConfigError
from solo_infer.inference.detections import Detections, empty_detections
from solo_infer.models import build_network
from solo_infer.models.base import SegmentationNetwork
from solo_infer.ops.packed_masks import pack
from solo_infer.segmenters.auto import build_segmenter
from solo_infer.segmenters.base import Segmenter
from solo_infer.segmenters.engine_model import EngineModel
from solo_infer.weights.families import CheckpointFamily
from solo_infer.weights.key_mapping import KeyMap

PATHS = [
    (name, field.name)
    for name, family in FAMILIES.items()
    for field in fields(Family)
    if isinstance(getattr(family, field.name), str)
]


@pytest.mark.parametrize("name, part", PATHS)
def test_import_paths_resolve(name, part):
    assert FAMILIES[name].load(part) is not None


@pytest.mark.parametrize("name", FAMILIES)
def test_parts_of_a_family_belong_together(name):
    family = FAMILIES[name]
    assert family.architecture.family == name
    assert issubclass(family.architecture, ArchitectureConfig)
    assert issubclass(family.postprocess, BasePostprocessConfig)
    assert issubclass(family.load("network"), SegmentationNetwork)
    segmenter = family.load("segmenter")
    assert issubclass(segmenter, Segmenter) and segmenter.family == name
    assert isinstance(family.load("checkpoints"), CheckpointFamily)
    assert family.parity is None or callable(family.load("parity"))
    assert (family.detector is None) == (family.engine_segmenter is None)
    assert issubclass(family.load("detector"), nn.Module)
    assert issubclass(family.load("engine_segmenter"), EngineModel)
    assert issubclass(family.load("engine_segmenter"), segmenter)
    assert family.presets
    for preset in family.presets.values():
        assert isinstance(preset.architecture, family.architecture)
        assert isinstance(preset.postprocess, family.postprocess)
        assert family_of(preset.architecture) is family


def test_families_of_architectures():
    assert family_of(SOLOConfig()) is FAMILIES["solo"]
    assert family_of(YOLACTConfig()) is FAMILIES["yolact"]
    assert family_of(TinyConfig()) is FAMILIES["tiny"]
    for other in (None, "solo", object()):
        with pytest.raises(
            ConfigError, match="architecture=.*expected one of SOLOConfig, YOLACTConfig, TinyC"
        ):
            family_of(other)


# --- A third family: one row of the registry is all that it needs


@dataclass(frozen=True)
class StripesConfig(ArchitectureConfig):
    """Architecture of a network that detects one instance, the bright pixels of an image."""

    family: ClassVar[str] = "stripes"

    backbone: str = "none"
    num_classes: int = 2
    channels: tuple[int, ...] = (3, 1)

    @property
    def name(self):
        return "stripes"


@dataclass(frozen=True)
class StripesPostprocessConfig(BasePostprocessConfig):
    """Post-processing settings of the third family."""

    score_thr: float = 0.1
    mask_thr: float = 0.5
    filter_thr: float = 0.05
    nms_pre: int = 10
    max_per_image: int = 1


class StripesNetwork(SegmentationNetwork):
    """One convolution, whose output is the mask."""

    losses = ("loss_mask",)

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.backbone = nn.Conv2d(*config.channels, 1)

    def forward(self, images, targets=None):
        return self.backbone(images)

    def init_weights(self):
        nn.init.ones_(self.backbone.weight)
        nn.init.zeros_(self.backbone.bias)

    def class_rows(self, labels):
        return {}


class Stripes(Segmenter):
    """Models of the third family."""

    family = "stripes"

    def _detect(self, inputs, geometries, thresholds, stopwatch):
        detections = []
        for logits, geometry in zip(self.inference_network(inputs), geometries, strict=True):
            if thresholds.score_thr >= 0.9:
                detections.append(empty_detections(geometry.original, inputs.device))
                continue
            height, width = geometry.original
            packed = pack((logits[0, :height, :width] > 0)[None])
            boxes = torch.tensor([[0.0, 0.0, width, height]])
            detections.append(Detections(torch.tensor([0.9]), torch.tensor([1]), boxes, packed))
        return detections

    def count_candidates(self, inputs):
        return [1] * len(inputs)


def stripes_checkpoints():
    """Return a module of the third family that provides ``CheckpointFamily``."""
    module = types.ModuleType("stripes_family.checkpoints")
    module.MODELS = "Stripes"
    module.LIMITS = {"num_classes": 100}
    module.recognizes = lambda names: set(names) == {"backbone.weight", "backbone.bias"}
    module.key_map = lambda names: KeyMap(rules=())
    module.infer_preset = lambda state_dict: STRIPES_PRESET
    return module


STRIPES_PREPROCESS = PreprocessConfig(short_side=16, long_side=16, keep_ratio=False, size_divisor=1)
STRIPES_PRESET = Preset(StripesConfig(), STRIPES_PREPROCESS, StripesPostprocessConfig())


@pytest.fixture
def stripes(monkeypatch):
    """Register the third family, and return the configuration of a model."""
    module = types.ModuleType("stripes_family")
    module.StripesNetwork, module.Stripes = StripesNetwork, Stripes
    module.check_stripes = lambda *_: []
    monkeypatch.setitem(sys.modules, "stripes_family", module)
    monkeypatch.setitem(sys.modules, "stripes_family.checkpoints", stripes_checkpoints())
    row = Family(
        architecture=StripesConfig,
        postprocess=StripesPostprocessConfig,
        presets={"stripes": STRIPES_PRESET},
        network="stripes_family:StripesNetwork",
        segmenter="stripes_family:Stripes",
        checkpoints="stripes_family.checkpoints",
        parity="stripes_family:check_stripes",
    )
    monkeypatch.setitem(FAMILIES, "stripes", row)
    categories = Categories(("dark", "bright"))
    return ModelConfig(StripesConfig(), STRIPES_PREPROCESS, StripesPostprocessConfig(), categories)


def stripes_model(config):
    network = build_network(config.architecture)
    network.init_weights()
    return build_segmenter(config, network.requires_grad_(False))


def test_network_and_model_of_a_further_family(stripes, photo):
    model = stripes_model(stripes)
    assert type(model) is Stripes and type(model.network) is StripesNetwork
    assert not model.network.training
    result = model(photo[:16, :16])
    assert list(result.names) == ["bright"] and result.masks.any()
    assert len(model.with_thresholds(StripesPostprocessConfig(score_thr=0.95))(photo)) == 0


def test_configuration_of_a_further_family_survives_json(stripes):
    written = stripes.to_dict()
    assert written["family"] == "stripes"
    assert ModelConfig.from_dict(written) == stripes
    with pytest.raises(ConfigError, match="thresholds are PostprocessConfig: a stripes model takes Stripes"):
        ModelConfig(StripesConfig(), categories=stripes.categories)
    with pytest.raises(ConfigError, match="StripesConfig: unknown field"):
        ModelConfig.from_dict({**written, "architecture": {"head": "solo"}})


def test_models_of_a_further_family_are_saved_and_loaded(stripes, photo, tmp_path):
    model = stripes_model(stripes)
    model.save_pretrained(tmp_path / "saved")
    for load in (load_model, Stripes.from_pretrained):
        loaded = load(tmp_path / "saved", device="cpu")
        assert type(loaded) is Stripes and loaded.config == stripes
        assert_same(loaded(photo[:16, :16]), model(photo[:16, :16]))
    with pytest.raises(ConfigError, match="is a stripes model .* expected one of solo, tiny"):
        FAMILIES["solo"].load("segmenter").from_pretrained(tmp_path / "saved", device="cpu")


def test_checkpoints_of_a_further_family_are_recognized(stripes, tmp_path):
    model = stripes_model(stripes)
    torch.save(model.network.state_dict(), tmp_path / "stripes.pth")
    loaded = load_model(tmp_path / "stripes.pth", device="cpu")
    assert type(loaded) is Stripes and loaded.config.architecture == StripesConfig()


def test_unregistered_families_are_refused():
    with pytest.raises(ConfigError, match="expected one of SOLOConfig, YOLACTConfig"):
        build_network(StripesConfig())
    with pytest.raises(ConfigError, match="family='stripes'"):
        ModelConfig.from_dict({"format": "solo_infer/2", "family": "stripes"})
