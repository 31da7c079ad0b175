"""Configurations: the published settings, what is refused, the way through JSON."""

import json
from dataclasses import FrozenInstanceError, replace

import pytest

from solo_infer.categories import COCO, Categories
from solo_infer.config import (
    PRESETS,
    Architecture,
    ModelConfig,
    Preprocessing,
    Thresholds,
    find_preset,
    preset,
)
from solo_infer.errors import ConfigError


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
        assert config.architecture.num_cells == 3872
        assert config.architecture.strides == (8, 8, 16, 32, 32)
        assert config.thresholds == Thresholds(0.1, 0.5, 0.05, 500, 100, "gaussian", 2.0)
        assert config.categories is COCO


def test_preset_of_own_classes():
    config = preset("solo", "resnet101", Categories(("nucleus",)))
    assert (config.architecture.num_classes, config.categories.names) == (1, ("nucleus",))


def test_unknown_preset_lists_the_known():
    with pytest.raises(ConfigError, match="'solo_r18'.*'decoupled_r50'"):
        find_preset("solo_r18")


@pytest.mark.parametrize(
    "size, resized, padded",
    [
        ((480, 640), (800, 1067), (800, 1088)),
        ((640, 480), (1067, 800), (1088, 800)),
        ((427, 640), (800, 1199), (800, 1216)),
        ((300, 1000), (400, 1333), (416, 1344)),  # the long side meets its limit first
        ((800, 1333), (800, 1333), (800, 1344)),
        ((1, 5000), (1, 1333), (32, 1344)),
        ((1, 1), (800, 800), (800, 800)),
    ],
)
def test_sizes(size, resized, padded):
    config = Preprocessing()
    assert config.resized_shape(*size) == resized
    assert config.padded_shape(*resized) == padded


@pytest.mark.parametrize("name", PRESETS)
def test_through_json(name):
    config = find_preset(name)
    written = json.loads(json.dumps(config.to_dict(), allow_nan=False))
    assert written["format"] == "solo_infer/1"
    assert ModelConfig.from_dict(written) == config


def test_missing_fields_get_their_defaults():
    config = ModelConfig.from_dict({"format": "solo_infer/1", "thresholds": {"nms_pre": 7}})
    assert config == ModelConfig(thresholds=Thresholds(nms_pre=7))


def test_lists_become_tuples_so_that_configurations_compare_and_hash():
    listed = Architecture(num_grids=[40, 36, 24, 16, 12], strides=[8, 8, 16, 32, 32])
    assert listed == Architecture()
    assert hash(listed) == hash(Architecture())
    staged = Architecture(deformable_stages=[4, 2, 4])
    assert staged == Architecture(deformable_stages=(2, 4)) and hash(staged) == hash(
        Architecture(deformable_stages=(2, 4))
    )


def test_configurations_are_frozen():
    with pytest.raises(FrozenInstanceError):
        Thresholds().nms_pre = 3


@pytest.mark.parametrize(
    "kind, values",
    [
        (Architecture, {"head": "mask"}),
        (Architecture, {"head": ["solo"]}),
        (Architecture, {"backbone": "resnet18"}),
        (Architecture, {"num_classes": 0}),
        (Architecture, {"num_classes": "80"}),
        (Architecture, {"num_classes": 80.0}),
        (Architecture, {"num_classes": True}),
        (Architecture, {"num_grids": (40, 36, 24, 16)}),
        (Architecture, {"num_grids": 40}),
        (Architecture, {"num_grids": (40, 36, 24, 16, 0)}),
        (Architecture, {"strides": (8, 8, 16, 32, 32.5)}),
        (Architecture, {"strides": None}),
        (Architecture, {"stacked_convs": 0}),
        (Architecture, {"head_channels": 48}),
        (Architecture, {"head_channels": -32}),
        (Architecture, {"head_bias": 1}),
        (Architecture, {"deformable_head": "DCN"}),
        (Architecture, {"extra_level": "p6"}),
        (Architecture, {"extra_level": ["conv"]}),
        (Architecture, {"deformable_stages": (0, 1)}),
        (Architecture, {"deformable_stages": 3}),
        (Architecture, {"deformable_stages": ("2",)}),
        (Architecture, {"deformable_stages": (2,), "backbone": "efficientnet_lite0"}),
        (Preprocessing, {"short_side": 0}),
        (Preprocessing, {"short_side": 900, "long_side": 800}),
        (Preprocessing, {"long_side": 1333.0}),
        (Preprocessing, {"size_divisor": 0}),
        (Preprocessing, {"mean": (1.0, 2.0)}),
        (Preprocessing, {"mean": (1.0, 2.0, float("nan"))}),
        (Preprocessing, {"mean": "abc"}),
        (Preprocessing, {"std": (1.0, 0.0, 1.0)}),
        (Preprocessing, {"std": (1.0, float("inf"), 1.0)}),
        (Thresholds, {"score_thr": 1.5}),
        (Thresholds, {"score_thr": -0.1}),
        (Thresholds, {"mask_thr": float("nan")}),
        (Thresholds, {"filter_thr": "0.1"}),
        (Thresholds, {"nms_pre": 0}),
        (Thresholds, {"max_per_image": 10.5}),
        (Thresholds, {"kernel": "box"}),
        (Thresholds, {"sigma": 0}),
        (Thresholds, {"sigma": float("inf")}),
        (Thresholds, {"nms": "soft"}),
        (Thresholds, {"nms": None}),
        (Thresholds, {"nms_iou": 1.5}),
    ],
)
def test_wrong_values_are_named(kind, values):
    with pytest.raises(ConfigError, match=next(iter(values)).split("_")[0]):
        kind(**values)


def test_names_must_fit_the_number_of_classes():
    with pytest.raises(ConfigError, match="80 category names for a model of 3 classes"):
        ModelConfig(Architecture(num_classes=3))


@pytest.mark.parametrize(
    "values, message",
    [
        ({}, "format=None"),
        ({"format": "solo_infer/9"}, "format='solo_infer/9'"),
        ({"format": "solo_infer/1", "training": {}}, "training"),
        ({"format": "solo_infer/1", "thresholds": {"nms": 3}}, "nms"),
        ({"format": "solo_infer/1", "thresholds": [1]}, "expected an object, got list"),
        ({"format": "solo_infer/1", "thresholds": {"sigma": "2"}}, "sigma"),
        ({"format": "solo_infer/1", "categories": {}}, "Categories"),
        ({"format": "solo_infer/1", "categories": {"names": None}}, "Categories"),
        ({"format": "solo_infer/1", "categories": {"names": "abc"}}, "strings"),
    ],
)
def test_wrong_files_are_explained(values, message):
    with pytest.raises(ConfigError, match=message):
        ModelConfig.from_dict(values)


def test_a_change_is_checked_too():
    with pytest.raises(ConfigError, match="nms_pre"):
        replace(Thresholds(), nms_pre=-1)
