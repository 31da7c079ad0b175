"""Models are loaded by name, path or Hub repo."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers.checkpoint_files import check_same_model, write_layout
from helpers.faulty_server import (
    Server,
    content,
    forbid_sockets,
    hub_error,
    hub_file,
    status,
)
from helpers.paths import TESTS
from weights.test_hub import PRELUDE

from solo_infer import SOLO, YOLACT
from solo_infer.config import PRESETS, PostprocessConfig
from solo_infer.config.categories import COCO
from solo_infer.errors import CheckpointError, ConfigError, DownloadError, OfflineError, UnknownModelError
from solo_infer.weights import fetch
from solo_infer.weights.load import load_checkpoint
from solo_infer.weights.manifest import Source, available_models, load_manifest

NAME = "decoupled_light_r50_3x"


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    forbid_sockets(monkeypatch)


# --- Kinds of names


def test_existing_path_takes_precedence(
    model: SOLO, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_network: None
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in (NAME, "owner/name"):
        model.save_pretrained(name)
        check_same_model(SOLO.from_pretrained(name, device="cpu"), model)
        check_same_model(SOLO.from_pretrained(Path(name), device="cpu"), model)
        check_same_model(SOLO.from_pretrained(os.fsencode(tmp_path / name), device="cpu"), model)
        checkpoint = load_checkpoint(tmp_path / name / "model.safetensors")
        assert checkpoint.config.architecture.head == "decoupled_light"
        shutil.rmtree(tmp_path / name)


def test_home_directory_is_expanded(model: SOLO, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    model.save_pretrained("~/models/mine")
    assert (tmp_path / "models" / "mine" / "config.json").is_file()
    check_same_model(SOLO.from_pretrained("~/models/mine", device="cpu"), model)


def test_published_names_take_precedence_over_repos(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls: list[Any] = []

    def refuse_model(entry: Any, *, offline: bool | None) -> Path:
        calls.append((entry.name, offline))
        raise DownloadError("not now")

    def refuse_file(repo: str, filename: str, revision: str, *, offline: bool | None) -> Path:
        calls.append((repo, filename, revision, offline))
        raise OfflineError("not now")

    monkeypatch.setattr(fetch, "fetch", refuse_model)
    monkeypatch.setattr(fetch, "hub_file", refuse_file)
    with pytest.raises(DownloadError):
        load_checkpoint(NAME, offline=True)
    with pytest.raises(OfflineError, match="'owner/na.me-1' is not a file or directory, and the Hub"):
        load_checkpoint("owner/na.me-1", revision="v2")
    assert calls == [(NAME, True), ("owner/na.me-1", "config.json", "v2", None)]


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [
        ("decoupled_light_r50", "Did you mean 'decoupled_light_r50_3x' or "),
        ("decoupled_r50_3", "Did you mean 'decoupled_r50_3x' or "),
        ("SOLO-R50-3x", "Did you mean 'solo_r50_3x' or "),
        ("decoupled_solo_r50_fpn_3x_coco", "Did you mean 'decoupled_r50_3x' or "),
        ("mask_rcnn", "Published models: solo_r50_1x, "),
        ("a/b/c", "Published models: "),
        ("owner/", "Published models: "),
        ("/", "lacks model.safetensors"),
        ("owner/na me", "Published models: "),
        ("owner/name\n", "Published models: "),
        ("", "lacks model.safetensors"),
        ("x" * 5000, "Published models: "),
        ("nul\0", "Published models: "),
        ("~nobody-of-this-name/x", "does not exist"),
    ],
)
def test_unknown_names_are_refused_with_advice(
    name: str, suggestion: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_network: None
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises((UnknownModelError, CheckpointError)) as error:
        SOLO.from_pretrained(name)
    assert suggestion in str(error.value)
    if "Published" in suggestion or "Did" in suggestion:
        assert type(error.value) is UnknownModelError
        assert all(known in str(error.value) for known in available_models())


@pytest.mark.parametrize(
    "name", ["epoch_12.pth", "work/dirs/x.pt", "a/b.safetensors", "./solo", "../x", "/no/x"]
)
def test_missing_files_are_reported(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_network: None
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError) as error:
        SOLO.from_pretrained(name)
    assert str(error.value) == f"{name} does not exist (current directory: {tmp_path})."


def test_names_of_published_files_are_suggested(no_network: None) -> None:
    for entry in (entry for entry in load_manifest().values() if entry.folder is None):
        hint = f"To load the published file of that name, pass '{entry.name}'."
        with pytest.raises(CheckpointError, match="does not exist") as error:
            load_checkpoint(f"downloads/{entry.filename}")
        assert hint in str(error.value)
        with pytest.raises(CheckpointError, match="is a URL: expected a name or a path") as error:
            load_checkpoint(f"https://example.org/{entry.filename}")
        assert hint in str(error.value)


def test_unreadable_path_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path) -> bool:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "exists", refuse)
    with pytest.raises(CheckpointError, match="private/x.pth cannot be read: .*Permission denied"):
        load_checkpoint("private/x.pth")


def test_repo_of_published_models_lists_their_names(no_network: None) -> None:
    with pytest.raises(UnknownModelError) as error:
        SOLO.from_pretrained("xinlongwang/SOLO")
    authors = [name for name in available_models() if name.startswith("authors_")]
    published = [name for name in authors if "yolact" not in name]
    assert (len(authors), len(published)) == (20, 17)
    assert str(error.value).endswith(f"holds several models: pass its name instead, {', '.join(published)}.")
    with pytest.raises(UnknownModelError, match="holds a published model: .*, authors_yolact_r101_700"):
        YOLACT.from_pretrained("dbolya/yolact-im700")


@pytest.mark.parametrize("name", available_models())
def test_restrictive_license_is_logged_before_the_download(
    name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*args: object, **kwargs: object) -> Path:
        raise DownloadError("not now")

    monkeypatch.setattr(fetch, "fetch", refuse)
    with pytest.raises(DownloadError):
        load_checkpoint(name)
    entry = load_manifest()[name]
    if entry.commercial_use:
        assert not caplog.records
    else:
        (record,) = caplog.records
        assert record.levelno == logging.WARNING
        assert name in record.getMessage() and "non-commercial" in record.getMessage()


# --- Families


@pytest.mark.parametrize(
    ("name", "family"), [("authors_yolact_r50", "solo"), ("yolact_r101", "solo"), ("solo_r50_1x", "yolact")]
)
def test_published_model_of_another_family_is_refused_before_the_download(
    name: str, family: str, monkeypatch: pytest.MonkeyPatch, no_network: None
) -> None:
    monkeypatch.setattr(fetch, "fetch", lambda *_, **__: pytest.fail("downloaded"))
    with pytest.raises(ConfigError, match=f"{name} is a .* expected one of {family}. Use load_model"):
        load_checkpoint(name, families=[family])
    model_class = {"solo": SOLO, "yolact": YOLACT}[family]
    with pytest.raises(ConfigError, match="Use load_model"):
        model_class.from_pretrained(name)


def test_config_decides_the_family_of_a_published_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "fetch", lambda *_, **__: pytest.fail("downloaded"))
    with pytest.raises(ConfigError, match="of the family 'yolact'"):
        load_checkpoint(NAME, config=PRESETS["yolact_r50"], families=["solo"])


def test_file_of_another_family_is_refused(model: SOLO, tmp_path: Path) -> None:
    folder = model.save_pretrained(tmp_path)
    assert load_checkpoint(folder, families=["solo"]).config == model.config
    for path in (folder, folder / "model.safetensors"):
        with pytest.raises(ConfigError, match="is a decoupled_light model of the family 'solo'"):
            load_checkpoint(path, families=["yolact"])
        with pytest.raises(ConfigError, match="is a decoupled_light model of the family 'solo'"):
            YOLACT.from_pretrained(path)


# --- Download, verification and cache


def test_published_model_from_a_mirror_then_from_the_cache(
    server: Server, tmp_path: Path, procedural: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = procedural("decoupled_light_r50")
    file = write_layout(
        tmp_path / "x.pth", "mmdet2_legacy", model.network.state_dict(), COCO.names, monkeypatch
    )
    body = file.read_bytes()
    file.unlink()
    sources = (Source("url", url=server.at("/gone.pth", status(404))),)
    digest = hashlib.sha256(body).hexdigest()
    entry = replace(load_manifest()[NAME], sha256_prefix=digest[:8], sources=sources)
    monkeypatch.setitem(load_manifest(), NAME, entry)
    monkeypatch.setenv("SOLO_INFER_MIRROR", server.base)

    server.at(f"/{entry.filename}", content(body[:-1] + b"x"))
    with pytest.raises(DownloadError, match=f"expected a SHA-256 that starts with {digest[:8]}"):
        SOLO.from_pretrained(NAME, device="cpu")
    server.at(f"/{entry.filename}", content(body))
    with monkeypatch.context() as patch:
        patch.setenv("SOLO_INFER_OFFLINE", "1")
        with pytest.raises(OfflineError, match="is not on this machine"):
            SOLO.from_pretrained(NAME, device="cpu")
    check_same_model(SOLO.from_pretrained(NAME, device="cpu"), model)
    assert sum(request.path == f"/{entry.filename}" for request in server.requests) == 2

    forbid_sockets(monkeypatch)
    reloaded = SOLO.from_pretrained(
        NAME, device="cpu", thresholds=PostprocessConfig(score_thr=0.3), offline=True
    )
    assert reloaded.config.thresholds.score_thr == 0.3
    check_same_model(reloaded.with_thresholds(model.config.thresholds), model)
    (cached,) = (tmp_path / "home" / "weights").glob("*.pth")
    assert cached.name == entry.filename
    cached.unlink()


# --- The Hub

HUB_SCRIPT = """
from helpers.checkpoint_files import narrow_backbones
from solo_infer import SOLO

def load(name, **options):
    with narrow_backbones():
        model = SOLO.from_pretrained(name, device="cpu", **options)
    digest = hashlib.sha256()
    for tensor in model.network.state_dict().values():
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest(), model.config.categories.names

attempt(load, "me/pets", offline=True)
attempt(load, "me/pets")
attempt(load, "me/half")
attempt(load, "me/none")
forbid_sockets()
attempt(load, "me/pets", offline=True)
print(json.dumps(results))
"""


def test_saved_model_from_the_hub(server: Server, model: SOLO, tmp_path: Path) -> None:
    folder = model.save_pretrained(tmp_path / "saved")
    digest = hashlib.sha256()
    for tensor in model.network.state_dict().values():
        digest.update(tensor.numpy().tobytes())
    expected = str((digest.hexdigest(), ("cat", "dog", "bird")))
    hub_file(server, "me/pets", "config.json", (folder / "config.json").read_bytes(), lfs=False)
    weights = hub_file(server, "me/pets", "model.safetensors", (folder / "model.safetensors").read_bytes())
    hub_file(server, "me/half", "config.json", (folder / "config.json").read_bytes(), lfs=False)
    server.at("/me/half/resolve/main/model.safetensors", hub_error(404, "EntryNotFound"))
    server.at("/me/none/resolve/main/config.json", hub_error(404, "EntryNotFound"))
    environment = {
        "HF_ENDPOINT": server.base,
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_UPDATE_CHECK": "1",
        "PYTHONPATH": os.pathsep.join(map(str, (TESTS.parent, TESTS))),
    }
    process = subprocess.run(
        [sys.executable, "-c", PRELUDE + HUB_SCRIPT, "{}"],
        env={**{name: value for name, value in os.environ.items() if name[:3] != "HF_"}, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert process.returncode == 0, process.stderr
    absent, online, half, none, offline = json.loads(process.stdout)
    assert online == offline == expected
    assert absent.startswith("OfflineError: 'me/pets' is not a file or directory, and the Hub repo")
    assert none.startswith("DownloadError: 'me/none' is not a file or directory")
    assert "has no config.json" in none and "has no model.safetensors" in half
    # Both files are of the commit of the first one, even if the branch has moved.
    paths = [request.path for request in server.requests if request.path.startswith("/me/pets")]
    assert weights not in paths
    assert any(path.endswith("/model.safetensors") for path in paths)
