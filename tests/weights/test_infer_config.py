"""Configurations are inferred from tensors, whatever the family."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers.checkpoint_files import empty_state_dict
from torch import Tensor

from solo_infer.config import COCO, PRESETS, Categories, ModelConfig, categories
from solo_infer.errors import CheckpointError, ConfigError
from solo_infer.weights.infer_config import infer_config, with_class_names
from solo_infer.weights.named_tensors import NamedTensors

LIGHT = PRESETS["decoupled_light_r50"].architecture


def inferred(state_dict: Mapping[str, Tensor]) -> ModelConfig:
    return infer_config(NamedTensors(state_dict, "x.pth"))


def inference_error(state_dict: Mapping[str, Tensor]) -> str:
    """Return why no configuration can be inferred."""
    with pytest.raises(CheckpointError) as error:
        inferred(state_dict)
    assert "x.pth" in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_recognized_from_its_tensors(name: str) -> None:
    config = PRESETS[name]
    expected = replace(config, categories=categories.unnamed(80))
    if name == "yolact_original_r101_700":  # no tensor shows the size of the network input
        expected = replace(PRESETS["yolact_original_r101"], categories=categories.unnamed(80))
    state_dict = empty_state_dict(config.architecture)
    assert inferred(state_dict) == expected
    assert inferred(dict(reversed(state_dict.items()))) == expected


# --- Class names


def config_of(count: int, categories: Categories) -> ModelConfig:
    return ModelConfig(replace(LIGHT, num_classes=count), categories=categories)


def test_class_names_of_the_file_replace_numbered_ones() -> None:
    config = inferred(empty_state_dict(replace(LIGHT, num_classes=2)))
    assert with_class_names(config, ("cat", "dog")).categories == Categories(("cat", "dog"), (1, 2))
    for names in (("cat",), ("cat", "dog", "bird"), ()):
        assert with_class_names(config, names).categories.names == ("class 0", "class 1")


def test_known_class_names_keep_their_ids() -> None:
    other = Categories(tuple(f"thing {label}" for label in range(80)))
    underscored = tuple(name.replace(" ", "_") for name in COCO.names)
    assert "traffic_light" in underscored
    for names in (COCO.names, underscored):
        assert with_class_names(config_of(80, other), names).categories == COCO
    assert with_class_names(config_of(80, COCO), other.names).categories == other
    own = Categories(("cat", "big dog"), (17, 18))
    for names in (("cat", "big dog"), ("cat", "big_dog")):
        assert with_class_names(config_of(2, own), names).categories == own
    assert with_class_names(config_of(2, own), ("big dog", "cat")).categories.ids == (1, 2)
    assert with_class_names(config_of(2, own), None).categories == own


# --- Unknown models

RETINANET = {
    "neck.fpn_convs.3.conv.weight": (256, 2048, 3, 3),
    "bbox_head.cls_convs.0.conv.weight": (256, 256, 3, 3),
    "bbox_head.retina_cls.weight": (720, 256, 3, 3),
}


def zeros(shapes: Mapping[str, Any]) -> dict[str, Tensor]:
    return {name: torch.zeros(()).expand(shape) for name, shape in shapes.items()}


def test_other_networks_fit_no_known_model() -> None:
    backbone = {
        name: tensor for name, tensor in empty_state_dict(LIGHT).items() if name.startswith("backbone.")
    }
    resnet = {name.removeprefix("backbone."): tensor for name, tensor in backbone.items()}
    unknown = {
        "conv1.weight (64, 3, 7, 7) is unknown": resnet | zeros({"fc.weight": (1000, 2048)}),
        "bbox_head.retina_cls.weight (720, 256, 3, 3) is unknown": backbone | zeros(RETINANET),
        "backbone.conv1.weight (64, 3, 7, 7) is missing": {},
        "weight (5,) is unknown": zeros({"weight": (5,)}),
    }
    for problem, state_dict in unknown.items():
        message = inference_error(state_dict)
        assert message.startswith("x.pth fits no known model: expected the tensors of SOLO, ")
        assert problem in message


def test_message_names_every_family() -> None:
    message = inference_error({"weight": torch.zeros(5)})
    assert "the tensors of SOLO, Decoupled SOLO, Decoupled Light SO" in message
    assert "or of YOLACT on resnet50, resnet101, or of Tiny on shufflenet_1x, shufflenet_1.5x. " in message
    assert "Compared with " in message


def test_excessive_sizes_of_yolact_are_refused_quickly() -> None:
    state_dict = empty_state_dict(PRESETS["yolact_r50"].architecture)
    for part in ("weight", "bias"):
        tensor = state_dict[f"bbox_head.conv_cls.{part}"]
        state_dict[f"bbox_head.conv_cls.{part}"] = torch.zeros(()).expand(2**40, *tensor.shape[1:])
    assert re.search(r"num_classes=\d+: expected an integer in 1\.\.", inference_error(state_dict))


@pytest.mark.parametrize(
    "changes",
    [
        {"num_classes": 2**40},
        {"num_grids": (40, 36, 24, 16, 2**40)},
        {"stacked_convs": 10**9},
        {"pyramid_channels": 2**62},
        {"head_channels": 2**62},
    ],
)
def test_excessive_sizes_are_refused_quickly(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(changes))}.*expected an integer in 1.."):
        replace(LIGHT, **changes)


@pytest.mark.parametrize("name", ["mask_head.conv_cls.weight", "mask_head.conv_mask_list_x.0.weight"])
def test_excessive_sizes_in_a_file_are_refused_quickly(name: str) -> None:
    state_dict = empty_state_dict(LIGHT)
    for part in ("weight", "bias"):
        tensor = state_dict[name.replace("weight", part)]
        state_dict[name.replace("weight", part)] = torch.zeros(()).expand(2**40, *tensor.shape[1:])
    if "_x" in name:
        for key in [key for key in state_dict if key.startswith("mask_head.conv_mask_list_y.0.")]:
            del state_dict[key]
    assert "expected an integer in 1.." in inference_error(state_dict)
