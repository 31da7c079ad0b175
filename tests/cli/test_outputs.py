"""Outputs of all commands: they overwrite no file of the same run, and are checked before the work."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.command_line import assert_clear, files_below

from solo_infer import evaluate
from solo_infer.diagnostics import benchmark
from solo_infer.errors import ResultError
from solo_infer.results.drawing import is_own_drawing
from solo_infer.results.writers import CocoFile, drawings_among

pytest_plugins = ["helpers.command_line_fixtures"]

ANNOTATIONS = {
    "images": [{"id": 1, "file_name": "1.png", "height": 100, "width": 150}],
    "categories": [{"id": 1, "name": "cat"}],
    "annotations": [],
}


@pytest.fixture
def inputs(photos, saved):
    """Write every kind of input; return the content of each file, to compare it afterwards."""
    Path("a.json").write_text(json.dumps(ANNOTATIONS))
    shutil.copytree(saved, "model")
    shutil.copy(photos / "1.png", "photo.png")
    os.symlink("a.json", "link.json")
    os.link("photo.png", "hard.png")
    os.symlink("photos", "album")
    return {name: Path(name).read_bytes() for name in files_below(Path("."))}


PREDICT = ["predict", "photo.png", "photos", "--model", "model", "--image-ids", "a.json"]
EVAL = ["eval", "--images", "photos", "--annotations", "a.json", "--model", "model"]
BENCHMARK = ["benchmark", "photo.png", "--model", "model"]
OVERWRITING = {
    "image": ([*PREDICT, "--no-save", "--save-json", "photo.png"], "photo.png"),
    "hard link": ([*PREDICT, "--no-save", "--save-json", "hard.png"], "photo.png"),
    "image in a folder": ([*PREDICT, "--no-save", "--save-json", "album/2.jpg"], "photos/2.jpg"),
    "image ids": ([*PREDICT, "--save-json", "link.json"], "--image-ids"),
    "weights": ([*PREDICT, "--save-json", "model/model.safetensors"], "--model"),
    "drawing": ([*PREDICT, "--save-json", "./photo_segmented.png"], "the drawing"),
    "annotations": ([*EVAL, "--save-json", "photos/../a.json"], "--annotations"),
    "model of eval": ([*EVAL, "--save-json", "model/config.json"], "--model"),
    "chart": ([*BENCHMARK, "--save-chart", "hard.png"], "IMAGE"),
    "model of benchmark": ([*BENCHMARK, "--save-chart", "model/config.json"], "--model"),
    "export": (
        [*"export model --opset 13 --input-size 64 64 --output".split(), "model/model.safetensors"],
        "MODEL",
    ),
    "convert": (["convert", "model/model.safetensors", "--output", "model"], "MODEL"),
    "convert in place": (["convert", "model", "--output", "./model/", "--classes", "cat"], "MODEL"),
}


@pytest.mark.parametrize("arguments, other", OVERWRITING.values(), ids=OVERWRITING)
def test_no_output_overwrites_an_input(run, inputs, arguments, other):
    code, out, err = run(*arguments)
    assert (code, out, run.loadings) == (1, "", [])
    assert_clear(err, "is the same file as", other)
    assert {name: Path(name).read_bytes() for name in files_below(Path("."))} == inputs


def test_eval_overwrites_no_image(run, inputs, loaded):
    for target in ("photos/1.png", "album/1.png", "photos/2.jpg"):  # the last one is not annotated
        with pytest.raises(ResultError, match="is the same file as the image"):
            evaluate(loaded, "photos", "a.json", output=target)
    assert {name: Path(name).read_bytes() for name in files_below(Path("."))} == inputs


def test_results_overwrite_no_image_in_python(inputs, loaded):
    result = loaded("photo.png")
    with pytest.raises(
        ResultError, match=r"'hard\.png' is the same file as the segmented image 'photo\.png'"
    ):
        result.save("hard.png")
    with pytest.raises(ResultError, match=r"is the same file as the segmented image 'photo\.png'"):
        with CocoFile("photo.png") as file:
            file.add(result)
    assert {name: Path(name).read_bytes() for name in files_below(Path("."))} == inputs


@pytest.mark.parametrize(
    "arguments, error",
    [
        ([*EVAL, "--save-json", "photos"], "ResultError"),
        ([*EVAL, "--save-json", "a.json/x.json"], "ResultError"),
        ([*BENCHMARK, "--save-chart", "c.xyz"], "ConfigError"),
        ([*BENCHMARK, "--save-chart", "c"], "ConfigError"),
        ([*BENCHMARK, "--save-chart", "nowhere/c.png"], "ResultError"),
        ([*BENCHMARK, "--save-chart", "photos"], "ConfigError"),
        (["export", "model", "--output", "nowhere/x.onnx", "--input-size", "64", "64"], "ExportError"),
        (["export", "model", "--output", "photos", "--input-size", "64", "64"], "ExportError"),
        (["convert", "model", "--output", "a.json"], "CacheError"),
    ],
)
def test_unwritable_outputs_are_told_before_the_work(run, inputs, arguments, error):
    if arguments[0] == "benchmark":
        pytest.importorskip("matplotlib", reason="the chart needs the extra [train]")
    code, out, err = run(*arguments)
    assert (code, out, run.loadings) == (1, "", [])
    option = next(name for name in ("--output", "--save-json", "--save-chart") if name in arguments)
    assert_clear(err, error, arguments[arguments.index(option) + 1])


def test_the_table_is_printed_even_if_the_chart_fails(run, inputs, saved, monkeypatch):
    pytest.importorskip("matplotlib", reason="the chart needs the extra [train]")

    def fail(path, write):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(benchmark, "write_whole", fail)
    common = ("benchmark", "photo.png", "--model", saved, "--runs", 1, "--warmup", 0)
    code, out, err = run(*common, "--save-chart", "c.png")
    assert code == 1 and "images/s" in out
    assert_clear(err, "ResultError", "No space left on device")


# --- Drawings of earlier runs


def test_drawings_are_not_segmented_again(run, photos, saved):
    for run_number in range(3):
        code, out, err = run("predict", "photos", "--model", saved, "--output", "photos")
        assert (code, len(out.splitlines())) == (0, 2)
        assert ("2 files left out as drawings" in err) == (run_number > 0)
        assert files_below(photos) == ["1.png", "1_segmented.png", "2.jpg", "2_segmented.jpg", "deep/1.png"]
    code, out, _ = run("predict", "photos/1_segmented.png", "--model", saved, "--no-save", "--quiet")
    assert (code, len(out.splitlines())) == (0, 1)  # one that is named is segmented


def test_only_our_drawings_are_replaced(photos, loaded):
    drawing = loaded("photos/1.png").save("drawn.jpg")
    assert (
        is_own_drawing(drawing) and not is_own_drawing("photos/1.png") and not is_own_drawing("missing.png")
    )


def test_names_of_drawings():
    paths = ["a/x.jpg", "a/x_segmented.jpg", "a/x_segmented_2.png", "a/x_segmented_segmented.jpg"]
    paths += ["a/y_segmented.jpg", "b/x_segmented.jpg", "out/x_segmented.jpg", "a/_segmented.jpg"]
    assert drawings_among(paths, "out") == [*paths[1:4], "out/x_segmented.jpg"]


# --- Sources


def test_each_real_file_is_segmented_once(run, photos, saved):
    os.symlink(".", "photos/self")
    os.symlink("1.png", "photos/same.png")
    sources = ["photos/**/*.png", "photos/self/1.png", "photos/same.png"]
    code, out, err = run("predict", *sources, "--model", saved, "--no-save")
    assert (code, err) == (0, "")
    assert [line.split(": ")[0] for line in out.splitlines()] == ["photos/1.png", "photos/deep/1.png"]


def test_standard_input_is_a_source(run, photos, saved, monkeypatch):
    from solo_infer.data import pipes

    with open(photos / "1.png", "rb") as file:
        monkeypatch.setattr(pipes, "_STDIN_DESCRIPTOR", file.fileno())
        code, out, err = run("predict", "-", "photos/2.jpg", "--model", saved)
    assert (code, err) == (0, "")
    assert [line.split(": ")[0] for line in out.splitlines()] == ["/dev/stdin", "photos/2.jpg"]
    assert files_below(Path("."))[:1] == ["2_segmented.jpg"] and Path("stdin_segmented.jpg").is_file()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_bad_pipe_does_not_stop_the_others(run, photos, saved, monkeypatch):
    monkeypatch.setenv("SOLO_INFER_TIMEOUT", "0.1")
    os.mkfifo("pipe")
    code, out, err = run("predict", "pipe", "/dev/zero", "photos/2.jpg", "--model", saved, "--no-save")
    assert (code, len(out.splitlines())) == (1, 1)
    assert_clear(err, "'pipe' sent nothing for 0.1 s", "'/dev/zero' is a device", "2 failed, 1 done")


@pytest.mark.parametrize("name", ["~tilde.png", "~nouser_of_that_name"])
def test_names_with_a_tilde(run, photos, saved, loaded, name):
    shutil.copy(photos / "1.png", name)
    code, out, err = run("predict", name, "--model", saved, "--output", "~none/out", "--save-json", "~r.json")
    assert (code, err) == (0, "")
    assert Path("~r.json").is_file()
    assert files_below(Path("~none/out")) == [f"{Path(name).stem}_segmented{Path(name).suffix or '.jpg'}"]
    assert loaded(name).save("~x.png") == Path("~x.png")


def test_an_invalid_url_with_results(run, photos, saved):
    sources = ["http://[", "http://[::1/x.png", "photos/2.jpg"]
    code, out, err = run("predict", *sources, "--model", saved, "--no-save", "--save-json", "r.json")
    assert (code, len(out.splitlines())) == (1, 1)
    assert_clear(err, "'http://[' cannot be fetched", "2 failed, 1 done")


def test_names_do_not_control_the_terminal(run, photos, saved, loaded, monkeypatch):
    shutil.copy(photos / "1.png", photos / "a\n\x1b[31mb\u202e.png")
    (photos / "bad\x1b[2J.png").write_bytes(b"x")
    names = ("cat\x1b]0;x\x07", "dog\nforged: 3 cats", "bird")
    named = replace(loaded.config, categories=replace(loaded.config.categories, names=names))
    monkeypatch.setattr(loaded, "config", named)
    code, out, err = run("predict", "photos", "--model", saved)
    assert code == 1
    for text in (out, err):
        assert all(char.isprintable() or char == "\n" for char in text)
    assert len(out.splitlines()) == 3
    assert "\\x1b[31mb\\u202e.png" in out
