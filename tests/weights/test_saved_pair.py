"""A directory whose two files do not belong together is never loaded as if they did."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.checkpoint_files import check_same_model, random_model
from helpers.models import small_config
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from solo_infer import SOLO
from solo_infer.config import PostprocessConfig
from solo_infer.config.categories import Categories
from solo_infer.errors import ConfigError
from solo_infer.weights.load import load_checkpoint

CONFIG, WEIGHTS = "config.json", "model.safetensors"
MIXED = "was saved with another config.json than the one beside it"


class Killed(BaseException):
    """Raised where a process is killed."""


@pytest.fixture
def models(narrow: None) -> tuple[SOLO, SOLO]:
    """Return two models with other settings and weights, of which each can load the files of the other."""
    first, second = (random_model(small_config("decoupled_light"), seed=seed) for seed in (7, 8))
    second.config = replace(
        second.config,
        categories=Categories(("one", "two", "three")),
        thresholds=PostprocessConfig(score_thr=0.4),
    )
    return first, second


def kill_before_rename(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """End the process before it renames the file of a number, counted from 0."""
    rename, calls = os.replace, []

    def killed(source: Any, target: Any) -> None:
        if len(calls) == number:
            raise Killed
        calls.append(target)
        rename(source, target)

    monkeypatch.setattr(os, "replace", killed)


@pytest.mark.parametrize("renames", [0, 1, 2])
def test_killed_save_leaves_one_of_the_models(
    models: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    renames: int,
) -> None:
    first, second = models
    first.save_pretrained(tmp_path)
    with monkeypatch.context() as patch:
        kill_before_rename(patch, renames)
        if renames < 2:
            with pytest.raises(Killed):
                second.save_pretrained(tmp_path)
        else:
            second.save_pretrained(tmp_path)
    check_same_model(SOLO.from_pretrained(tmp_path, device="cpu"), first if renames == 0 else second)
    assert [MIXED in message for message in caplog.messages] == [True] * (renames == 1)
    second.save_pretrained(tmp_path)
    caplog.clear()
    check_same_model(SOLO.from_pretrained(tmp_path, device="cpu"), second)
    assert not caplog.messages


def test_killed_first_save_is_no_model(models: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kill_before_rename(monkeypatch, 1)
    with pytest.raises(Killed):
        models[0].save_pretrained(tmp_path)
    with pytest.raises(Exception, match=r"lacks config\.json"):
        SOLO.from_pretrained(tmp_path, device="cpu")


def test_save_while_a_model_is_read(models: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files are replaced after the first one of them has been read."""
    first, second = models
    first.save_pretrained(tmp_path)
    read = Path.read_bytes

    def read_and_save(path: Path) -> bytes:
        content = read(path)
        if path.name == CONFIG:
            monkeypatch.undo()
            second.save_pretrained(tmp_path)
        return content

    monkeypatch.setattr(Path, "read_bytes", read_and_save)
    check_same_model(SOLO.from_pretrained(tmp_path, device="cpu"), second)


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_file_of_another_model(
    models: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    first, second = models
    folder, other = first.save_pretrained(tmp_path / "a"), second.save_pretrained(tmp_path / "b")
    (folder / name).write_bytes((other / name).read_bytes())
    check_same_model(SOLO.from_pretrained(folder, device="cpu"), first if name == CONFIG else second)
    assert len(caplog.messages) == 1 and MIXED in caplog.messages[0] and "config=" in caplog.messages[0]
    chosen = SOLO.from_pretrained(folder, device="cpu", config=second.config)
    assert chosen.config == second.config and len(caplog.messages) == 1


def without(path: Path, *keys: str) -> None:
    """Remove what earlier versions did not write."""
    if path.name == CONFIG:
        values = json.loads(path.read_text())
        path.write_text(json.dumps({key: value for key, value in values.items() if key not in keys}))
    else:
        save_file(load_file(path), path, {"format": "pt"})


def test_directories_of_earlier_versions(
    models: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = models
    folder = first.save_pretrained(tmp_path)
    without(folder / CONFIG, "weights_id")
    without(folder / WEIGHTS)
    check_same_model(SOLO.from_pretrained(folder, device="cpu"), first)
    new = second.save_pretrained(tmp_path / "new")
    (folder / WEIGHTS).write_bytes((new / WEIGHTS).read_bytes())  # as when this version is killed
    assert not caplog.messages
    check_same_model(SOLO.from_pretrained(folder, device="cpu"), second)
    assert len(caplog.messages) == 1 and MIXED in caplog.messages[0]


def test_files_may_be_edited(models: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A setting changed in an editor, and weights that another program converted."""
    first, _ = models
    folder = first.save_pretrained(tmp_path)
    values = json.loads((folder / CONFIG).read_text())
    values["thresholds"]["score_thr"] = 0.25
    (folder / CONFIG).write_text(json.dumps(values))
    assert SOLO.from_pretrained(folder, device="cpu").config.thresholds.score_thr == 0.25
    without(folder / WEIGHTS)
    assert SOLO.from_pretrained(folder, device="cpu").config.thresholds.score_thr == 0.25
    assert not caplog.messages


def test_equal_models_have_equal_files(models: Any, tmp_path: Path) -> None:
    first, second = models
    ids = set()
    for number, model in enumerate((first, first, second)):
        folder = model.save_pretrained(tmp_path / str(number))
        config_id = json.loads((folder / CONFIG).read_text())["weights_id"]
        with safe_open(folder / WEIGHTS, framework="pt") as file:
            assert file.metadata()["solo_infer"].partition("\n")[0] == config_id
        ids.add(config_id)
    assert len(ids) == 2
    with torch.no_grad():
        next(first.network.parameters()).view(-1)[0] += 1
    first.save_pretrained(tmp_path / "3")
    assert json.loads((tmp_path / "3" / CONFIG).read_text())["weights_id"] not in ids


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 100_000, "{}", " " * (1 << 20) + "{}"])
def test_damaged_header_is_refused(models: Any, tmp_path: Path, text: str) -> None:
    folder = models[0].save_pretrained(tmp_path)
    save_file(load_file(folder / WEIGHTS), folder / WEIGHTS, {"solo_infer": f"0\n{text}"})
    with pytest.raises(ConfigError, match=r"in its header is damaged: .* Save the model again"):
        load_checkpoint(folder)
    assert load_checkpoint(folder, config=models[0].config).config == models[0].config
