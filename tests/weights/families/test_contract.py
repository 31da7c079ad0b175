"""Every registered family provides the contract, and a new one needs one module and one row."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from helpers.checkpoint_files import empty_state_dict
from helpers.paths import ROOT

from solo_infer.config import PRESETS
from solo_infer.config.families import FAMILIES
from solo_infer.errors import CheckpointError
from solo_infer.weights.families import (
    CheckpointFamily,
    checkpoint_families,
    checkpoint_family_of,
    find_checkpoint_family,
)
from solo_infer.weights.families import solo as solo_family
from solo_infer.weights.infer_config import infer_config
from solo_infer.weights.key_mapping import KeyMap
from solo_infer.weights.named_tensors import NamedTensors, map_keys, translate


@pytest.mark.parametrize("name", FAMILIES)
def test_module_of_a_family_provides_the_contract(name: str) -> None:
    module = FAMILIES[name].load("checkpoints")
    assert isinstance(module, CheckpointFamily)
    assert module.MODELS
    preset = next(iter(FAMILIES[name].presets.values()))
    fields = {field.name for field in dataclasses.fields(preset.architecture)}  # type: ignore[arg-type]
    assert set(module.LIMITS) <= fields


@pytest.mark.parametrize("name", PRESETS)
def test_exactly_one_family_recognizes_a_model(name: str) -> None:
    architecture = PRESETS[name].architecture
    names = list(empty_state_dict(architecture))
    recognizing = [family for family in checkpoint_families() if family.recognizes(names)]
    assert recognizing == [checkpoint_family_of(architecture)] == [find_checkpoint_family(names)]
    assert map_keys(names) == {name: name for name in names}


def test_unknown_names_belong_to_no_family() -> None:
    assert find_checkpoint_family(["conv1.weight", "fc.bias"]) is None
    assert find_checkpoint_family([]) is None


def test_families_do_not_import_each_other() -> None:
    folder = ROOT / "solo_infer" / "weights" / "families"
    modules = {family.checkpoints.rpartition(".")[2] for family in FAMILIES.values()}
    for name in modules:
        text = (folder / f"{name}.py").read_text(encoding="utf-8")
        assert not [other for other in modules - {name} if f".{other} import" in text or f".{other}." in text]


@pytest.fixture
def third_family(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Register a family whose tensors are those of SOLO under other names."""

    class Third(ModuleType):
        MODELS = "Third on resnet50"
        LIMITS = {"num_classes": 100}

        def recognizes(self, names: Any) -> bool:
            return any(name.startswith("third_head.") for name in names)

        def key_map(self, names: Any) -> KeyMap:
            import re

            return KeyMap(((re.compile(r"^third_head\."), "mask_head."),), re.compile("ignored"))

        def infer_preset(self, state_dict: Any) -> Any:
            return solo_family.infer_preset(state_dict)

    monkeypatch.setitem(sys.modules, "third_family", Third("third_family"))
    row = dataclasses.replace(FAMILIES["solo"], checkpoints="third_family")
    monkeypatch.setitem(FAMILIES, "third", row)
    yield sys.modules["third_family"]


def test_third_family_needs_one_module_and_one_row(third_family: Any) -> None:
    architecture = PRESETS["decoupled_light_r50"].architecture
    state_dict = empty_state_dict(architecture)
    renamed = {name.replace("mask_head.", "third_head."): tensor for name, tensor in state_dict.items()}
    assert find_checkpoint_family(renamed) is third_family
    tensors = translate({**renamed, "ignored.weight": torch.zeros(1)}, Path("x.pth"))
    assert list(tensors.tensors) == list(state_dict)
    assert tensors.display_name("mask_head.conv_cls.bias") == "third_head.conv_cls.bias"
    assert infer_config(tensors).architecture == architecture
    with pytest.raises(CheckpointError, match="or of Third on resnet50"):
        infer_config(NamedTensors({"weight": torch.zeros(1)}))
