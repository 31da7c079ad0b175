"""``solo-infer eval``."""

import json

import pytest
import torch
from helpers.coco_sets import CAT, DOG

from solo_infer.evaluation.evaluate import evaluate_detections

pytest_plugins = ["helpers.command_line_fixtures", "helpers.evaluation_fixtures"]


def test_evaluation_and_scoring_of_its_detections(run, saved, data_set, tmp_path):
    images, annotations = data_set
    common = (
        "--annotations",
        annotations,
        "--max-detections",
        "5",
        "20",
        "--classes",
        "cat",
        "dog",
        "--limit",
        "1",
    )
    output = tmp_path / "out.json"
    code, out, err = run("eval", "--model", saved, "--images", images, *common, "--save-json", output)
    assert code == 0 and "Error" not in err
    assert "AR5" in out and "AR20" in out and "images in" in out and "bird" not in out
    assert {entry["category_id"] for entry in json.loads(output.read_bytes())} <= {CAT, DOG}
    code, out, err = run("eval", "--detections", output, *common, "--json")
    assert (code, err) == (0, "")
    evaluation = json.loads(out)
    expected = evaluate_detections(
        annotations, output, max_detections=(5, 20), limit=1, classes=("cat", "dog")
    )
    assert evaluation["metrics"] == expected.to_dict()["metrics"]
    assert evaluation["timings"] is None


def test_options_are_passed_on(run, saved, data_set, tmp_path):
    code, out, err = run(
        *("eval", "--model", saved, "--images", data_set[0], "--annotations", data_set[1], "--limit", "2"),
        *("--device", "cpu", "--dtype", "bfloat16", "--batch-size", "2", "--json"),
    )
    assert code == 0
    assert json.loads(out)["images"] == json.loads(out)["timings"]["images"] == 2
    assert run.loadings == [(saved, {"device": torch.device("cpu"), "dtype": "bfloat16", "engine": None})]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--annotations", "a.json"], "one of the arguments --images --detections is required"),
        (["--images", "here"], "--annotations"),
        (["--images", "a", "--detections", "b", "--annotations", "c"], "not allowed with"),
        (
            ["--detections", "b", "--annotations", "c", "--model", "m"],
            "scored without a model: remove --model\n",
        ),
        (
            ["--detections", "b", "--annotations", "c", "--save-json", "o"],
            "remove --save-json\n",
        ),
        (
            ["--detections", "b", "--annotations", "c", "--nms", "greedy", "--min-score", "0"],
            "remove --nms, --min-score\n",
        ),
        (
            ["--detections", "b", "--annotations", "c", "--across-classes", "--input-size", "64"],
            "remove --across-classes, --input-size\n",
        ),
        (["--detections", "b", "--annotations", "c", "--max-detections", "0"], "at least 1, got '0'"),
        (["--detections", "b", "--annotations", "c", "--limit", "none"], "at least 1, got 'none'"),
    ],
)
def test_usage_errors(run, arguments, message):
    code, out, err = run("eval", *arguments)
    assert (code, out) == (2, "") and message in err


def test_unreadable_detections(run, data_set, tmp_path):
    code, out, err = run("eval", "--detections", tmp_path / "none.json", "--annotations", data_set[1])
    assert (code, out) == (1, "") and "DataError" in err and "none.json cannot be read" in err
