"""``solo-infer export``."""

import pytest
from helpers.command_line import assert_clear

from solo_infer.export.engine import ExportedModel

pytest_plugins = ["helpers.command_line_fixtures"]
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


def test_export(run, saved, tmp_path):
    target = tmp_path / "model.onnx"
    code, out, _ = run("export", saved, "--output", target, "--input-size", 64, 96, "--opset", 11)
    assert (code, out) == (0, f"{target}\n")
    (entry,) = onnx.load(str(target)).opset_import
    assert entry.version == 11
    assert ExportedModel.from_onnx(target).size == (64, 96)


def test_export_errors(run, saved, tmp_path):
    code, _, err = run("export", saved, "--output", tmp_path / "x.onnx", "--input-size", 65, 96)
    assert code == 1
    assert_clear(err, "ExportError", "65 x 96", "multiples of 32")
    code, _, err = run("export", saved, "--output", tmp_path / "no" / "x.onnx", "--input-size", 64, 96)
    assert code == 1
    assert_clear(err, "ExportError", "cannot be written")
