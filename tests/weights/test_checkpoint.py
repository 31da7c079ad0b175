"""Checkpoint files of every layout give the same configuration and weights."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.checkpoint_files import (
    LAYOUTS,
    contents_of,
    in_authors_names,
    in_mmdet_names,
    write_layout,
)
from helpers.models import small_config
from safetensors.torch import save_file
from torch import Tensor

from solo_infer.config import PRESETS, SOLOConfig
from solo_infer.config.categories import COCO, Categories
from solo_infer.config.solo import HEADS
from solo_infer.errors import CheckpointError
from solo_infer.models import build_network
from solo_infer.weights import checkpoint
from solo_infer.weights.checkpoint import Checkpoint, read_checkpoint

NAMES = ("cat", "dog", "bird")
State = Mapping[str, Tensor]


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    """Path of a large checkpoint, which is removed after the test."""
    path = tmp_path / "model.pth"
    yield path
    path.unlink(missing_ok=True)


@cache
def small_state(head: str) -> State:
    """Return random weights for ``small_config(head)``."""
    torch.manual_seed(7)
    return build_network(small_config(head).architecture).state_dict()


@pytest.fixture
def state(narrow: None) -> State:
    return small_state("decoupled_light")


LIGHT = small_config("decoupled_light")
INFERRED_FIELDS = (
    "head",
    "backbone",
    "num_classes",
    "num_grids",
    "stacked_convs",
    "pyramid_channels",
    "head_channels",
)


def check_equal(loaded: Checkpoint, expected: State, architecture: SOLOConfig) -> None:
    for field in INFERRED_FIELDS:
        if field == "num_grids" and architecture.head == "solov2":
            continue  # in no tensor
        assert getattr(loaded.config.architecture, field) == getattr(architecture, field)
    weights = loaded.state_dict
    assert list(weights) == list(expected)
    different = [name for name, tensor in expected.items() if not torch.equal(weights[name], tensor)]
    assert not different
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32, torch.int64}


# --- Layouts


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_of_every_head(
    path: Path, head: str, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = small_state(head)
    write_layout(path, layout, state, NAMES, monkeypatch)
    loaded = read_checkpoint(path)
    check_equal(loaded, state, small_config(head).architecture)
    expected = ("class 0", "class 1", "class 2") if layout == "bare" else NAMES
    assert loaded.config.categories.names == expected
    preset = PRESETS["solov2_light_r50" if head == "solov2" else f"{head}_r50"]
    assert (loaded.config.preprocessing, loaded.config.thresholds) == (
        preset.preprocessing,
        preset.thresholds,
    )


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("head", HEADS)
def test_authors_names_of_every_head(path: Path, head: str) -> None:
    renamed = in_authors_names(small_state(head))
    assert not any(name.startswith("mask_head.") for name in renamed)
    meta = {"mmdet_version": "1.0.0+unknown", "config": "model = dict()", "CLASSES": NAMES}
    torch.save({"meta": meta, "state_dict": renamed}, path, _use_new_zipfile_serialization=False)
    loaded = read_checkpoint(path)
    check_equal(loaded, small_state(head), small_config(head).architecture)
    assert loaded.config.categories.names == NAMES


def as_halves(state: State) -> dict[str, Tensor]:
    return {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in state.items()}


def as_one_buffer(state: State) -> dict[str, Tensor]:
    floats = {name: tensor for name, tensor in state.items() if tensor.is_floating_point()}
    flat = torch.cat([tensor.flatten() for tensor in floats.values()])
    views = flat.split([tensor.numel() for tensor in floats.values()])
    shaped = {name: view.view_as(state[name]) for name, view in zip(floats, views, strict=True)}
    return {name: shaped.get(name, tensor) for name, tensor in state.items()}


VARIANTS: dict[str, Callable[[State], Any]] = {
    "module": lambda state: {f"module.{name}": tensor for name, tensor in state.items()},
    "compiled": lambda state: {f"_orig_mod.{name}": tensor for name, tensor in state.items()},
    "model": lambda state: {"model": dict(state), "epoch": 3},
    "parameters": lambda state: {
        name: torch.nn.Parameter(tensor) if tensor.is_floating_point() else tensor
        for name, tensor in state.items()
    },
    "doubles": lambda state: {
        name: tensor.double() if "mask_head" in name else tensor for name, tensor in state.items()
    },
    "uncounted": lambda state: {
        name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")
    },
    "transposed": lambda state: {
        name: tensor.transpose(0, -1).contiguous().transpose(0, -1) if tensor.ndim > 1 else tensor
        for name, tensor in state.items()
    },
    "one buffer": as_one_buffer,
    "optimizer": lambda state: {
        "optimizer": {"state": {0: {"exp_avg": torch.ones(7)}}, "param_groups": [{"lr": 1e-3}]},
        "state_dict": OrderedDict(state),
        "ema_state_dict": {"module.w": torch.ones(3)},
    },
    "other entries": lambda state: {**state, "epoch": 3, "note": "text", "nothing": None},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_of_a_state_dict(path: Path, state: State, variant: str) -> None:
    contents = VARIANTS[variant](in_mmdet_names(state))
    torch.save(
        contents, path, _use_new_zipfile_serialization=variant in ("module", "transposed", "optimizer")
    )
    loaded = read_checkpoint(path)
    check_equal(loaded, state, LIGHT.architecture)
    starts = [tensor.untyped_storage().data_ptr() for tensor in loaded.state_dict.values()]
    assert len(set(starts)) == len(starts)
    assert all(tensor.is_contiguous() for tensor in loaded.state_dict.values())


def test_half_precision_file(path: Path, state: State) -> None:
    halves = as_halves(state)
    torch.save(halves, path)
    expected = {name: halves[name].to(tensor.dtype) for name, tensor in state.items()}
    check_equal(read_checkpoint(path), expected, LIGHT.architecture)


@pytest.mark.parametrize("filename", ["model.safetensors", "model.pth"])
@pytest.mark.parametrize("naming", [dict, in_mmdet_names, in_authors_names])
def test_safetensors_files(
    tmp_path: Path, state: State, naming: Callable[[State], State], filename: str
) -> None:
    path = tmp_path / filename
    save_file(dict(naming(as_halves(state))), path)
    loaded = read_checkpoint(path)
    path.unlink()
    expected = {name: tensor.half().to(tensor.dtype) for name, tensor in state.items()}
    check_equal(loaded, expected, LIGHT.architecture)


def test_published_checkpoint(path: Path, procedural: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = procedural("decoupled_light_r50")
    state = model.network.state_dict()
    write_layout(path, "mmdet2_legacy", state, COCO.names, monkeypatch)
    for config in (None, PRESETS["decoupled_light_r50"]):
        loaded = read_checkpoint(path, config)
        check_equal(loaded, state, model.config.architecture)
        assert loaded.config == PRESETS["decoupled_light_r50"]


# --- Class names


def tiny_contents(layout: str, names: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    return contents_of(layout, {"mask_head.conv_cls.bias": torch.zeros(3)}, names, monkeypatch)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (NAMES, NAMES),
        (list(NAMES), NAMES),
        ("cat", ("cat",)),
        (("cat",), ("cat",)),
        ((), None),
        (None, None),
        (3, None),
        (("cat", 3), None),
        ({"cat": 1}, None),
    ],
)
@pytest.mark.parametrize("layout", ["mmdet2_legacy", "mmdet3"])
def test_class_names_in_meta(
    path: Path, names: Any, expected: Any, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(tiny_contents(layout, names, monkeypatch), path)
    assert checkpoint._read_file(path)[1] == expected


def test_class_names_in_older_3x_files(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = tiny_contents("mmdet3", NAMES, monkeypatch)
    content["meta"]["dataset_meta"] = {"CLASSES": NAMES, "PALETTE": None}
    torch.save(content, path)
    assert checkpoint._read_file(path)[1] == NAMES
    for meta in (None, "text", {"dataset_meta": None}, {"dataset_meta": "text"}, torch.ones(3)):
        torch.save({**content, "meta": meta}, path)
        assert checkpoint._read_file(path)[1] is None


@pytest.mark.parametrize("names", ["cat", ("cat", "dog"), (*NAMES, "fish")])
def test_wrong_number_of_class_names_is_ignored(
    path: Path, state: State, names: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_layout(path, "mmdet2_legacy", as_halves(state), names, monkeypatch)
    assert read_checkpoint(path).config.categories.names == ("class 0", "class 1", "class 2")
    assert read_checkpoint(path, LIGHT).config == LIGHT


def test_explicit_config_takes_the_class_names_of_the_file(
    path: Path, state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    own_ids = Categories(NAMES, (17, 18, 16))
    config = replace(LIGHT, categories=own_ids)
    write_layout(path, "mmdet3_published", as_halves(state), NAMES, monkeypatch)
    assert read_checkpoint(path, config).config == config
    config = replace(LIGHT, categories=Categories(("a", "b", "c")))
    assert read_checkpoint(path, config).config == LIGHT
    with pytest.raises(CheckpointError, match="does not fit decoupled_light on resnet50 with 80 classes"):
        read_checkpoint(path, PRESETS["decoupled_light_r50"])


def test_network_of_a_checkpoint_is_complete(path: Path, state: State) -> None:
    torch.save(dict(state), path)
    loaded = read_checkpoint(path)
    assert not loaded.network.training
    assert {tensor.device.type for tensor in loaded.state_dict.values()} == {"cpu"}
    assert loaded.network.config == loaded.config.architecture
    loaded.network(torch.zeros(1, 3, 64, 96))


@pytest.mark.parametrize("config", [None, LIGHT], ids=["inferred", "explicit"])
def test_network_is_built_once(
    path: Path, state: State, config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(dict(state), path)
    built = []

    def build(*args: Any, **options: Any) -> Any:
        built.append(args)
        return build_network(*args, **options)

    monkeypatch.setattr("solo_infer.weights.match_state_dict.build_network", build)
    read_checkpoint(path, config)
    assert len(built) == 1
    torch.save({**state, "unknown": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match="unknown"):
        read_checkpoint(path, config)
    assert len(built) == 2
