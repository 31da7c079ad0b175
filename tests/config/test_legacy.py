"""Configurations of format "solo_infer/1" still load."""

import json

import pytest
from helpers.paths import DATA

from solo_infer.config import (
    PRESETS,
    Categories,
    ModelConfig,
    PostprocessConfig,
    PreprocessConfig,
    SOLOConfig,
    legacy,
)
from solo_infer.config.presets import config_from_preset
from solo_infer.config.solo import solo_preset
from solo_infer.errors import ConfigError
from solo_infer.weights.checkpoint import read_config


def as_format_1(config):
    """Return a configuration as version 1 of the format wrote it."""
    values = json.loads(json.dumps(config.to_dict()))
    architecture, preprocessing = values["architecture"], values["preprocessing"]
    if values.pop("family") == "yolact":
        heads = {"mmdet": "yolact", "original": "yolact_author"}
        values["architecture"] = {"head": heads[architecture.pop("variant")], **architecture}
    else:
        architecture["strides"] = [8, 8, 16, 32, 32]
    preprocessing["whole_values"] = preprocessing.pop("round_to_uint8")
    return {**values, "format": "solo_infer/1"}


# Tiny is newer than format 1.
@pytest.mark.parametrize("name", [name for name in PRESETS if name != "tiny"])
def test_every_preset_of_format_1_loads(name):
    assert ModelConfig.from_dict(as_format_1(PRESETS[name])) == PRESETS[name]


@pytest.mark.parametrize(
    ("head", "variant", "rounds"),
    [("yolact", "mmdet", True), ("yolact_author", "original", False)],
)
def test_both_yolact_variants_load(head, variant, rounds):
    preset = PRESETS["yolact_r50" if variant == "mmdet" else "yolact_original_r50"]
    values = as_format_1(preset)
    assert values["architecture"]["head"] == head and values["preprocessing"]["whole_values"] is rounds
    config = ModelConfig.from_dict(values)
    assert config.architecture.variant == variant
    assert config.architecture.strides == preset.architecture.strides
    assert config.preprocessing.round_to_uint8 is rounds


def test_config_of_the_former_embedded_model_loads():
    path = DATA / "tiny_format1_config.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    assert values["format"] == "solo_infer/1" and "strides" in values["architecture"]
    config = read_config(path)
    assert config.architecture.family == "solo"
    assert (config.architecture.name, config.architecture.backbone) == (
        "decoupled_light",
        "efficientnet_lite0",
    )
    assert config.architecture.num_grids == (32, 24, 16, 12, 8)
    assert config.architecture.num_classes == len(config.categories) == 12
    assert config.preprocessing.short_side == values["preprocessing"]["short_side"]
    assert config.thresholds == PostprocessConfig(**values["thresholds"])
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize("value", [True, False])
def test_whole_values_becomes_round_to_uint8(value):
    config = ModelConfig.from_dict({"format": "solo_infer/1", "preprocessing": {"whole_values": value}})
    assert config == ModelConfig(preprocessing=PreprocessConfig(round_to_uint8=value))


def test_strides_of_the_levels_are_dropped():
    values = {"format": "solo_infer/1", "architecture": {"strides": [8, 8, 16, 32, 32], "head_bias": True}}
    assert ModelConfig.from_dict(values).architecture == SOLOConfig(head_bias=True)


@pytest.mark.parametrize("strides", [[8, 8, 16, 32, 64], [8, 8, 16, 32], None, 8, "8"])
def test_other_strides_are_refused(strides):
    with pytest.raises(ConfigError, match="strides="):
        ModelConfig.from_dict({"format": "solo_infer/1", "architecture": {"strides": strides}})


def test_missing_sections_take_their_defaults():
    assert ModelConfig.from_dict({"format": "solo_infer/1"}) == ModelConfig()
    values = {"format": "solo_infer/1", "thresholds": {"nms_pre": 7}}
    assert ModelConfig.from_dict(values) == ModelConfig(thresholds=PostprocessConfig(nms_pre=7))
    pets = Categories(("cat", "dog"))
    config = config_from_preset(solo_preset("solo"), pets)
    assert ModelConfig.from_dict(as_format_1(config)) == config


def test_upgrade_changes_neither_its_argument_nor_other_formats():
    values = as_format_1(PRESETS["yolact_r50"])
    before = json.dumps(values)
    legacy.upgrade(values)
    assert json.dumps(values) == before
    current = PRESETS["solo_r50"].to_dict()
    assert legacy.upgrade(current) == current and legacy.upgrade(current) is not current
    assert legacy.upgrade({"format": "other"}) == {"format": "other"}


@pytest.mark.parametrize(
    "values",
    [
        {"architecture": []},
        {"architecture": {"head": "mask_rcnn"}},
        {"architecture": {"head": ["yolact"]}},
        {"architecture": {"head": "yolact", "backbone": "vgg"}},
        {"preprocessing": {"whole_values": 1}},
        {"preprocessing": {"unknown": 1}},
        {"preprocessing": []},
        {"thresholds": {"top_k": 3}},
    ],
)
def test_invalid_files_of_format_1_are_refused(values):
    with pytest.raises(ConfigError):
        ModelConfig.from_dict({"format": "solo_infer/1", **values})
