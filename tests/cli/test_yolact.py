"""The commands with a YOLACT model."""

import json

import pytest
from helpers.command_line import assert_clear
from helpers.training_sets import instance, rectangle, write_set

from solo_infer import YOLACT, YOLACTPostprocessConfig, load_model
from solo_infer.diagnostics import benchmark

pytest_plugins = ["helpers.command_line_fixtures"]


@pytest.fixture
def yolact(small_yolacts, tmp_path):
    model = small_yolacts["mmdet"].with_thresholds(YOLACTPostprocessConfig(max_per_image=10))
    return model.save_pretrained(tmp_path / "yolact")


def test_predict(run, yolact, photos, tmp_path):
    code, out, err = run("predict", "photos/1.png", "--model", yolact, "--save-json", "results.json")
    assert (code, err) == (0, "") and "_segmented" in out
    entries = json.loads((photos.parent / "results.json").read_text())
    assert 0 < len(entries) <= 10 and {"segmentation", "score", "category_id"} <= set(entries[0])
    code, out, _ = run("predict", "photos/1.png", "--model", yolact, "--json", "--classes", "dog")
    (image,) = json.loads(out)
    assert code == 0 and {instance["name"] for instance in image["instances"]} == {"dog"}


def test_predict_with_another_nms(run, yolact, photos):
    code, out, err = run("predict", "photos/1.png", "--model", yolact, "--nms", "greedy")
    assert (code, out) == (1, "")
    assert_clear(err, "ConfigError", "this model has a fixed NMS")


def test_eval(run, yolact, tmp_path):
    instances = [instance("a.png", "cat", rectangle(10, 20, 60, 70), bbox=[10, 20, 50, 50], area=2500)]
    images, annotations = write_set(tmp_path, {"a.png": (90, 120)}, {"cat": 1}, instances)
    code, out, _ = run("eval", "--model", yolact, "--images", images, "--annotations", annotations, "--json")
    assert code == 0
    evaluation = json.loads(out)
    assert evaluation["images"] == 1 and [row["name"] for row in evaluation["per_class"]] == ["cat"]


def test_convert_and_info(run, yolact, tmp_path):
    code, out, _ = run("convert", yolact, "--output", tmp_path / "cats", "--classes", "cat")
    assert (code, out) == (0, f"{tmp_path / 'cats'}\n")
    cats = load_model(tmp_path / "cats", device="cpu")
    assert isinstance(cats, YOLACT) and cats.config.categories.names == ("cat",)
    code, out, _ = run("info", tmp_path / "cats", "--json")
    facts = json.loads(out)
    total = sum(parameter.numel() for parameter in cats.network.parameters())
    assert (facts["family"], facts["architecture"]["variant"]) == ("yolact", "mmdet")
    assert facts["parameters"]["total"] == total
    assert set(facts["parameters"]) == {"backbone", "neck", "bbox_head", "mask_head", "total"}


def test_benchmark(run, yolact, photos):
    options = ("--runs", 1, "--warmup", 0, "--json")
    code, out, _ = run("benchmark", "photos/1.png", "--model", yolact, *options)
    assert code == 0
    (measurement,) = json.loads(out)
    assert set(measurement["stages"]) == set(benchmark.STAGES)
    assert measurement["candidates"] > measurement["instances"] == 10 and measurement["input"] == [96, 96]


def test_published_models(run):
    code, out, _ = run("models")
    assert code == 0 and "authors_yolact_r101_700" in out and "MIT" in out
    code, out, _ = run("info", "authors_yolact_r101", "--json")
    facts = json.loads(out)
    assert facts["parameters"]["total"] == 50_157_071 and facts["published"]["license"] == "MIT"
