"""--min-score, --input-size and --across-classes of the commands that predict."""

import argparse
import json
from pathlib import Path

import pytest
from helpers.command_line import assert_clear
from PIL import Image

from solo_infer.cli.main import build_parser
from solo_infer.cli.options import with_settings

pytest_plugins = ["helpers.command_line_fixtures", "helpers.evaluation_fixtures"]


def instances(out):
    return [[entry["score"] for entry in image["instances"]] for image in json.loads(out)]


def test_settings_of_predict_are_those_of_a_call(run, photos, saved, loaded):
    predict = ("predict", "photos/1.png", "--model", saved, "--json")
    for options, settings in (
        ((), {}),
        (("--min-score", "0.4"), {"min_score": 0.4}),
        (("--input-size", "128"), {"input_size": 128}),
        (("--input-size", "64", "160"), {"input_size": (64, 160)}),
        (("--across-classes",), {"across_classes": True}),
        (("--across-classes", "--input-size", "96", "--min-score", "0.1"), {
            "across_classes": True, "input_size": 96, "min_score": 0.1,
        }),
    ):  # fmt: skip
        code, out, err = run(*predict, *options)
        expected = loaded("photos/1.png", **settings)
        assert (code, err) == (0, "")
        assert instances(out) == [expected.scores.tolist()]
        with Image.open("1_segmented.png") as drawing:
            assert drawing.tobytes() == expected.plot().tobytes()


def test_outputs_are_complete_while_drawings_show_high_scores(run, photos, saved, loaded):
    code, out, _ = run("predict", "photos/1.png", "--model", saved, "--json", "--save-json", "r.json")
    everything = loaded("photos/1.png")
    assert code == 0 and everything.scores[-1] < 0.3 < everything.scores[0]
    assert instances(out) == [everything.scores.tolist()]
    assert [entry["score"] for entry in json.loads(Path("r.json").read_text())] == everything.scores.tolist()
    with Image.open("1_segmented.png") as drawing:
        assert drawing.tobytes() == everything.plot(min_score=0.3).tobytes()
        assert drawing.tobytes() != everything.plot(min_score=0.0).tobytes()


def test_evaluation_uses_all_scores_unless_a_lowest_one_is_set(run, saved, data_set, tmp_path):
    common = ("eval", "--model", saved, "--images", data_set[0], "--annotations", data_set[1], "--limit", "2")
    saved_scores = []
    for options in ((), ("--min-score", "0.5"), ("--input-size", "64", "--across-classes")):
        output = tmp_path / "out.json"
        code, _, err = run(*common, "--save-json", output, *options)
        assert code == 0, err
        saved_scores.append([entry["score"] for entry in json.loads(output.read_bytes())])
    everything, high, others = saved_scores
    assert min(everything) < 0.3
    assert high == [score for score in everything if score >= 0.5] and high
    assert others and others != everything


def test_benchmark_takes_the_settings(run, photos, saved):
    options = ("--runs", "1", "--warmup", "0", "--json", "--min-score", "0.9", "--across-classes")
    code, out, err = run("benchmark", "photos/1.png", "--model", saved, *options, "--input-size", "64")
    assert code == 0, err
    (measurement,) = json.loads(out)
    assert max(measurement["input"]) == 64


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--input-size", "100"], 1, "input_size=100: expected multiples of 32, e.g. 96 x 96"),
        (["--input-size", "64", "100"], 1, "e.g. 64 x 96"),
        (["--input-size", "0"], 2, "at least 1, got '0'"),
        (["--input-size", "64", "64", "64"], 2, "expected one or two numbers, got 3"),
        (["--input-size"], 2, "--input-size"),
        (["--input-size", "99999999"], 1, "expected an integer in 1..32768"),
        (["--min-score", "2"], 2, "expected a number in 0..1"),
    ],
)
def test_invalid_settings(run, photos, saved, options, code, message):
    result, out, err = run("predict", "photos/1.png", "--model", saved, "--no-save", *options)
    assert (result, out) == (code, "")
    assert_clear(err, message)


@pytest.mark.parametrize("command", [["predict", "a.jpg"], ["eval", "--annotations", "a", "--images", "b"]])
def test_model_without_options_is_unchanged(small_model, command):
    args = build_parser().parse_args(command)
    assert isinstance(args, argparse.Namespace)
    assert with_settings(small_model, args).config == small_model.config
