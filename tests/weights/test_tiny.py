"""The model in the package works without network and cache, and detects people."""

import json
import os
from pathlib import Path

import pytest
import torch
from helpers.command_line import assert_clear, program
from helpers.faulty_server import forbid_sockets
from helpers.paths import DATA

from solo_infer import SOLO, available_models
from solo_infer.errors import CheckpointError, DownloadError, OfflineError
from solo_infer.runtime import environment
from solo_infer.segmenters import auto
from solo_infer.weights import fetch
from solo_infer.weights.manifest import DEFAULT_MODEL, EMBEDDED_MODEL, find_entry

pytest_plugins = ["helpers.command_line_fixtures"]

MAX_BYTES = 16 * 10**6


@pytest.fixture(scope="module")
def tiny():
    return SOLO.from_pretrained("tiny", device="cpu")


@pytest.fixture
def isolated_machine(monkeypatch, tmp_path):
    """Machine without network and with an empty cache."""
    monkeypatch.setenv(environment.HOME, str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    return forbid_sockets(monkeypatch)


def test_package_contains_the_model():
    entry = find_entry(EMBEDDED_MODEL)
    assert sorted(path.name for path in entry.folder.iterdir()) == ["config.json", "model.safetensors"]
    assert sum(path.stat().st_size for path in entry.folder.iterdir()) <= MAX_BYTES
    assert EMBEDDED_MODEL in available_models()
    assert entry.commercial_use and entry.license == "Apache-2.0"


def test_model_needs_neither_network_nor_cache(isolated_machine, tmp_path):
    model = SOLO.from_pretrained("tiny", device="cpu", offline=True)
    assert model.dtype == torch.float32
    assert model.config.categories.names[0] == "person"
    assert fetch.is_cached(find_entry("tiny"))
    assert fetch.bundle([find_entry("tiny")], tmp_path / "bundle") == [find_entry("tiny").folder]
    assert not (tmp_path / "home").exists() and not (tmp_path / "bundle").exists()


def test_person_in_a_photo_is_detected(tiny):
    result = tiny(DATA / "people" / "astronaut.jpg")
    people = result.filter(min_score=0.3, classes="person")
    assert len(people) == 1
    left, top, right, bottom = people.boxes[0].tolist()
    height, width = people.image_size
    # The head is at the top center, and the suit extends to the bottom edge.
    assert (
        people.masks[0, height // 4, int(0.43 * width)]
        and people.masks[0, int(0.9 * height), int(0.3 * width)]
    )
    assert top < 0.25 * height and bottom > 0.9 * height and right - left > 0.4 * width
    assert not people.masks[0, : height // 10, -width // 10 :].any()


def test_predict_falls_back_to_tiny_with_a_message(run, photos, isolated_machine):
    code, out, err = run("predict", "photos/1.png", "--no-save", "--offline")
    assert code == 0 and out.startswith("photos/1.png: ")
    assert_clear(err, f"{DEFAULT_MODEL} is unavailable", "using 'tiny'", "--model tiny")
    assert [name for name, _ in run.loadings] == [DEFAULT_MODEL, EMBEDDED_MODEL]
    code, _, err = run("predict", "photos/1.png", "--no-save", "--model", "tiny")
    assert (code, err) == (0, "")


def test_predict_falls_back_only_if_weights_are_unavailable(run, photos, monkeypatch):
    def load(name, **options):
        raise CheckpointError("this file is damaged")

    monkeypatch.setattr(auto, "load_model", load)
    code, _, err = run("predict", "photos/1.png", "--no-save")
    assert code == 1
    assert_clear(err, "this file is damaged")


def test_requested_model_is_never_replaced(run, photos, isolated_machine):
    code, _, err = run("predict", "photos/1.png", "--no-save", "--offline", "--model", DEFAULT_MODEL)
    assert code == 1
    assert_clear(err, "OfflineError")
    with pytest.raises((DownloadError, OfflineError)):
        SOLO.from_pretrained(DEFAULT_MODEL, offline=True)


def test_command_line_program(tmp_path):
    code, out, err = program(
        "predict",
        DATA / "people" / "astronaut.jpg",
        "--model",
        "tiny",
        "--save-json",
        "people.json",
        cwd=tmp_path,
    )
    assert (code, err) == (0, "")
    assert "1 person" in out
    assert {"astronaut_segmented.jpg", "people.json"} == set(os.listdir(tmp_path))
    people = json.loads((tmp_path / "people.json").read_text())
    assert people[0]["category_id"] == 1 and people[0]["score"] > 0.3


def test_info_command(run):
    facts = json.loads(run("info", "tiny", "--json")[1])
    assert facts["published"]["sources"] == [str(find_entry("tiny").folder)]
    assert facts["published"]["mask_ap"] > 20
    assert facts["architecture"]["backbone"] == "shufflenet_1.5x"
    assert facts["parameters"]["total"] < 6_000_000
    assert Path(facts["published"]["sources"][0]).is_dir()
    row = next(line for line in run("models")[1].splitlines() if line.startswith("tiny"))
    name, _, classes, megabytes, cached = row.split()[:5]
    assert (name, classes, cached) == ("tiny", "80", "yes") and 5 < float(megabytes) < 8
