"""Suggestions for unknown options and commands."""

import pytest
from helpers.command_line import assert_clear

from solo_infer.cli.main import COMMANDS, build_parser

pytest_plugins = ["helpers.command_line_fixtures"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["predict", "a.jpg", "--conf", "0.5"], "--conf. Did you mean '--min-score'?"),
        (["predict", "a.jpg", "--conf=0.5"], "--conf=0.5. Did you mean '--min-score'?"),
        (["predict", "--conf", "0.5", "a.jpg"], "Did you mean '--min-score'?"),
        (["predict", "a.jpg", "-conf", "0.5"], "Did you mean '--min-score'?"),
        (["predict", "a.jpg", "--score-thr", "0.5"], "'--min-score'"),
        (["predict", "a.jpg", "--score_threshold", "0.5"], "'--min-score'"),
        (["predict", "a.jpg", "--imgsz", "640"], "'--input-size'"),
        (["predict", "a.jpg", "--weights", "a.pth"], "'--model'"),
        (["predict", "a.jpg", "--agnostic-nms"], "'--across-classes'"),
        (["predict", "a.jpg", "--half"], "'--dtype'"),
        (["predict", "a.jpg", "--iou", "0.5"], "'--nms-iou'"),
        (["predict", "a.jpg", "--min_score", "0.5"], "'--min-score'"),
        (["predict", "a.jpg", "--min-scor", "0.5"], "'--min-score'"),
        (["predict", "a.jpg", "--outpt", "x"], "'--output'"),
        (["predict", "--source", "a.jpg"], "passed without an option: solo-infer predict photo.jpg"),
        (["predict", "a.jpg", "--opset", "11"], "--opset is an option of 'export'."),
        (["predict", "a.jpg", "--annotations", "x"], "is an option of 'eval' and 'train'."),
        (["predict", "a.jpg", "--zzzzz"], "'solo-infer predict --help' lists the options."),
        (["eval", "--anotations", "a", "--imges", "b"], "--anotations --imges. Did you mean '--annotations'"),
        (["eval", "--images", "a", "--annotations", "b", "--threshold", "1"], "'--min-score'"),
        (["export", "tiny", "--ouput", "x.onnx"], "'--output'"),
        (["info", "tiny", "--imgsz", "64"], "'--input-size'"),
        (["train", "--batch", "2"], "'--batch-size'"),
        (["download", "tiny", "--out", "x"], "'--output'"),
        (["models", "--jsn"], "'--json'"),
        (["doctor", "--verbos"], "'--verbose'"),
        (["verify", "--weights", "x"], "'--model'"),
        (["convert", "a", "--halff"], "unrecognized arguments: --halff"),
        (["models", "stray"], "unrecognized arguments: stray"),
        (["evel"], "unknown command 'evel'. Did you mean 'eval'?"),
        (["Predict"], "Did you mean 'predict'?"),
        (["detect", "a.jpg"], "Did you mean 'predict'?"),
        (["val"], "Did you mean 'eval'?"),
        (["gradio"], "Did you mean 'demo'?"),
        (["demo", "--weights", "a.pth"], "'--model'"),
        (["list"], "Did you mean 'models'?"),
        (["street.jpg"], "Did you mean 'solo-infer predict street.jpg'?"),
        (["xyzzy"], "Commands: predict, batch, "),
        (["--model", "tiny", "predict"], "--model. Options follow the command: solo-infer COMMAND --model"),
        (["a\x1b[31m"], "unknown command"),
    ],
)
def test_suggestions(run, arguments, message):
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert_clear(err, message)
    assert "\x1b" not in err


@pytest.mark.parametrize("name", COMMANDS)
def test_every_mistyped_option_is_recognized(run, name):
    parser = build_parser().commands[name]
    for option in parser.options():
        mistyped = option[:-1] + "q"
        if len(option) > 6:
            _, _, err = run(name, mistyped)
            assert f"unrecognized arguments: {mistyped}. Did you mean" in err and repr(option) in err


@pytest.mark.parametrize("name", COMMANDS)
def test_every_mistyped_command_is_recognized(run, name):
    _, _, err = run(name[:-1] + "q")
    assert f"Did you mean {name!r}?" in err


def test_values_that_start_with_dashes_and_help_are_left_alone(run):
    assert build_parser().parse_args(["predict", "a.jpg", "--classes=--odd"]).classes == ["--odd"]
    assert build_parser().parse_args(["predict", "--", "--odd.jpg", "-"]).sources == ["--odd.jpg", "-"]
    assert build_parser().parse_args(["predict", "-"]).sources == ["-"]
    code, out, _ = run("predict", "--conf", "1", "--help")
    assert code == 0 and out.startswith("usage: solo-infer predict")
