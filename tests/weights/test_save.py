"""``save_pretrained`` writes bit-identical weights, atomically."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.checkpoint_files import check_same_model, random_model
from helpers.models import HEADS, small_config
from safetensors import SafetensorError
from safetensors.torch import load_file

from solo_infer import SOLO
from solo_infer.config import PostprocessConfig
from solo_infer.config.categories import Categories
from solo_infer.errors import CacheError, CheckpointError
from solo_infer.weights.load import load_checkpoint
from solo_infer.weights.save import save_checkpoint


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("head", HEADS)
def test_saved_model_is_bit_identical(narrow: None, tmp_path: Path, head: str) -> None:
    model = random_model(small_config(head))
    model.config = replace(
        model.config,
        thresholds=PostprocessConfig(score_thr=0.1 + 1e-9, nms_pre=7, kernel="linear", sigma=1 / 3),
        categories=Categories(("Käfer", "a, b", ""), (17, 90, 1)),
    )
    folder = model.save_pretrained(tmp_path / "deep" / "folder")
    assert folder == tmp_path / "deep" / "folder"
    assert sorted(files_of(folder)) == ["config.json", "model.safetensors"]
    check_same_model(SOLO.from_pretrained(folder, device="cpu"), model)
    before = files_of(folder)
    SOLO.from_pretrained(folder, device="cpu").save_pretrained(folder)
    assert files_of(folder) == before
    reconfigured = SOLO.from_pretrained(
        folder, device="cpu", thresholds=PostprocessConfig(), config=small_config(head)
    )
    assert reconfigured.config == small_config(head)


def test_saved_published_model_is_bit_identical(procedural: Any, tmp_path: Path) -> None:
    model = procedural("decoupled_light_r50")
    folder = model.save_pretrained(tmp_path)
    check_same_model(SOLO.from_pretrained(folder, device="cpu"), model)
    (folder / "model.safetensors").unlink()


def test_half_precision_is_kept(model: SOLO, tmp_path: Path) -> None:
    model.to(dtype=torch.bfloat16)
    folder = model.save_pretrained(tmp_path)
    tensors = load_file(folder / "model.safetensors").values()
    assert {tensor.dtype for tensor in tensors if tensor.is_floating_point()} == {torch.bfloat16}
    check_same_model(SOLO.from_pretrained(folder, device="cpu", dtype="bfloat16"), model)
    check_same_model(SOLO.from_pretrained(folder, device="cpu"), model.to(dtype=torch.float32))


def test_both_files_have_the_same_permissions(model: SOLO, tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        model.save_pretrained(tmp_path)
    finally:
        os.umask(old)
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert set(modes.values()) == {0o640}


def test_weights_that_share_memory_are_saved(model: SOLO, tmp_path: Path) -> None:
    head = model.network.mask_head
    convs_x, convs_y = head.get_submodule("conv_mask_list_x"), head.get_submodule("conv_mask_list_y")
    for first, second in zip(convs_x.children(), convs_y.children(), strict=True):
        second.weight = first.weight
        second.bias = torch.nn.Parameter(first.bias.detach()[:], requires_grad=False)
    model.network.to(memory_format=torch.channels_last)
    folder = model.save_pretrained(tmp_path)
    loaded = SOLO.from_pretrained(folder, device="cpu")
    check_same_model(loaded, model)
    parameters = [parameter.data_ptr() for parameter in loaded.network.parameters()]
    assert len(set(parameters)) == len(parameters)


def interrupt(*args: object) -> None:
    Path(str(args[1])).write_bytes(b"half of it")
    raise KeyboardInterrupt


def fill_disk(*args: object) -> None:
    Path(str(args[1])).write_bytes(b"half of it")
    raise SafetensorError("Error while serializing: IoError(StorageFull)")


def fail(*args: object, **kwargs: object) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize(
    ("function", "failure", "expected"),
    [
        ("safetensors.torch.save_file", interrupt, KeyboardInterrupt),
        ("safetensors.torch.save_file", fill_disk, CacheError),
        ("safetensors.torch.save_file", fail, CacheError),
        ("pathlib.Path.write_text", fail, CacheError),
        ("pathlib.Path.chmod", fail, CacheError),
        ("os.replace", fail, CacheError),
        ("pathlib.Path.mkdir", fail, CacheError),
    ],
)
def test_failed_save_keeps_the_old_files(
    model: SOLO, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str, failure: Any, expected: Any
) -> None:
    model.save_pretrained(tmp_path)
    before = files_of(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(function, failure)
        with pytest.raises(expected) as error:
            random_model(small_config("solo"), seed=8).save_pretrained(tmp_path)
    if expected is CacheError:
        assert str(error.value).startswith(f"{tmp_path} cannot be written: ")
    assert files_of(tmp_path) == before


def test_unwritable_directory_is_a_cache_error(model: SOLO, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a file")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(CacheError, match="cannot be written: .* Choose another directory"):
            model.save_pretrained(folder)
    (tmp_path / "taken" / "model.safetensors").mkdir(parents=True)
    with pytest.raises(CacheError, match="taken cannot be written"):
        model.save_pretrained(tmp_path / "taken")
    assert [path.name for path in (tmp_path / "taken").iterdir()] == ["model.safetensors"]


def test_models_are_saved_onto_their_own_source(model: SOLO, tmp_path: Path) -> None:
    """The weights are read while the file that they came from is replaced, also through a link."""
    folder = model.save_pretrained(tmp_path / "model")
    (tmp_path / "link").symlink_to("model")
    for source in (folder, tmp_path / "link"):
        loaded = SOLO.from_pretrained(source, device="cpu")
        loaded.with_thresholds(PostprocessConfig(score_thr=0.3)).save_pretrained(source)
        check_same_model(
            SOLO.from_pretrained(folder, device="cpu", thresholds=model.config.thresholds), model
        )
    before = files_of(folder)
    with pytest.raises(CacheError, match="model.safetensors cannot be written: .*File exists"):
        SOLO.from_pretrained(folder, device="cpu").save_pretrained(folder / "model.safetensors")
    assert files_of(folder) == before


def test_cache_of_the_hub_is_not_changed(model: SOLO, tmp_path: Path) -> None:
    """A snapshot has links to files that are named by their hash."""
    saved = model.save_pretrained(tmp_path / "saved")
    blobs, snapshot = tmp_path / "models--a--b" / "blobs", tmp_path / "models--a--b" / "snapshots" / "0"
    for folder in (blobs, snapshot):
        folder.mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        (saved / name).rename(blobs / name[0])
        (snapshot / name).symlink_to(f"../../blobs/{name[0]}")
    before = files_of(blobs)
    with pytest.raises(CacheError, match="part of the cache of the Hugging Face Hub"):
        SOLO.from_pretrained(snapshot, device="cpu").save_pretrained(snapshot)
    assert files_of(blobs) == before


def test_inconsistent_directory_is_refused(model: SOLO, tmp_path: Path) -> None:
    folder = model.save_pretrained(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config["architecture"]["stacked_convs"] = 3
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"mask_head\.cls_convs\.2\.conv\.weight .* is missing"):
        SOLO.from_pretrained(folder, device="cpu")
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"lacks config\.json"):
        SOLO.from_pretrained(folder, device="cpu")
    assert load_checkpoint(folder / "model.safetensors").config.architecture.stacked_convs == 2


def test_save_and_load_functions(model: SOLO, tmp_path: Path) -> None:
    state = model.network.state_dict()
    assert save_checkpoint(model.config, state, tmp_path) == tmp_path
    loaded = load_checkpoint(tmp_path)
    assert loaded.config == model.config
    assert all(torch.equal(loaded.state_dict[name], tensor) for name, tensor in state.items())
