"""``solo-infer export``, and the commands that take exported files."""

import json

import pytest
from helpers.command_line import assert_clear

from solo_infer.cli import export
from solo_infer.export import model_file
from solo_infer.export.engine import ExportedModel

pytest_plugins = ["helpers.command_line_fixtures"]
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


def test_export_heads(run, saved, tmp_path):
    target = tmp_path / "model.onnx"
    code, out, _ = run("export", saved, "--output", target, "--input-size", 64, 96, "--opset", 11)
    assert (code, out) == (0, f"{target}\n")
    (entry,) = onnx.load(str(target)).opset_import
    assert entry.version == 11
    assert ExportedModel.from_onnx(target).size == (64, 96)


@pytest.mark.parametrize(
    "options",
    [
        ["--opset", 13],
        ["--format", "onnx-heads"],
        ["--format", "onnx-heads", "--input-size", 64, 96, "--pixels"],
        ["--format", "onnx-heads", "--input-size", 64, 96, "--opset", 18],
        ["--format", "onnx", "--opset", 11],
    ],
)
def test_options_that_do_not_go_together(options, run, saved, tmp_path):
    code, _, err = run("export", saved, "--output", tmp_path / "x.onnx", *options)
    assert code == 2 and "--" in err
    assert not (tmp_path / "x.onnx").exists()


def test_options_reach_the_exporter(run, saved, tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(
        model_file, "export_model", lambda model, path, **options: calls.append((path, options)) or path
    )
    target = tmp_path / "model.xml"
    code, out, _ = run("export", saved, "--output", target, "--input-size", 64, 96, "--pixels")
    assert (code, out) == (0, f"{target}\n")
    options = {"format": None, "size": (64, 96), "pixels": True, "photo_size": None, "source": str(saved)}
    assert calls == [(target, options)]
    assert run("export", saved, "--output", target, "--photo-size", 48, 64)[0] == 0
    assert calls[1][1] == {**options, "size": None, "pixels": False, "photo_size": (48, 64)}


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("--pixels",), "--photo-size sets the size of the network input and takes pixels"),
        (("--input-size", 64, 96), "--photo-size sets the size of the network input"),
        (
            ("--format", "onnx-heads", "--input-size", 64, 96),
            "--photo-size is not available with raw outputs",
        ),
    ],
)
def test_photo_size_excludes_others(run, saved, tmp_path, arguments, words):
    code, _, err = run("export", saved, "--output", tmp_path / "x.onnx", "--photo-size", 48, 64, *arguments)
    assert code == 2 and words in err


def test_export_errors(run, saved, tmp_path):
    code, _, err = run("export", saved, "--output", tmp_path / "x.onnx", "--input-size", 65, 96)
    assert code == 1
    assert_clear(err, "ExportError", "65 x 96", "multiples of 32")
    code, _, err = run("export", saved, "--output", tmp_path / "no" / "x.onnx", "--input-size", 64, 96)
    assert code == 1
    assert_clear(err, "ExportError", "cannot be written")
    code, _, err = run("export", saved, "--output", tmp_path / "x.pth")
    assert code == 1
    assert_clear(err, "ExportError", "ends in .onnx, .xml, .pt2")
    assert export.HEADS_OPSETS == (11, 13)


def test_exported_files_and_engines_go_together(run, tmp_path, photos):
    image = photos / "1.png"
    code, _, err = run("predict", image, "--model", "tiny", "--engine", "onnxruntime", "--no-save")
    assert code == 1
    assert_clear(err, "ConfigError", "expected an existing .onnx or .xml file")
    code, _, err = run("predict", image, "--engine", "openvino", "--no-save")
    assert code == 1
    assert_clear(err, "ConfigError", "requires --model FILE")
    code, _, err = run("verify", "--engine", "openvino")
    assert code == 2 and "require --model FILE" in err
    code, _, err = run("verify", "--model", tmp_path / "missing.onnx")
    assert code == 1
    assert json.dumps("missing.onnx")[1:-1] in err
