"""Checkpoints of the SOLO family: names, and configurations inferred from tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
from helpers.checkpoint_files import empty_state_dict, in_authors_names, in_mmdet_names
from torch import Tensor

from solo_infer.config import PRESETS, ModelConfig
from solo_infer.config.presets import config_from_preset
from solo_infer.config.solo import BACKBONES, HEADS, solo_preset
from solo_infer.weights.infer_config import infer_config
from solo_infer.weights.key_mapping import mmdet_name
from solo_infer.weights.match_state_dict import build_empty_network, match_state_dict
from solo_infer.weights.named_tensors import NamedTensors, map_keys


def inferred(state_dict: Mapping[str, Tensor]) -> ModelConfig:
    return infer_config(NamedTensors(state_dict))


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_head_and_backbone_is_recognized(head: str, backbone: str) -> None:
    expected = config_from_preset(solo_preset(head, backbone))
    state_dict = empty_state_dict(expected.architecture)
    assert inferred(state_dict) == expected
    reversed_order = dict(reversed(state_dict.items()))
    assert inferred(reversed_order) == expected


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("count", [1, 2, 79, 81, 1203])
def test_any_number_of_classes_is_recognized(head: str, count: int) -> None:
    architecture = replace(PRESETS[f"{head}_r50"].architecture, num_classes=count)
    config = inferred(empty_state_dict(architecture))
    assert config.architecture == architecture
    assert config.categories.names[0] == "class 0" and len(config.categories) == count
    assert config.preprocessing == PRESETS[f"{head}_r50"].preprocessing


@pytest.mark.parametrize("head", HEADS)
def test_other_sizes_are_recognized(head: str) -> None:
    architecture = replace(
        PRESETS[f"{head}_r101"].architecture,
        num_classes=3,
        # The kernels of SOLOv2 do not depend on the grids, which no tensor shows.
        num_grids=(40, 36, 24, 16, 12) if head == "solov2" else (10, 8, 6, 4, 3),
        stacked_convs=2,
        pyramid_channels=48,
        head_channels=416 if head == "solov2" else 64,
    )
    state_dict = empty_state_dict(architecture)
    assert inferred(state_dict).architecture == architecture
    network = build_empty_network(architecture, "x")
    assert list(match_state_dict(NamedTensors(state_dict), network)) == list(state_dict)


# --- Names


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
def test_names_of_every_writer_are_mapped(head: str, prefix: str) -> None:
    ours = empty_state_dict(PRESETS[f"{head}_r50"].architecture)
    for renamed in (ours, in_mmdet_names(ours), in_authors_names(ours)):
        names = map_keys([prefix + name for name in renamed])
        assert list(names) == [prefix + name for name in renamed]
        assert list(names.values()) == list(ours)
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
    yolact_names = ["bbox_head.conv_cls.weight", "bbox_head.head_convs.0.conv.weight"]
    assert map_keys(yolact_names) == {name: name for name in yolact_names}
