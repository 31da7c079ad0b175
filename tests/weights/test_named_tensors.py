"""State dicts under our names remember the names in their file."""

from __future__ import annotations

import pytest
import torch

from solo_infer.errors import CheckpointError
from solo_infer.weights.key_mapping import KeyMap, mmdet_name, strip_wrappers
from solo_infer.weights.named_tensors import NamedTensors, quoted_name, translate


def test_translation_keeps_the_tensors_and_both_names() -> None:
    weight, bias = torch.zeros(1), torch.ones(1)
    tensors = translate(
        {"module.neck.fpn_convs.0.conv.weight": weight, "module.mask_head.conv_cls.bias": bias}, "x.pth"
    )
    assert tensors.tensors["neck.layer_blocks.0.0.weight"] is weight
    assert tensors.tensors["mask_head.conv_cls.bias"] is bias
    assert tensors.display_name("neck.layer_blocks.0.0.weight") == "module.neck.fpn_convs.0.conv.weight"
    assert tensors.display_name("neck.layer_blocks.1.0.weight") == "neck.fpn_convs.1.conv.weight"


def test_missing_tensors_of_our_own_files_have_our_names() -> None:
    tensors = translate({"neck.layer_blocks.0.0.weight": torch.zeros(1)}, "x.pth")
    assert tensors.display_name("neck.layer_blocks.1.0.weight") == "neck.layer_blocks.1.0.weight"
    assert NamedTensors({}).display_name("neck.inner_blocks.0.0.bias") == "neck.inner_blocks.0.0.bias"


def test_two_tensors_of_one_name_are_refused() -> None:
    names = ("neck.fpn_convs.0.conv.bias", "module.neck.layer_blocks.0.0.bias")
    with pytest.raises(CheckpointError, match=f"x.pth holds a tensor twice: as {names[0]} and {names[1]}"):
        translate({name: torch.zeros(1) for name in names}, "x.pth")


def test_names_of_wrapped_networks() -> None:
    assert strip_wrappers("module._orig_mod.module.a.module.b") == "a.module.b"
    assert strip_wrappers("modules.a") == "modules.a"


def test_mmdet_names_are_mapped_back() -> None:
    for name in ("neck.inner_blocks.2.0.weight", "neck.layer_blocks.4.0.bias", "mask_head.conv_cls.bias"):
        assert KeyMap().rename(mmdet_name(name)) == name
    assert mmdet_name("neck.inner_blocks.2.0.weight") == "neck.lateral_convs.2.conv.weight"


def test_quoted_names_are_short_and_plain() -> None:
    assert quoted_name("backbone.conv1.weight") == "backbone.conv1.weight"
    assert quoted_name("a\nb") == "'a\\nb'"
    assert len(quoted_name("x" * 10_000)) == 80
