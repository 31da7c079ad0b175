"""Head, depth and sizes told from tensors; what does not fit is named."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from helpers.checkpoint_files import in_authors_names, in_mmdet_names
from torch import Tensor

from solo_infer.config import PRESETS, ModelConfig, SOLOConfig, categories
from solo_infer.config.categories import COCO, Categories
from solo_infer.config.presets import config_from_preset
from solo_infer.config.solo import BACKBONES, HEADS, solo_preset
from solo_infer.errors import CheckpointError
from solo_infer.models import build_network
from solo_infer.weights.key_mapping import map_keys, mmdet_name
from solo_infer.weights.match_state_dict import fit, infer_config, unshare_storage, with_names


@cache
def slots_of(architecture: SOLOConfig) -> dict[str, Tensor]:
    return build_network(architecture, device="meta").state_dict()


def weightless(architecture: SOLOConfig) -> dict[str, Tensor]:
    """Return the state dict of a network, all zeros that take no memory."""
    slots = slots_of(architecture)
    return {name: torch.zeros((), dtype=slot.dtype).expand(slot.shape) for name, slot in slots.items()}


def refusal(state_dict: Mapping[str, Tensor], architecture: SOLOConfig | None = None) -> str:
    """Return why tensors are refused, with an inferred configuration if none is given."""
    with pytest.raises(CheckpointError) as error:
        fit(state_dict, architecture or infer_config(state_dict, path="x.pth").architecture, "x.pth")
    assert "x.pth" in str(error.value) or "network" in str(error.value)
    return str(error.value)


LIGHT = PRESETS["decoupled_light_r50"].architecture


# --- Inference


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("backbone", BACKBONES)
def test_known_models_are_recognized(head: str, backbone: str) -> None:
    expected = config_from_preset(solo_preset(head, backbone))
    state_dict = weightless(expected.architecture)
    assert infer_config(state_dict) == expected
    reversed_order = dict(reversed(state_dict.items()))
    assert infer_config(reversed_order) == expected


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("count", [1, 2, 79, 81, 1203])
def test_any_number_of_classes_is_recognized(head: str, count: int) -> None:
    architecture = replace(PRESETS[f"{head}_r50"].architecture, num_classes=count)
    found = infer_config(weightless(architecture))
    assert found.architecture == architecture
    assert found.categories.names[0] == "class 0" and len(found.categories) == count
    assert found.preprocessing == PRESETS[f"{head}_r50"].preprocessing


@pytest.mark.parametrize("head", HEADS)
def test_other_sizes_are_recognized(head: str) -> None:
    architecture = replace(
        PRESETS[f"{head}_r101"].architecture,
        num_classes=3,
        num_grids=(10, 8, 6, 4, 3),
        stacked_convs=2,
        pyramid_channels=48,
        head_channels=64,
    )
    assert infer_config(weightless(architecture)).architecture == architecture
    assert list(fit(weightless(architecture), architecture, "x")) == list(weightless(architecture))


# --- Class names


def config_of(count: int, categories: Categories) -> ModelConfig:
    return ModelConfig(replace(LIGHT, num_classes=count), categories=categories)


def test_class_names_of_the_file_are_taken() -> None:
    state_dict = weightless(replace(LIGHT, num_classes=2))
    assert infer_config(state_dict, ("cat", "dog")).categories == Categories(("cat", "dog"), (1, 2))
    for wrong in (("cat",), ("cat", "dog", "bird"), ()):
        assert infer_config(state_dict, wrong).categories.names == ("class 0", "class 1")


def test_class_names_bring_known_ids_with_them() -> None:
    other = Categories(tuple(f"thing {label}" for label in range(80)))
    underscored = tuple(name.replace(" ", "_") for name in COCO.names)
    assert "traffic_light" in underscored
    for names in (COCO.names, underscored):
        assert with_names(config_of(80, other), names).categories == COCO
    assert with_names(config_of(80, COCO), other.names).categories == other
    own = Categories(("cat", "big dog"), (17, 18))
    for names in (("cat", "big dog"), ("cat", "big_dog")):
        assert with_names(config_of(2, own), names).categories == own
    assert with_names(config_of(2, own), ("big dog", "cat")).categories.ids == (1, 2)
    assert with_names(config_of(2, own), None).categories == own


# --- Refusals

SOLO_KEYS = [
    "backbone.conv1.weight",
    "backbone.layer1.0.conv1.weight",
    "backbone.layer3.5.conv1.weight",
    "backbone.layer4.2.bn3.running_var",
    "neck.inner_blocks.0.0.weight",
    "neck.layer_blocks.3.0.bias",
    "mask_head.cls_convs.0.conv.weight",
    "mask_head.cls_convs.0.gn.weight",
    "mask_head.mask_convs.6.conv.weight",
    "mask_head.conv_mask_list.0.weight",
    "mask_head.conv_mask_list.4.bias",
    "mask_head.conv_cls.weight",
    "mask_head.conv_cls.bias",
]
DECOUPLED_KEYS = [
    "mask_head.mask_convs_x.0.conv.weight",
    "mask_head.mask_convs_y.6.gn.bias",
    "mask_head.conv_mask_list_x.0.weight",
    "mask_head.conv_mask_list_y.4.bias",
]
CASES = [("solo", key) for key in SOLO_KEYS] + [("decoupled", key) for key in DECOUPLED_KEYS]
CASES += [("decoupled_light", "mask_head.mask_convs.0.conv.weight")]


@pytest.mark.parametrize(("head", "key"), CASES)
def test_one_missing_key_is_named(head: str, key: str) -> None:
    state_dict = weightless(PRESETS[f"{head}_r50"].architecture)
    shape = tuple(state_dict.pop(key).shape)
    message = refusal(state_dict)
    assert message == (f"x.pth does not fit {head} on resnet50 with 80 classes: {key} {shape} is missing.")


@pytest.mark.parametrize(("head", "key"), [case for case in CASES if "conv_cls" not in case[1]])
def test_one_wrong_shape_is_named(head: str, key: str) -> None:
    state_dict = weightless(PRESETS[f"{head}_r50"].architecture)
    shape = tuple(state_dict[key].shape)
    wrong = (shape[0] + 1, *shape[1:])
    state_dict[key] = torch.zeros(()).expand(wrong)
    problem = f"{key} is {wrong} instead of {shape}"
    assert refusal(state_dict) == f"x.pth does not fit {head} on resnet50 with 80 classes: {problem}."


def test_classifier_whose_parts_differ_is_named() -> None:
    state_dict = weightless(LIGHT)
    state_dict["mask_head.conv_cls.bias"] = torch.zeros(81)
    assert "mask_head.conv_cls.bias is (81,) instead of (80,)" in refusal(state_dict)
    state_dict = weightless(LIGHT)
    state_dict["mask_head.conv_cls.weight"] = torch.zeros(80, 256, 1, 1)
    assert "mask_head.conv_cls.weight is (80, 256, 1, 1) instead of (80, 256, 3, 3)" in refusal(state_dict)


@pytest.mark.parametrize(
    "key",
    [
        "backbone.fc.weight",
        "backbone.layer1.3.conv1.weight",
        "backbone.layer3.6.conv1.weight",
        "mask_head.cls_convs.7.conv.weight",
        "mask_head.conv_mask_list.5.weight",
        "mask_head.conv_mask_list_x.0.weight",
        "mask_head.mask_convs_x.0.conv.weight",
        "neck.extra_blocks.0.weight",
        "unheard.of",
    ],
)
def test_one_extra_key_is_named(key: str) -> None:
    state_dict = weightless(PRESETS["solo_r50"].architecture)
    state_dict[key] = torch.zeros(7, 5)
    expected = f"x.pth does not fit solo on resnet50 with 80 classes: {key} (7, 5) is unknown."
    assert refusal(state_dict) == expected


def test_only_the_first_problems_are_named() -> None:
    state_dict = weightless(LIGHT)
    for name in list(state_dict)[:9]:
        del state_dict[name]
    state_dict.update({f"more.{index}": torch.zeros(1) for index in range(8)})
    message = refusal(state_dict)
    assert message.count(" is unknown") == message.count(" is missing") == 5
    # num_batches_tracked is not missed.
    assert "more.4 (1,) is unknown; and 3 more; backbone.conv1.weight" in message
    assert message.endswith("; and 3 more.")


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.uint8, torch.complex64])
def test_weights_of_another_kind_are_named(dtype: torch.dtype) -> None:
    state_dict = weightless(LIGHT)
    state_dict["neck.inner_blocks.0.0.bias"] = torch.zeros(256, dtype=dtype)
    assert f"neck.inner_blocks.0.0.bias is {dtype} instead of torch.float32" in refusal(state_dict)


def test_names_in_messages_are_those_of_the_file() -> None:
    ours = weightless(LIGHT)
    for renamed in (in_mmdet_names(ours), in_authors_names(ours)):
        del renamed["neck.lateral_convs.1.conv.weight"]
        renamed["neck.fpn_convs.0.conv.bias"] = torch.zeros(7)
        state_dict = {to: renamed[name] for name, to in map_keys(renamed).items()}
        file_names = {to: name for name, to in map_keys(renamed).items()}
        with pytest.raises(CheckpointError) as error:
            fit(state_dict, LIGHT, "x.pth", file_names)
        assert "neck.fpn_convs.0.conv.bias is (7,) instead of (256,)" in str(error.value)
        assert "neck.lateral_convs.1.conv.weight (256, 512, 1, 1) is missing" in str(error.value)
    del state_dict["mask_head.cls_convs.0.gn.weight"]
    state_dict["mask_head.conv_cls.bias"] = torch.zeros(7)
    with pytest.raises(CheckpointError, match=r"bbox_head\.dsolo_cate\.bias is \(7,\)"):
        fit(state_dict, LIGHT, "x.pth", file_names)


def test_names_in_messages_are_harmless() -> None:
    state_dict = weightless(LIGHT)
    for name in ("\x1b[2J\nevil", "x" * 100_000, "\ud800", "a key"):
        state_dict[name] = torch.zeros(1)
    message = refusal(state_dict)
    assert "\x1b" not in message and "\n" not in message and len(message) < 1000
    assert "'a key' (1,) is unknown" in message
    message.encode()


RETINANET = {
    "neck.fpn_convs.3.conv.weight": (256, 2048, 3, 3),
    "bbox_head.cls_convs.0.conv.weight": (256, 256, 3, 3),
    "bbox_head.retina_cls.weight": (720, 256, 3, 3),
}


def zeros(shapes: Mapping[str, Any]) -> dict[str, Tensor]:
    return {name: torch.zeros(()).expand(shape) for name, shape in shapes.items()}


def test_other_networks_fit_no_known_model() -> None:
    backbone = {name: tensor for name, tensor in weightless(LIGHT).items() if name.startswith("backbone.")}
    resnet = {name.removeprefix("backbone."): tensor for name, tensor in backbone.items()}
    others = {
        "conv1.weight (64, 3, 7, 7) is unknown": resnet | zeros({"fc.weight": (1000, 2048)}),
        "bbox_head.retina_cls.weight (720, 256, 3, 3) is unknown": backbone | zeros(RETINANET),
        "backbone.conv1.weight (64, 3, 7, 7) is missing": {},
        "weight (5,) is unknown": zeros({"weight": (5,)}),
    }
    for problem, state_dict in others.items():
        message = refusal(state_dict)
        assert message.startswith("x.pth fits no known model: expected the tensors of SOLO, ")
        assert problem in message


@pytest.mark.parametrize("name", ["yolact_r50", "yolact_r101", "yolact_original_r50", "yolact_original_r101"])
def test_yolact_is_told_from_its_tensors(name: str) -> None:
    config = PRESETS[name]
    assert infer_config(weightless(config.architecture)) == replace(config, categories=categories.unnamed(80))


@pytest.mark.parametrize("model", ["yolact_r50", "yolact_r101"])
def test_mmdets_names_and_shapes_of_yolact(model: str, kit: Any) -> None:
    tensors = zeros(json.loads((kit / "state_dicts" / f"{model}.json").read_text()))
    state_dict = {ours: tensors[name] for name, ours in map_keys(tensors).items()}
    expected = build_network(PRESETS[model].architecture, device="meta").state_dict()
    assert {name: tensor.shape for name, tensor in state_dict.items()} == {
        name: tensor.shape for name, tensor in expected.items()
    }
    assert infer_config(state_dict).architecture == PRESETS[model].architecture


def test_absurd_sizes_of_yolact_are_refused_at_once() -> None:
    state_dict = weightless(PRESETS["yolact_r50"].architecture)
    for part in ("weight", "bias"):
        tensor = state_dict[f"bbox_head.conv_cls.{part}"]
        state_dict[f"bbox_head.conv_cls.{part}"] = torch.zeros(()).expand(2**40, *tensor.shape[1:])
    assert "is of a model with num_classes=" in refusal(state_dict)


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
def test_absurd_sizes_are_refused_at_once(changes: dict[str, Any]) -> None:
    refusal(weightless(LIGHT), replace(LIGHT, **changes))


@pytest.mark.parametrize("name", ["mask_head.conv_cls.weight", "mask_head.conv_mask_list_x.0.weight"])
def test_absurd_sizes_in_a_file_are_refused_at_once(name: str) -> None:
    state_dict = weightless(LIGHT)
    for part in ("weight", "bias"):
        tensor = state_dict[name.replace("weight", part)]
        state_dict[name.replace("weight", part)] = torch.zeros(()).expand(2**40, *tensor.shape[1:])
    if "_x" in name:
        for key in [key for key in state_dict if key.startswith("mask_head.conv_mask_list_y.0.")]:
            del state_dict[key]
    assert "is supported" in refusal(state_dict)


def test_names_with_absurd_numbers_are_refused() -> None:
    state_dict = weightless(LIGHT)
    state_dict[f"backbone.layer3.{'9' * 10_000}.conv1.weight"] = torch.zeros(1)
    state_dict[f"mask_head.conv_mask_list_x.{'9' * 10_000}.weight"] = torch.zeros(1)
    assert "is unknown" in refusal(state_dict)


# --- What comes out


def test_fitted_tensors_are_the_network_s() -> None:
    slots = build_network(LIGHT, device="meta").state_dict()
    given = {name: tensor for name, tensor in weightless(LIGHT).items() if "num_batches" not in name}
    given["neck.inner_blocks.0.0.bias"] = torch.arange(256).half()
    given["neck.inner_blocks.1.0.bias"] = torch.arange(256).bfloat16()
    given["neck.inner_blocks.2.0.bias"] = torch.nn.Parameter(torch.arange(256.0).double())
    given["backbone.bn1.num_batches_tracked"] = torch.tensor(7, dtype=torch.int32)
    found = fit(dict(reversed(given.items())), LIGHT, "x")
    assert list(found) == list(slots)
    assert all(found[name].dtype == slot.dtype for name, slot in slots.items())
    assert all(tensor.is_contiguous() and not tensor.requires_grad for tensor in found.values())
    for level in range(3):
        expected = given[f"neck.inner_blocks.{level}.0.bias"].float()
        assert torch.equal(found[f"neck.inner_blocks.{level}.0.bias"], expected)
    assert found["backbone.bn1.num_batches_tracked"] == 7
    assert found["backbone.layer1.0.bn1.num_batches_tracked"] == 0


def test_independent_tensors_share_no_memory() -> None:
    flat = torch.arange(24.0)
    alone = torch.arange(3.0)
    given = {
        "first": flat[:12],
        "second": flat[12:],
        "again": flat[:12],
        "overlapping": flat[6:18],
        "transposed": flat.reshape(4, 6).T,
        "expanded": torch.ones(1).expand(5),
        "channels_last": torch.rand(1, 2, 3, 4).to(memory_format=torch.channels_last),
        "empty": torch.zeros(0),
        "alone": alone,
    }
    found = unshare_storage(given)
    assert all(torch.equal(found[name], tensor) for name, tensor in given.items())
    assert all(tensor.is_contiguous() for tensor in found.values())
    assert found["alone"].data_ptr() == alone.data_ptr()
    for name, tensor in found.items():
        before = {other: value.clone() for other, value in found.items()}
        tensor.add_(1)
        assert all(torch.equal(found[other], before[other]) for other in found if other != name)


# --- Names


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
def test_names_of_all_writers_become_ours(head: str, prefix: str) -> None:
    ours = weightless(PRESETS[f"{head}_r50"].architecture)
    for renamed in (ours, in_mmdet_names(ours), in_authors_names(ours)):
        found = map_keys([prefix + name for name in renamed])
        assert list(found) == [prefix + name for name in renamed]
        assert list(found.values()) == list(ours)
    assert [mmdet_name(name) for name in ours] == list(in_mmdet_names(ours))


def test_names_of_the_authors() -> None:
    names = {
        "bbox_head.ins_convs.0.conv.weight": "mask_head.mask_convs.0.conv.weight",
        "bbox_head.ins_convs_x.6.gn.bias": "mask_head.mask_convs_x.6.gn.bias",
        "bbox_head.ins_convs_y.6.gn.bias": "mask_head.mask_convs_y.6.gn.bias",
        "bbox_head.cate_convs.1.gn.weight": "mask_head.cls_convs.1.gn.weight",
        "bbox_head.solo_ins_list.0.weight": "mask_head.conv_mask_list.0.weight",
        "bbox_head.dsolo_ins_list_x.4.bias": "mask_head.conv_mask_list_x.4.bias",
        "bbox_head.dsolo_ins_list_y.4.bias": "mask_head.conv_mask_list_y.4.bias",
        "bbox_head.solo_cate.bias": "mask_head.conv_cls.bias",
        "bbox_head.dsolo_cate.weight": "mask_head.conv_cls.weight",
        "neck.fpn_convs.3.conv.bias": "neck.layer_blocks.3.0.bias",
        "neck.lateral_convs.0.conv.weight": "neck.inner_blocks.0.0.weight",
        "backbone.layer1.0.downsample.0.weight": "backbone.layer1.0.downsample.0.weight",
    }
    assert map_keys(names) == names
    yolact = ["bbox_head.conv_cls.weight", "bbox_head.head_convs.0.conv.weight"]
    assert map_keys(yolact) == {name: name for name in yolact}
