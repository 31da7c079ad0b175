"""``solo-infer verify`` of exported files."""

import json
from dataclasses import replace

import numpy as np
import pytest
from helpers.engines import engine_model
from PIL import Image

from solo_infer.cli.main import main
from solo_infer.diagnostics import verify_export
from solo_infer.diagnostics.verify_export import procedural_photo, verify_file
from solo_infer.errors import ConfigError


@pytest.fixture
def load(small_tiny, small_models, monkeypatch):
    """Replace the loader by one of an exported Tiny model and of the models "tiny" and "solo"."""
    exported = engine_model(small_tiny, source="tiny")
    models = {"tiny": small_tiny, "solo": small_models["solo"], "model.onnx": exported}

    def load_model(name, **options):
        model = models[str(name)]
        return model if name == "model.onnx" else model.with_thresholds(model.config.thresholds)

    monkeypatch.setattr(verify_export, "load_model", load_model)
    return exported


def test_an_exact_export_passes(load, photo):
    checks = list(verify_file("model.onnx", image=photo))
    assert [check.quantity for check in checks] == ["scores", "masks: 1 - IoU", "unpaired"]
    assert all(check.passed for check in checks)
    assert {check.model for check in checks} == {"model.onnx"}
    assert checks[0].difference < 1e-3


@pytest.mark.parametrize(
    ("change", "failing"),
    [
        (lambda outputs: outputs["scores"].__imul__(0.99), "scores"),
        (lambda outputs: outputs["labels"].__imul__(0), "unpaired"),
        (lambda outputs: outputs["masks"].__iadd__(0.05), "masks: 1 - IoU"),
    ],
)
def test_a_wrong_export_fails(change, failing, load, photo, monkeypatch):
    run = load.session.run

    def run_changed(inputs):
        outputs = run(inputs)
        change(outputs)
        return outputs

    load.session.run = run_changed
    checks = {check.quantity: check for check in verify_file("model.onnx", image=photo)}
    assert not checks[failing].passed


def test_settings_of_the_file_are_used(small_tiny, photo, monkeypatch):
    """A file that was exported with other thresholds is compared under them."""
    strict = small_tiny.with_thresholds(replace(small_tiny.config.thresholds, score_thr=0.3))
    models = {"model.onnx": engine_model(strict, source="x"), "x": small_tiny.with_settings()}
    monkeypatch.setattr(verify_export, "load_model", lambda name, **_: models[name])
    assert all(check.passed for check in verify_file("model.onnx", image=photo))


def test_what_cannot_be_compared_raises(load, photo):
    with pytest.raises(ConfigError, match="expected the model that the file is of"):
        list(verify_file("model.onnx", reference="solo", image=photo))
    with pytest.raises(ConfigError, match="is not an exported model"):
        list(verify_file("tiny", image=photo))
    load.session.exported = replace(load.session.exported, source="")
    with pytest.raises(ConfigError, match="--reference MODEL"):
        list(verify_file("model.onnx", image=photo))
    assert all(check.passed for check in verify_file("model.onnx", reference="tiny", image=photo))


def test_images_without_instances_raise(load):
    load.session.exported = replace(load.session.exported, source="tiny")
    config = load.config
    load.config = replace(config, thresholds=replace(config.thresholds, filter_thr=1.0))
    with pytest.raises(ConfigError, match="--image FILE"):
        list(verify_file("model.onnx", image=np.zeros((64, 64, 3), np.uint8)))


def test_procedural_photo():
    image = procedural_photo()
    assert image.shape == (480, 640, 3) and image.dtype == np.uint8 and image.std() > 50


def test_command(load, photo, tmp_path, capsys):
    picture = tmp_path / "photo.png"
    Image.fromarray(photo).save(picture)
    assert main(["verify", "--model", "model.onnx", "--image", str(picture), "--json"]) == 0
    checks = json.loads(capsys.readouterr().out)
    assert [check["passed"] for check in checks] == [True] * 3
    assert main(["verify", "--model", "model.onnx", "--image", str(picture)]) == 0
    assert "all checks passed" in capsys.readouterr().out
    load.session.run = lambda inputs, run=load.session.run: {
        **run(inputs),
        "labels": run(inputs)["labels"] * 0,
    }
    assert main(["verify", "--model", "model.onnx", "--image", str(picture)]) == 1
    assert "FAILED" in capsys.readouterr().out
