"""Checkpoints of Tiny: configurations inferred from tensors, hostile sizes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.checkpoint_files import empty_state_dict
from helpers.models import small_tiny_config
from safetensors.torch import save_file
from torch import Tensor

from solo_infer import SOLO
from solo_infer.config import PRESETS, TinyPostprocessConfig, categories
from solo_infer.errors import CheckpointError
from solo_infer.weights.infer_config import infer_config
from solo_infer.weights.match_state_dict import build_empty_network, match_state_dict
from solo_infer.weights.named_tensors import NamedTensors

TINY = PRESETS["tiny"].architecture
SMALL = {"num_classes": 3, "pyramid_channels": 16, "mask_channels": 8, "mask_features": 8, "distance_bins": 6}


@pytest.mark.parametrize("backbone", ["shufflenet_1x", "shufflenet_1.5x"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        SMALL,
        {"num_classes": 1},
        {"distance_bins": 2, "mask_features": 1},
        {"mask_context_blocks": 0},
        {"mask_context_blocks": 11},
    ],
)
def test_architecture_is_inferred(backbone: str, changes: dict[str, Any]) -> None:
    architecture = replace(TINY, backbone=backbone, **changes)  # type: ignore[type-var]
    config = infer_config(NamedTensors(empty_state_dict(architecture)))
    assert config.architecture == architecture
    assert config.preprocessing == PRESETS["tiny"].preprocessing
    assert config.thresholds == TinyPostprocessConfig()
    assert config.categories == categories.unnamed(architecture.num_classes)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("backbone", ["shufflenet_1x", "shufflenet_1.5x"])
def test_bare_files_of_weights_load(small_tiny: Any, tmp_path: Path, backbone: str, suffix: str) -> None:
    architecture = small_tiny_config(backbone).architecture
    state_dict = {name: tensor.clone() for name, tensor in empty_state_dict(architecture).items()}
    state_dict["head.class_out.2.bias"] += torch.tensor([1.0, 2.0, 3.0])
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save(state_dict, path)
    else:
        save_file(state_dict, path)
    model = SOLO.from_pretrained(path, device="cpu")
    assert model.config.architecture == architecture
    assert len(model.config.categories) == 3
    assert model.network.state_dict()["head.class_out.2.bias"].tolist() == [1.0, 2.0, 3.0]


def test_missing_tensors_are_named(tmp_path: Path) -> None:
    state_dict = empty_state_dict(small_tiny_config().architecture)
    torch.save(
        {
            name: tensor.clone()
            for name, tensor in state_dict.items()
            if not name.startswith("head.kernel_out")
        },
        tmp_path / "weights.pth",
    )
    with pytest.raises(CheckpointError, match=r"head.kernel_out.0.weight \(38, 16, 1, 1\) is missing"):
        SOLO.from_pretrained(tmp_path / "weights.pth", device="cpu")


@pytest.mark.parametrize(
    "changes",
    [
        {"num_classes": 2**16 + 1},
        {"pyramid_channels": 2**12 + 2},
        {"mask_channels": 2**12 + 1},
        {"mask_features": 2**20},
        {"distance_bins": 2**10 + 1},
    ],
    ids=str,
)
def test_excessive_sizes_are_refused_quickly(changes: dict[str, int]) -> None:
    with pytest.raises(CheckpointError, match=r"x.pth is of a model with \w+=\d+: at most \d+ is supported"):
        build_empty_network(replace(TINY, **changes), "x.pth")  # type: ignore[type-var]


def match(state_dict: dict[str, Tensor]) -> None:
    """Infer a configuration, and match the tensors with its network."""
    tensors = NamedTensors(state_dict, "x.pth")
    network = build_empty_network(infer_config(tensors).architecture, "x.pth")
    match_state_dict(tensors, network)


@pytest.mark.parametrize("size", [0, 1, 7, 2**40])
@pytest.mark.parametrize(
    "layers",
    [
        "backbone.stages.0.0.left_pointwise",
        "neck.lateral.",
        "head.class_out.",
        "head.distance_out.",
        "head.kernel_out.",
        "mask_branch.coarse1",
        "mask_branch.",
    ],
)
def test_hostile_sizes_in_a_file_are_refused_quickly(layers: str, size: int) -> None:
    state_dict = empty_state_dict(TINY)
    for name, tensor in state_dict.items():
        if name.startswith(layers):
            state_dict[name] = torch.zeros(()).expand(size, *tensor.shape[1:])
    if layers == "head.class_out." and size in (1, 7):
        match(state_dict)
        return
    with pytest.raises(CheckpointError, match=r"x\.pth"):
        match(state_dict)


def test_hostile_numbers_of_blocks_are_refused_quickly() -> None:
    state_dict = empty_state_dict(TINY)
    for name in list(state_dict):
        if name.startswith("mask_branch.context.2."):
            state_dict[name.replace("2", "999999999", 1)] = state_dict.pop(name)
    with pytest.raises(CheckpointError, match=r"x\.pth.*mask_branch\.context\.2"):
        match(state_dict)


@pytest.mark.parametrize("shape", [(), (3,), (4,)])
def test_scalars_and_vectors_instead_of_weights_are_refused(shape: tuple[int, ...]) -> None:
    state_dict = empty_state_dict(small_tiny_config().architecture)
    with pytest.raises(CheckpointError, match=r"x\.pth"):
        match({name: torch.zeros(shape) for name in state_dict})
