"""Checkpoints of YOLACT: names, order of the classes, and configurations inferred from tensors."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers.checkpoint_files import empty_state_dict

from solo_infer.config import PRESETS, categories
from solo_infer.models import build_network
from solo_infer.weights.families.yolact import background_last
from solo_infer.weights.infer_config import infer_config
from solo_infer.weights.named_tensors import NamedTensors, map_keys, translate


@pytest.mark.parametrize("name", ["yolact_r50", "yolact_r101", "yolact_original_r50", "yolact_original_r101"])
def test_yolact_is_recognized(name: str) -> None:
    config = PRESETS[name]
    inferred = infer_config(NamedTensors(empty_state_dict(config.architecture)))
    assert inferred == replace(config, categories=categories.unnamed(80))


def test_other_sizes_of_yolact_are_recognized() -> None:
    for name in ("yolact_r101", "yolact_original_r101"):
        sizes = {"num_classes": 3, "num_protos": 16, "pyramid_channels": 64}
        architecture = replace(PRESETS[name].architecture, **sizes)
        assert infer_config(NamedTensors(empty_state_dict(architecture))).architecture == architecture


@pytest.mark.parametrize("model", ["yolact_r50", "yolact_r101"])
def test_names_and_shapes_of_mmdet(model: str, kit: Any) -> None:
    shapes = json.loads((kit / "state_dicts" / f"{model}.json").read_text())
    tensors = {name: torch.zeros(()).expand(shape) for name, shape in shapes.items()}
    state_dict = {ours: tensors[name] for name, ours in map_keys(tensors).items()}
    expected = build_network(PRESETS[model].architecture, device="meta").state_dict()
    assert {name: tensor.shape for name, tensor in state_dict.items()} == {
        name: tensor.shape for name, tensor in expected.items()
    }
    assert infer_config(NamedTensors(state_dict)).architecture == PRESETS[model].architecture


def test_background_moves_to_the_end_of_each_anchor() -> None:
    scores = torch.tensor([0, 1, 2, 10, 11, 12, 20, 21, 22])
    assert background_last(scores).tolist() == [1, 2, 0, 11, 12, 10, 21, 22, 20]
    weight = scores[:, None].expand(9, 4)
    assert background_last(weight)[:, 0].tolist() == [1, 2, 0, 11, 12, 10, 21, 22, 20]
    for misfit in (torch.tensor(3.0), torch.arange(7)):
        assert background_last(misfit) is misfit


def test_key_map_of_the_original_moves_the_background_of_the_class_layer_only() -> None:
    values = torch.tensor([0, 1, 10, 11, 20, 21])
    tensors = {f"prediction_layers.0.{name}.bias": values for name in ("conf_layer", "bbox_layer")}
    translated = translate(tensors, "x.pth").tensors
    assert translated["bbox_head.conv_cls.bias"].tolist() == [1, 0, 11, 10, 21, 20]
    assert translated["bbox_head.conv_reg.bias"].tolist() == values.tolist()
    ours = translate({"bbox_head.conv_cls.bias": values}, "x.pth").tensors
    assert ours["bbox_head.conv_cls.bias"].tolist() == values.tolist()


def test_efficientnet_is_not_inferred_for_yolact() -> None:
    state_dict = empty_state_dict(PRESETS["yolact_r50"].architecture)
    backbone = {f"backbone.stages.{index}.weight": torch.zeros(1) for index in range(1000)}
    inferred = infer_config(NamedTensors({**state_dict, **backbone}))
    assert inferred.architecture.backbone == "resnet50"
