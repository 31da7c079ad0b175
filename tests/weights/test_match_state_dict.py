"""A state dict is matched with a network, and every tensor that does not fit is named."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from helpers.checkpoint_files import empty_state_dict, in_authors_names, in_mmdet_names
from torch import Tensor

from solo_infer.config import PRESETS, SOLOConfig
from solo_infer.errors import CheckpointError
from solo_infer.models import build_network
from solo_infer.weights.infer_config import infer_config
from solo_infer.weights.match_state_dict import build_empty_network, match_state_dict, unshare_storage
from solo_infer.weights.named_tensors import NamedTensors, translate

LIGHT = PRESETS["decoupled_light_r50"].architecture


def matched(tensors: NamedTensors, architecture: SOLOConfig) -> dict[str, Tensor]:
    return match_state_dict(tensors, build_empty_network(architecture, tensors.path))


def mismatch(state_dict: Mapping[str, Tensor]) -> str:
    """Return why tensors do not match the network that they were inferred to be of."""
    tensors = NamedTensors(state_dict, "x.pth")
    with pytest.raises(CheckpointError) as error:
        matched(tensors, infer_config(tensors).architecture)
    assert "x.pth" in str(error.value)
    return str(error.value)


# --- Mismatches

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
    state_dict = empty_state_dict(PRESETS[f"{head}_r50"].architecture)
    shape = tuple(state_dict.pop(key).shape)
    message = mismatch(state_dict)
    assert message == (f"x.pth does not fit {head} on resnet50 with 80 classes: {key} {shape} is missing.")


@pytest.mark.parametrize(("head", "key"), [case for case in CASES if "conv_cls" not in case[1]])
def test_one_wrong_shape_is_named(head: str, key: str) -> None:
    state_dict = empty_state_dict(PRESETS[f"{head}_r50"].architecture)
    shape = tuple(state_dict[key].shape)
    misfit = (shape[0] + 1, *shape[1:])
    state_dict[key] = torch.zeros(()).expand(misfit)
    problem = f"{key} is {misfit} instead of {shape}"
    assert mismatch(state_dict) == f"x.pth does not fit {head} on resnet50 with 80 classes: {problem}."


def test_inconsistent_classifier_is_named() -> None:
    state_dict = empty_state_dict(LIGHT)
    state_dict["mask_head.conv_cls.bias"] = torch.zeros(81)
    assert "mask_head.conv_cls.bias is (81,) instead of (80,)" in mismatch(state_dict)
    state_dict = empty_state_dict(LIGHT)
    state_dict["mask_head.conv_cls.weight"] = torch.zeros(80, 256, 1, 1)
    assert "mask_head.conv_cls.weight is (80, 256, 1, 1) instead of (80, 256, 3, 3)" in mismatch(state_dict)


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
    state_dict = empty_state_dict(PRESETS["solo_r50"].architecture)
    state_dict[key] = torch.zeros(7, 5)
    expected = f"x.pth does not fit solo on resnet50 with 80 classes: {key} (7, 5) is unknown."
    assert mismatch(state_dict) == expected


def test_only_the_first_problems_are_named() -> None:
    state_dict = empty_state_dict(LIGHT)
    for name in list(state_dict)[:9]:
        del state_dict[name]
    state_dict.update({f"more.{index}": torch.zeros(1) for index in range(8)})
    message = mismatch(state_dict)
    assert message.count(" is unknown") == message.count(" is missing") == 5
    # Counters of batches may be missing.
    assert "more.4 (1,) is unknown; and 3 more; backbone.conv1.weight" in message
    assert message.endswith("; and 3 more.")


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.uint8, torch.complex64])
def test_weights_of_another_dtype_are_named(dtype: torch.dtype) -> None:
    state_dict = empty_state_dict(LIGHT)
    state_dict["neck.inner_blocks.0.0.bias"] = torch.zeros(256, dtype=dtype)
    assert f"neck.inner_blocks.0.0.bias is {dtype} instead of torch.float32" in mismatch(state_dict)


def test_names_in_messages_are_those_of_the_file() -> None:
    state_dict = empty_state_dict(LIGHT)
    for renamed in (in_mmdet_names(state_dict), in_authors_names(state_dict)):
        del renamed["neck.lateral_convs.1.conv.weight"]
        renamed["neck.fpn_convs.0.conv.bias"] = torch.zeros(7)
        with pytest.raises(CheckpointError) as error:
            matched(translate(renamed, "x.pth"), LIGHT)
        assert "neck.fpn_convs.0.conv.bias is (7,) instead of (256,)" in str(error.value)
        assert "neck.lateral_convs.1.conv.weight (256, 512, 1, 1) is missing" in str(error.value)
    del renamed["bbox_head.cate_convs.0.gn.weight"]
    renamed["bbox_head.dsolo_cate.bias"] = torch.zeros(7)
    with pytest.raises(CheckpointError, match=r"bbox_head\.dsolo_cate\.bias is \(7,\)"):
        matched(translate(renamed, "x.pth"), LIGHT)


def test_names_in_messages_are_harmless() -> None:
    state_dict = empty_state_dict(LIGHT)
    for name in ("\x1b[2J\nevil", "x" * 100_000, "\ud800", "a key"):
        state_dict[name] = torch.zeros(1)
    message = mismatch(state_dict)
    assert "\x1b" not in message and "\n" not in message and len(message) < 1000
    assert "'a key' (1,) is unknown" in message
    message.encode()


def test_names_with_huge_numbers_are_refused() -> None:
    state_dict = empty_state_dict(LIGHT)
    state_dict[f"backbone.layer3.{'9' * 10_000}.conv1.weight"] = torch.zeros(1)
    state_dict[f"mask_head.conv_mask_list_x.{'9' * 10_000}.weight"] = torch.zeros(1)
    assert "is unknown" in mismatch(state_dict)


def test_known_head_without_a_backbone_is_refused() -> None:
    head = {name: tensor for name, tensor in empty_state_dict(LIGHT).items() if name.startswith("mask_head.")}
    assert "backbone.conv1.weight (64, 3, 7, 7) is missing" in mismatch(head)


# --- Matched tensors


def test_matched_tensors_are_those_of_the_network() -> None:
    expected = build_network(LIGHT, device="meta").state_dict()
    tensors = {name: tensor for name, tensor in empty_state_dict(LIGHT).items() if "num_batches" not in name}
    tensors["neck.inner_blocks.0.0.bias"] = torch.arange(256).half()
    tensors["neck.inner_blocks.1.0.bias"] = torch.arange(256).bfloat16()
    tensors["neck.inner_blocks.2.0.bias"] = torch.nn.Parameter(torch.arange(256.0).double())
    tensors["backbone.bn1.num_batches_tracked"] = torch.tensor(7, dtype=torch.int32)
    state_dict = matched(NamedTensors(dict(reversed(tensors.items()))), LIGHT)
    assert list(state_dict) == list(expected)
    assert all(state_dict[name].dtype == parameter.dtype for name, parameter in expected.items())
    assert all(tensor.is_contiguous() and not tensor.requires_grad for tensor in state_dict.values())
    for level in range(3):
        bias = tensors[f"neck.inner_blocks.{level}.0.bias"].float()
        assert torch.equal(state_dict[f"neck.inner_blocks.{level}.0.bias"], bias)
    assert state_dict["backbone.bn1.num_batches_tracked"] == 7
    assert state_dict["backbone.layer1.0.bn1.num_batches_tracked"] == 0


def test_matching_does_not_change_the_network() -> None:
    network = build_empty_network(LIGHT, "x")
    match_state_dict(NamedTensors(empty_state_dict(LIGHT)), network)
    assert all(parameter.is_meta for parameter in network.parameters())


def test_network_of_another_size_is_refused() -> None:
    with pytest.raises(
        CheckpointError, match=r"x.pth does not fit decoupled_light .* with 3 classes: .*conv_cls"
    ):
        matched(NamedTensors(empty_state_dict(LIGHT), "x.pth"), replace(LIGHT, num_classes=3))


def test_unshared_tensors_share_no_memory() -> None:
    flat = torch.arange(24.0)
    alone = torch.arange(3.0)
    tensors = {
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
    unshared = unshare_storage(tensors)
    assert all(torch.equal(unshared[name], tensor) for name, tensor in tensors.items())
    assert all(tensor.is_contiguous() for tensor in unshared.values())
    assert unshared["alone"].data_ptr() == alone.data_ptr()
    for name, tensor in unshared.items():
        before = {other: value.clone() for other, value in unshared.items()}
        tensor.add_(1)
        assert all(torch.equal(unshared[other], before[other]) for other in unshared if other != name)
