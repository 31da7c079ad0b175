"""Fixtures of the documentation tests: a folder like the reader's, and downloads without a network."""

import dataclasses
import hashlib
import json
import shutil
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from helpers.documentation import README
from helpers.paths import DATA, EXAMPLES, ROOT
from helpers.videos import make_clip
from PIL import Image

from solo_infer.config.presets import PRESETS
from solo_infer.diagnostics import procedural_weights
from solo_infer.runtime import environment
from solo_infer.weights import manifest
from solo_infer.weights.key_mapping import mmdet_name

PUBLISHED = {
    "decoupled_r50_3x": "decoupled_r50",
    "decoupled_light_r50_3x": "decoupled_light_r50",
    "solov2_light_r18_3x": "solov2_light_r18",
    "yolact_r50": "yolact_r50",
}


@pytest.fixture(scope="session")
def mirror(tmp_path_factory):
    """Return a folder with procedural weights, named and laid out like the published files."""
    folder = tmp_path_factory.mktemp("mirror")
    for name, preset in PUBLISHED.items():
        weights = {mmdet_name(key): value for key, value in procedural_weights.state_dict(preset).items()}
        path = folder / manifest.find_entry(name).filename
        torch.save({"meta": {}, "state_dict": weights}, path, _use_new_zipfile_serialization=False)
    return folder


@pytest.fixture(scope="session")
def small_tiny(tmp_path_factory):
    """Return the source of the embedded model with small inputs, which need a tenth of the time."""
    folder = tmp_path_factory.mktemp("tiny") / "tiny"
    shutil.copytree(manifest.find_entry(manifest.EMBEDDED_MODEL).folder, folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["preprocessing"].update(short_side=160, long_side=160)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return manifest.Source(kind="package", filename=str(folder))


@pytest.fixture
def workspace(mirror, small_tiny, no_plots, monkeypatch, tmp_path):
    """Enter a folder with the files that the pages name; downloads come from the mirror."""
    published = dict(manifest.load_manifest())
    entries = {
        manifest.EMBEDDED_MODEL: dataclasses.replace(
            published[manifest.EMBEDDED_MODEL], sources=(small_tiny,)
        )
    }
    for name in PUBLISHED:
        digest = hashlib.sha256((mirror / published[name].filename).read_bytes()).hexdigest()
        entries[name] = dataclasses.replace(published[name], sources=(), sha256_prefix=digest[:8])
    for preset in set(PUBLISHED.values()):
        _shrink_inputs(preset, monkeypatch)
    monkeypatch.setenv(environment.MIRROR, str(mirror))
    folder = tmp_path / "workspace"
    shutil.copytree(EXAMPLES, folder / "examples")
    monkeypatch.chdir(folder)
    _add_photos(folder)
    if find_spec("av") is not None:
        _add_video(folder)
    _set_manifest(entries)
    yield folder
    _set_manifest(published)


def _shrink_inputs(preset, monkeypatch):
    """Give a published model inputs that need a tenth of the time."""
    config = PRESETS[preset]
    if config.preprocessing.keep_ratio:  # the anchors of YOLACT fit the published size only
        small = dataclasses.replace(config.preprocessing, short_side=256, long_side=426)
        monkeypatch.setitem(PRESETS, preset, dataclasses.replace(config, preprocessing=small))


def _add_video(folder):
    with Image.open(DATA / "chelsea.png") as photo:
        photo = photo.convert("RGB").resize((240, 160))
    frames = [np.asarray(photo.crop((8 * index, 0, 200 + 8 * index, 160))) for index in range(5)]
    make_clip(folder / "clip.mp4", size=(200, 160), rate=10, frames=frames)


def _set_manifest(entries):
    """Replace the content of the loaded manifest, which all modules share."""
    loaded = manifest.load_manifest()
    loaded.clear()
    loaded.update(entries)


def _add_photos(folder):
    (folder / "photos" / "trip").mkdir(parents=True)
    with Image.open(DATA / "chelsea.png") as photo:
        photo.save(folder / "street.jpg")
        photo.resize((200, 133)).save(folder / "photos" / "one.jpg")
        photo.resize((133, 200)).save(folder / "photos" / "trip" / "two.jpg")
    sizes = {"one.jpg": (200, 133), "trip/two.jpg": (133, 200)}
    polygon = [40, 20, 140, 20, 140, 110, 40, 110]
    annotation = {"category_id": 17, "bbox": [40, 20, 100, 90], "area": 9000, "iscrowd": 0}
    data = {
        "images": [
            {"id": number, "file_name": name, "width": width, "height": height}
            for number, (name, (width, height)) in enumerate(sizes.items(), start=1)
        ],
        "categories": [{"id": 17, "name": "cat"}],
        "annotations": [
            {**annotation, "segmentation": [polygon], "id": number, "image_id": number} for number in (1, 2)
        ],
    }
    (folder / "instances.json").write_text(json.dumps(data), encoding="utf-8")


@pytest.fixture(scope="session")
def readme():
    return README.read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def models_page():
    return (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
