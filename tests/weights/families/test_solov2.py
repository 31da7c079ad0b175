"""Checkpoints of SOLOv2: names, and configurations inferred from tensors."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.checkpoint_files import empty_state_dict, in_authors_names, in_mmdet_names, narrow_backbones
from torch import Tensor

from solo_infer import SOLO
from solo_infer.config import PRESETS
from solo_infer.config.solo import SOLO_PRESETS
from solo_infer.errors import CheckpointError
from solo_infer.models import build_network
from solo_infer.weights.infer_config import infer_config
from solo_infer.weights.manifest import load_manifest
from solo_infer.weights.match_state_dict import build_empty_network, match_state_dict
from solo_infer.weights.named_tensors import NamedTensors, translate

MODELS = [name for name in SOLO_PRESETS if name.startswith("solov2")]
every_model = pytest.mark.parametrize("model", MODELS)


def state_dict_of(model: str, **changes: Any) -> dict[str, Tensor]:
    return empty_state_dict(replace(PRESETS[model].architecture, **changes))


def with_early_offsets(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors with the names that early mmdet gave to offsets."""
    return {name.replace(".conv_offset.", "_offset."): tensor for name, tensor in tensors.items()}


@every_model
@pytest.mark.parametrize(
    "rename", [dict, in_mmdet_names, in_authors_names], ids=lambda rename: rename.__name__
)
def test_configuration_is_inferred_from_the_tensors_of_every_writer(model: str, rename: Any) -> None:
    ours = state_dict_of(model)
    renamed = rename(ours) if rename is dict else with_early_offsets(rename(ours))
    shuffled = {f"module.{name}": renamed[name] for name in sorted(renamed)}
    tensors = translate(shuffled, Path("x.pth"))
    assert set(tensors.tensors) == set(ours)
    config = infer_config(tensors)
    assert config.architecture == PRESETS[model].architecture
    assert config.preprocessing == PRESETS[model].preprocessing
    assert config.thresholds == PRESETS[model].thresholds
    assert list(match_state_dict(tensors, build_empty_network(config.architecture, "x"))) == list(ours)


def test_names_of_the_authors() -> None:
    names = {
        "bbox_head.cate_convs.0.conv.weight": "mask_head.cls_convs.0.conv.weight",
        "bbox_head.kernel_convs.3.conv.conv_offset.bias": "mask_head.kernel_convs.3.conv.conv_offset.bias",
        "bbox_head.kernel_convs.3.gn.bias": "mask_head.kernel_convs.3.gn.bias",
        "bbox_head.solo_cate.bias": "mask_head.conv_cls.bias",
        "bbox_head.solo_kernel.weight": "mask_head.conv_kernel.weight",
        "mask_feat_head.convs_all_levels.3.conv2.gn.weight": (
            "mask_head.mask_feature_head.convs_all_levels.3.conv2.gn.weight"
        ),
        "mask_feat_head.conv_pred.0.conv.weight": "mask_head.mask_feature_head.conv_pred.conv.weight",
        "neck.fpn_convs.3.conv.bias": "neck.layer_blocks.3.0.bias",
    }
    tensors = translate({name: torch.zeros(1) for name in names}, "x.pth")
    assert tensors.file_names == {ours: theirs for theirs, ours in names.items()}


def test_early_names_of_offsets() -> None:
    names = {
        "backbone.layer2.0.conv2_offset.weight": "backbone.layer2.0.conv2.conv_offset.weight",
        "mask_head.cls_convs.0.conv_offset.weight": "mask_head.cls_convs.0.conv.conv_offset.weight",
        "mask_head.kernel_convs.0.conv.conv_offset.bias": "mask_head.kernel_convs.0.conv.conv_offset.bias",
        "mask_head.mask_feature_head.convs_all_levels.1.conv0.conv_offset.bias": (
            "mask_head.mask_feature_head.convs_all_levels.1.conv0.conv.conv_offset.bias"
        ),
        "mask_head.mask_feature_head.conv_pred.conv_offset.bias": (
            "mask_head.mask_feature_head.conv_pred.conv.conv_offset.bias"
        ),
    }
    tensors = translate({name: torch.zeros(1) for name in names}, "x.pth")
    assert tensors.file_names == {ours: theirs for theirs, ours in names.items()}


@pytest.mark.parametrize(
    "changes",
    [
        {"num_classes": 3, "mask_channels": 64, "pyramid_channels": 96},
        {"deformable_stages": (3,), "modulated": True},
        {"deformable_head": "last", "modulated": True},
        {"deformable_head": "all"},
        {"deformable_mask_features": True, "modulated": True},
        {"backbone": "resnext101_64x4d", "deformable_stages": (2, 3, 4)},
        {"backbone": "resnet34", "deformable_head": "last", "stacked_convs": 1},
        {"backbone": "efficientnet_lite0", "extra_level": "conv", "head_bias": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("model", ["solov2_r50", "solov2_light_r50"])
def test_other_networks_are_recognized(model: str, changes: dict[str, Any]) -> None:
    architecture = replace(PRESETS[model].architecture, **changes)
    inferred = infer_config(NamedTensors(empty_state_dict(architecture))).architecture
    # Instance sizes of training are in no tensor: those of the most similar published model are taken.
    assert replace(inferred, scale_ranges=architecture.scale_ranges) == architecture


@pytest.mark.parametrize("model", ["solo_r50", "decoupled_r50", "decoupled_light_r50"])
def test_modulated_convolutions_of_the_other_heads_are_recognized(model: str) -> None:
    changes = {"deformable_head": "last", "deformable_stages": (2, 3, 4), "modulated": True}
    architecture = replace(PRESETS[model].architecture, **changes)
    assert infer_config(NamedTensors(empty_state_dict(architecture))).architecture == architecture


@every_model
def test_names_and_shapes_of_mmdet(model: str, kit: Any) -> None:
    file = kit / "state_dicts" / f"{model}.json"
    if not file.exists():
        assert model == "solov2_light_512_dcn_r50"  # the authors' only
        return
    shapes = json.loads(file.read_text())
    tensors = translate({name: torch.zeros(()).expand(shape) for name, shape in shapes.items()}, file)
    expected = build_network(PRESETS[model].architecture, device="meta").state_dict()
    assert {name: tensor.shape for name, tensor in tensors.tensors.items()} == {
        name: tensor.shape for name, tensor in expected.items()
    }


@pytest.mark.parametrize(
    "name, shape",
    [
        ("mask_head.kernel_convs.1.conv.weight", (256, 200, 3, 3)),
        ("mask_head.mask_feature_head.convs_all_levels.3.conv0.conv.weight", (128, 256, 3, 3)),
        ("mask_head.conv_kernel.bias", None),
        ("mask_head.mask_feature_head.conv_pred.gn.weight", None),
        ("backbone.layer2.0.conv2.conv_offset.weight", (18, 128, 3, 3)),
        ("mask_head.cls_convs.2.conv.conv_offset.bias", None),
    ],
)
def test_misfits_are_refused_by_name(name: str, shape: tuple[int, ...] | None) -> None:
    tensors = state_dict_of("solov2_light_r50_dcn")
    if shape is None:
        del tensors[name]
    else:
        tensors[name] = torch.zeros(()).expand(shape)
    misfit = NamedTensors(tensors, "file.pth")
    config = infer_config(misfit)
    with pytest.raises(CheckpointError, match=rf"^file.pth does not fit solov2 .*{re.escape(name)}"):
        match_state_dict(misfit, build_empty_network(config.architecture, "file.pth"))


def test_deformable_basic_blocks_are_refused() -> None:
    tensors = state_dict_of("solov2_light_r18")
    offsets = {
        f"backbone.layer3.{block}.conv2.conv_offset.weight": torch.zeros(()).expand(27, 256, 3, 3)
        for block in range(2)
    }
    with pytest.raises(CheckpointError, match="deformable_stages=.*expected none with resnet18"):
        infer_config(NamedTensors({**tensors, **offsets}))


@pytest.mark.parametrize("names", ["mmdet", "authors"])
def test_files_load(names: str, tmp_path: Path) -> None:
    config = PRESETS["solov2_light_r50_dcn"]
    with narrow_backbones():
        torch.manual_seed(1)
        tensors = build_network(config.architecture).state_dict()
        path = tmp_path / "model.pth"
        renamed = in_mmdet_names(tensors) if names == "mmdet" else in_authors_names(tensors)
        torch.save({"meta": {}, "state_dict": with_early_offsets(renamed)}, path)
        loaded = SOLO.from_pretrained(path)
    assert loaded.config == config
    weights = loaded.network.state_dict()
    assert all(torch.equal(weights[name], tensor) for name, tensor in tensors.items())


def test_all_published_models_have_presets() -> None:
    entries = [entry for entry in load_manifest().values() if entry.family == "solov2"]
    assert len(entries) == 8 + 9
    used = {entry.preset for entry in entries}
    assert used == set(MODELS) - {"solov2_light_r50_dcn"}  # mmdet has the settings, but no weights
    assert {entry.preset for entry in entries if not entry.sha256_prefix} == {
        "solov2_light_r50",
        "solov2_light_512_dcn_r50",
    }


def test_preprocessing_of_the_light_models() -> None:
    for model in MODELS:
        settings = PRESETS[model].preprocessing
        sides = (448, 768) if "light" in model else (800, 1333)
        if model == "solov2_light_512_dcn_r50":
            sides = (512, 852)
        assert (settings.short_side, settings.long_side) == sides
    light = PRESETS["solov2_light_r18"].preprocessing
    assert light.resized_shape(427, 640) == (448, 671) and light.padded_shape(448, 671) == (448, 672)
    assert light.resized_shape(600, 512) == (525, 448)
