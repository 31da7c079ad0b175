"""Configurations: published settings, validation, and JSON."""

import json
from dataclasses import FrozenInstanceError, replace

import pytest

from solo_infer.config import (
    PRESETS,
    ModelConfig,
    PostprocessConfig,
    PreprocessConfig,
    SOLOConfig,
    YOLACTConfig,
    YOLACTPostprocessConfig,
    find_preset,
)
from solo_infer.config.categories import COCO, Categories
from solo_infer.config.presets import config_from_preset
from solo_infer.config.solo import solo_preset
from solo_infer.errors import ConfigError

SCALE_RANGES = SOLOConfig.scale_ranges
SOLO_2 = {"format": "solo_infer/2", "family": "solo"}


def test_presets_are_the_published_settings():
    heads = ("solo", "decoupled", "decoupled_light")
    published = [find_preset(f"{head}_{backbone}") for head in heads for backbone in ("r50", "r101")]
    solo, light = find_preset("solo_r50"), find_preset("decoupled_light_r50")
    assert (solo.preprocessing.short_side, solo.preprocessing.long_side) == (800, 1333)
    assert (light.preprocessing.short_side, light.preprocessing.long_side) == (512, 852)
    assert (solo.architecture.stacked_convs, light.architecture.stacked_convs) == (7, 4)
    assert find_preset("decoupled_r101").architecture.backbone == "resnet101"
    for config in published:
        assert config.architecture.num_grids == (40, 36, 24, 16, 12)
        assert config.architecture.strides == (8, 8, 16, 32, 32)
        assert config.thresholds == PostprocessConfig(0.1, 0.5, 0.05, 500, 100, "gaussian", 2.0)
        assert config.categories is COCO


def test_preset_with_custom_classes():
    config = config_from_preset(solo_preset("solo", "resnet101"), Categories(("nucleus",)))
    assert (config.architecture.num_classes, config.categories.names) == (1, ("nucleus",))


def test_unknown_preset_lists_the_known_ones():
    with pytest.raises(ConfigError, match="No preset 'solo_r18'. Did you mean 'solo_r101'.*decoupled_r50"):
        find_preset("solo_r18")


@pytest.mark.parametrize(
    "size, resized, padded",
    [
        ((480, 640), (800, 1067), (800, 1088)),
        ((640, 480), (1067, 800), (1088, 800)),
        ((427, 640), (800, 1199), (800, 1216)),
        ((300, 1000), (400, 1333), (416, 1344)),  # the long side reaches its limit first
        ((800, 1333), (800, 1333), (800, 1344)),
        ((1, 5000), (1, 1333), (32, 1344)),
        ((1, 1), (800, 800), (800, 800)),
    ],
)
def test_resized_and_padded_shapes(size, resized, padded):
    config = PreprocessConfig()
    assert config.resized_shape(*size) == resized
    assert config.padded_shape(*resized) == padded


@pytest.mark.parametrize("name", PRESETS)
def test_config_survives_json(name):
    config = find_preset(name)
    written = json.loads(json.dumps(config.to_dict(), allow_nan=False))
    assert written["format"] == "solo_infer/2"
    assert written["family"] == (name.split("_")[0] if name.startswith(("yolact", "tiny")) else "solo")
    assert ModelConfig.from_dict(written) == config


def test_missing_fields_get_their_defaults():
    solo = ModelConfig.from_dict({"format": "solo_infer/2", "family": "solo", "thresholds": {"nms_pre": 7}})
    assert solo == ModelConfig(thresholds=PostprocessConfig(nms_pre=7))
    yolact = ModelConfig.from_dict({"format": "solo_infer/2", "family": "yolact"})
    assert yolact == ModelConfig(YOLACTConfig(), thresholds=YOLACTPostprocessConfig())


def test_lists_are_converted_to_tuples():
    listed = SOLOConfig(num_grids=[40, 36, 24, 16, 12], scale_ranges=[list(r) for r in SCALE_RANGES])
    assert listed == SOLOConfig()
    assert hash(listed) == hash(SOLOConfig())
    sorted_stages = SOLOConfig(deformable_stages=(2, 4))
    assert SOLOConfig(deformable_stages=[4, 2, 4]) == sorted_stages
    assert hash(SOLOConfig(deformable_stages=[4, 2, 4])) == hash(sorted_stages)
    yolact = YOLACTConfig(anchor_sizes=[24, 48, 96, 192, 384], strides=list(YOLACTConfig.strides))
    assert yolact == YOLACTConfig() and hash(yolact) == hash(YOLACTConfig())


def test_deformable_head_of_earlier_versions():
    assert SOLOConfig(deformable_head=True) == SOLOConfig(deformable_head="last")
    assert SOLOConfig(deformable_head=False) == SOLOConfig()
    written = {**find_preset("decoupled_light_dcn_r50").to_dict()["architecture"], "deformable_head": True}
    for name in ("modulated", "mask_channels", "deformable_mask_features"):
        del written[name]
    config = ModelConfig.from_dict({"format": "solo_infer/2", "family": "solo", "architecture": written})
    assert config.architecture == find_preset("decoupled_light_dcn_r50").architecture


def test_configurations_are_frozen():
    with pytest.raises(FrozenInstanceError):
        PostprocessConfig().nms_pre = 3


@pytest.mark.parametrize(
    "config, values",
    [
        (SOLOConfig, {"head": "mask"}),
        (SOLOConfig, {"head": ["solo"]}),
        (SOLOConfig, {"backbone": "resnet19"}),
        (SOLOConfig, {"num_classes": 0}),
        (SOLOConfig, {"num_classes": "80"}),
        (SOLOConfig, {"num_classes": 80.0}),
        (SOLOConfig, {"num_classes": True}),
        (SOLOConfig, {"num_grids": (40, 36, 24, 16)}),
        (SOLOConfig, {"num_grids": 40}),
        (SOLOConfig, {"num_grids": (40, 36, 24, 16, 0)}),
        (SOLOConfig, {"scale_ranges": None}),
        (SOLOConfig, {"scale_ranges": ((1, 2), (1, 2), (1, 2), (1, 2))}),
        (SOLOConfig, {"scale_ranges": (1, 2, 3, 4, 5)}),
        (SOLOConfig, {"scale_ranges": ((1, 2), (1, 2), (1, 2), (1, 2), (2, 1))}),
        (SOLOConfig, {"stacked_convs": 0}),
        (SOLOConfig, {"head_channels": 48}),
        (SOLOConfig, {"head_channels": -32}),
        (SOLOConfig, {"head_bias": 1}),
        (SOLOConfig, {"deformable_head": "DCN"}),
        (SOLOConfig, {"deformable_head": 1.5}),
        (SOLOConfig, {"modulated": 2}),
        (SOLOConfig, {"mask_channels": 100}),
        (SOLOConfig, {"mask_channels": 0, "head": "solov2"}),
        (SOLOConfig, {"deformable_mask_features": "all", "head": "solov2"}),
        (SOLOConfig, {"deformable_mask_features": True, "head": "solo"}),
        (SOLOConfig, {"deformable_stages": (4,), "backbone": "resnet34"}),
        (SOLOConfig, {"extra_level": "p6"}),
        (SOLOConfig, {"extra_level": ["conv"]}),
        (SOLOConfig, {"deformable_stages": (0, 1)}),
        (SOLOConfig, {"deformable_stages": 3}),
        (SOLOConfig, {"deformable_stages": ("2",)}),
        (SOLOConfig, {"deformable_stages": (2,), "backbone": "efficientnet_lite0"}),
        (YOLACTConfig, {"variant": "plus"}),
        (YOLACTConfig, {"backbone": "efficientnet_lite0"}),
        (YOLACTConfig, {"num_classes": 0}),
        (YOLACTConfig, {"num_protos": 1.5}),
        (YOLACTConfig, {"strides": (8, 8, 16, 32)}),
        (YOLACTConfig, {"strides": (0, 8, 16, 32, 64)}),
        (YOLACTConfig, {"strides": None}),
        (YOLACTConfig, {"anchor_sizes": (24, 48, 96, 192, float("nan"))}),
        (YOLACTPostprocessConfig, {"iou_thr": 1.5}),
        (YOLACTPostprocessConfig, {"top_k": 0}),
        (PreprocessConfig, {"short_side": 0}),
        (PreprocessConfig, {"round_to_uint8": 1}),
        (PreprocessConfig, {"keep_ratio": False}),
        (PreprocessConfig, {"short_side": 900, "long_side": 800}),
        (PreprocessConfig, {"long_side": 1333.0}),
        (PreprocessConfig, {"size_divisor": 0}),
        (PreprocessConfig, {"mean": (1.0, 2.0)}),
        (PreprocessConfig, {"mean": (1.0, 2.0, float("nan"))}),
        (PreprocessConfig, {"mean": "abc"}),
        (PreprocessConfig, {"std": (1.0, 0.0, 1.0)}),
        (PreprocessConfig, {"std": (1.0, float("inf"), 1.0)}),
        (PostprocessConfig, {"score_thr": 1.5}),
        (PostprocessConfig, {"score_thr": -0.1}),
        (PostprocessConfig, {"mask_thr": float("nan")}),
        (PostprocessConfig, {"filter_thr": "0.1"}),
        (PostprocessConfig, {"nms_pre": 0}),
        (PostprocessConfig, {"max_per_image": 10.5}),
        (PostprocessConfig, {"kernel": "box"}),
        (PostprocessConfig, {"sigma": 0}),
        (PostprocessConfig, {"sigma": float("inf")}),
        (PostprocessConfig, {"nms": "soft"}),
        (PostprocessConfig, {"nms": None}),
        (PostprocessConfig, {"nms_iou": 1.5}),
    ],
)
def test_invalid_values_are_named(config, values):
    with pytest.raises(ConfigError, match=next(iter(values)).split("_")[0]):
        config(**values)


def test_number_of_class_names_must_match():
    with pytest.raises(ConfigError, match="80 category names for a model of 3 classes"):
        ModelConfig(SOLOConfig(num_classes=3))


@pytest.mark.parametrize(
    "values, message",
    [
        ({}, "format=None"),
        ({"format": "solo_infer/9"}, "format='solo_infer/9'"),
        ({"format": "solo_infer/2"}, "family=None"),
        ({"format": "solo_infer/2", "family": "mask_rcnn"}, "family='mask_rcnn'"),
        ({**SOLO_2, "architecture": {"variant": "mmdet"}}, "SOLOConfig: unknown field"),
        ({**SOLO_2, "architecture": {"strides": [8, 8, 16, 32, 32]}}, "SOLOConfig: unknown field"),
        ({**SOLO_2, "thresholds": {"top_k": 3}}, "PostprocessConfig: unknown field"),
        ({**SOLO_2, "training": {}}, "training"),
        ({"format": "solo_infer/1", "training": {}}, "training"),
        ({"format": "solo_infer/1", "thresholds": {"nms": 3}}, "nms"),
        ({"format": "solo_infer/1", "thresholds": [1]}, "expected an object, got list"),
        ({"format": "solo_infer/1", "thresholds": {"sigma": "2"}}, "sigma"),
        ({"format": "solo_infer/1", "categories": {}}, "Categories"),
        ({"format": "solo_infer/1", "categories": {"names": None}}, "Category names None"),
        (
            {"format": "solo_infer/1", "categories": {"names": "abc"}},
            "Category names 'abc': expected a sequence",
        ),
    ],
)
def test_invalid_files_are_explained(values, message):
    with pytest.raises(ConfigError, match=message):
        ModelConfig.from_dict(values)


def test_replaced_values_are_checked():
    with pytest.raises(ConfigError, match="nms_pre"):
        replace(PostprocessConfig(), nms_pre=-1)


@pytest.mark.parametrize("value", [object(), object, None, {}, 0.3])
def test_thresholds_of_any_other_type_are_refused(value):
    with pytest.raises(ConfigError, match="thresholds are"):
        ModelConfig(thresholds=value)
