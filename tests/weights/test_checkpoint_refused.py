"""Files that hold no known model are refused with the reason."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.checkpoint_files import foreign_object
from helpers.models import small_config
from helpers.paths import DATA

from solo_infer.config import PRESETS, ModelConfig
from solo_infer.config.categories import Categories
from solo_infer.diagnostics import procedural_weights
from solo_infer.errors import CheckpointError, ConfigError
from solo_infer.weights import checkpoint
from solo_infer.weights.checkpoint import read_checkpoint, read_config

LIGHT = small_config("decoupled_light")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.pth"


@pytest.mark.parametrize("name", ["mmdet2", "mmdet2_zip", "mmdet3", "mmdet3_published"])
@pytest.mark.parametrize("config", [None, PRESETS["solo_r50"]], ids=["inferred", "explicit"])
def test_incomplete_model_is_refused_with_the_missing_keys(name: str, config: ModelConfig | None) -> None:
    path = DATA / f"checkpoint_{name}.pth"
    with pytest.raises(CheckpointError) as error:
        read_checkpoint(path, config)
    message = str(error.value)
    assert message.startswith(f"{path} does not fit solo on resnet50 with 80 classes: ")
    assert "backbone.layer1.0.conv1.weight (64, 64, 1, 1) is missing" in message
    tensors = checkpoint._read_file(path)[0]
    expected = procedural_weights.tensor("mask_head.conv_cls.bias", (80,), "solo_r50")
    bias = tensors["mask_head.conv_cls.bias"]
    torch.testing.assert_close(bias, torch.from_numpy(expected), rtol=0, atol=1e-8)


@pytest.mark.parametrize(
    ("content", "description"),
    [
        ({}, "an empty one"),
        ([], "a value of the type list"),
        (3, "a value of the type int"),
        (torch.ones(3), "a value of the type Tensor"),
        ({"state_dict": {}, "epoch": 3}, "the entries state_dict, epoch"),
        ({"state_dict": [torch.ones(3)]}, "the entries state_dict"),
        ({"a": 1, "b": 2, "c": 3, "d": 4, "e": 5, "f": 6}, "the entries a, b, c, d, e"),
        ({"\x1b[2J": 1}, r"the entries '\x1b[2J'"),
        ({3: 1, None: 2}, "the entries 3, None"),
    ],
)
def test_file_without_tensors_is_refused(path: Path, content: Any, description: str) -> None:
    torch.save(content, path)
    with pytest.raises(CheckpointError) as error:
        read_checkpoint(path)
    expected = f"{path} holds no state dict: expected a mapping of tensors, found {description}."
    assert str(error.value) == expected


def test_pickled_model_object_is_refused_with_advice(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(foreign_object(monkeypatch, "mmdet.models.detectors.solo", "SOLO", training=False), path)
    with pytest.raises(CheckpointError, match=r"mmdet\.models\.detectors\.solo\.SOLO; save its state_dict"):
        read_checkpoint(path)


def test_tensor_under_two_names_is_refused(path: Path) -> None:
    torch.save({"backbone.conv1.weight": torch.ones(1), "module.backbone.conv1.weight": torch.ones(1)}, path)
    with pytest.raises(CheckpointError, match="holds a tensor twice: as backbone.conv1.weight and module"):
        read_checkpoint(path)


def test_tensors_that_exceed_their_file_are_refused(path: Path) -> None:
    torch.save({"backbone.conv1.weight": torch.ones(1).expand(10_000, 10_000)}, path)
    with pytest.raises(CheckpointError, match="but tensors of 400000000 bytes that share their data"):
        read_checkpoint(path)
    torch.save({"backbone.conv1.weight": torch.ones(1).expand(100)}, path)
    with pytest.raises(CheckpointError, match="fits no known model"):
        read_checkpoint(path)


def safetensors_of(header: Any, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def one_tensor(dtype: str, size: int, start: int, end: int, length: int, *names: str) -> bytes:
    """Return a file of zeros in which some names (or "w") stand for the same tensor."""
    entry = {"dtype": dtype, "shape": [size], "data_offsets": [start, end]}
    return safetensors_of(dict.fromkeys(names or ("w",), entry), bytes(length))


BAD_SAFETENSORS = {
    "empty": b"",
    "short": b"\x08\x00",
    "zeros": bytes(100),
    "huge header": b"\xff" * 7 + b"\x7f{",
    "missing header": (1000).to_bytes(8, "little") + b"{",
    "no tensors": safetensors_of({}),
    "invalid JSON": safetensors_of(b"{" * 50),
    "deep JSON": safetensors_of(b'{"a":' * 50_000),
    "unknown dtype": one_tensor("X9", 1, 0, 4, 4),
    "negative shape": one_tensor("F32", -1, 0, 4, 4),
    "huge shape": one_tensor("F32", 2**62, 0, 4, 4),
    "no data": one_tensor("F32", 1, 0, 4, 0),
    "too much data": one_tensor("F32", 1, 0, 4, 9),
    "offsets beyond": one_tensor("F32", 1, 4, 8, 4),
    "two over the same data": one_tensor("F32", 1, 0, 4, 4, "a", "b"),
    "not a model": one_tensor("F32", 1, 0, 4, 4),
    "eight-bit floats": one_tensor("F8_E4M3", 4, 0, 4, 4, "mask_head.conv_cls.bias"),
    "a pickle": b"\x80\x02}.",
}


@pytest.mark.parametrize("data", BAD_SAFETENSORS.values(), ids=BAD_SAFETENSORS)
@pytest.mark.parametrize("filename", ["model.safetensors", "model.bin"])
def test_bad_safetensors_are_refused(tmp_path: Path, data: bytes, filename: str) -> None:
    (tmp_path / filename).write_bytes(data)
    with pytest.raises(CheckpointError, match=filename):
        read_checkpoint(tmp_path / filename)


@pytest.mark.parametrize("name", ["missing.pth", "missing.safetensors", "missing"])
def test_missing_file_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(CheckpointError, match=f"{name} does not exist, or is not a file"):
        read_checkpoint(tmp_path / name)


# --- Directories and config.json


def test_other_directories_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"lacks model\.safetensors and config\.json"):
        read_checkpoint(tmp_path)
    (tmp_path / "epoch_12.pth").touch()
    with pytest.raises(CheckpointError, match=r"holds epoch_12\.pth: give the path of the file"):
        read_checkpoint(tmp_path)
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(CheckpointError, match=r"lacks config\.json: expected one written by save_pretrained"):
        read_checkpoint(tmp_path, LIGHT)


def test_config_is_read_from_a_directory(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    one_class = replace(PRESETS["solo_r50"].architecture, num_classes=1)
    for config in (PRESETS["solo_r101"], ModelConfig(one_class, categories=Categories(("Käfer",)))):
        path.write_text(json.dumps(config.to_dict()), encoding="utf-8")
        assert read_config(path) == config


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b"null",
        b'"text"',
        b"{",
        b"\xff\xfe",
        b"{}",
        b'{"format": "other/1"}',
        b'{"format": "solo_infer/1", "more": {}}',
        b'{"format": "solo_infer/2"}',
        b'{"format": "solo_infer/2", "family": "solo", "more": {}}',
        b'{"format": "solo_infer/2", "family": "solo", "architecture": {"num_classes": 80.5}}',
        b'{"format": "solo_infer/2", "family": ["solo"]}',
        b'{"format": "solo_infer/1", "architecture": []}',
        b'{"format": "solo_infer/1", "architecture": {"head": "mask_rcnn"}}',
        b'{"format": "solo_infer/1", "architecture": {"num_classes": "80"}}',
        b'{"format": "solo_infer/1", "architecture": {"num_classes": 80.5}}',
        b'{"format": "solo_infer/1", "architecture": {"num_grids": [NaN, 1, 1, 1, 1]}}',
        b'{"format": "solo_infer/1", "architecture": {"num_classes": 3}}',
        b'{"format": "solo_infer/1", "architecture": {"depth": 3}}',
        b"[" * 100_000,
        b"[" + b"9" * 10_000 + b"]",
        b" " * ((1 << 20) + 1),
    ],
)
def test_invalid_config_is_refused(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(text)
    with pytest.raises(ConfigError, match=r"config\.json"):
        read_config(path)


def test_missing_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        read_config(tmp_path / "config.json")
