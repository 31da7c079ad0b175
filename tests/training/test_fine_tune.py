"""Fine-tuning as users do it: a data set on disk, the library's one call, the verb, several processes."""

import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from helpers.models import small_config
from helpers.paths import ROOT
from helpers.training_sets import bitmap, compressed, instance, rectangle, write_set

from solo_infer import SOLO
from solo_infer.config import PreprocessConfig
from solo_infer.errors import ConfigError
from solo_infer.training import (
    FINE_TUNE,
    PUBLISHED_1X,
    PUBLISHED_3X,
    CocoFiles,
    Recipe,
    fine_tune,
    init_model,
)
from solo_infer.training.initialization import keep_classes
from solo_infer.training.metrics_log import Scores, read_rows
from solo_infer.training.policies import augmentation, batch_size_in_pixels
from solo_infer.training.transforms import CopyPaste, Flip, LargeScaleJitter, ResizeChoice

QUICK = Recipe(epochs=2, batch_size=2, lr=0.01, warmup=2, log_every=1, save_every=100, workers=0)
PICTURES = {f"{number}.png": (90, 120) for number in range(4)}
KINDS = {"nut": 7, "bolt": 3}


def start():
    config = small_config("decoupled_light")
    return init_model(
        replace(
            config, architecture=replace(config.architecture, backbone="efficientnet_lite0", stacked_convs=1)
        )
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    instances = [
        instance(name, kind, segmentation, bbox=[left, 20, 60, 50], area=3000)
        for name, left in (("0.png", 10), ("1.png", 30), ("2.png", 50))
        for kind, segmentation in (
            ("nut", rectangle(left, 20, left + 60, 70)),
            ("bolt", compressed(bitmap(90, 120, left, 20, left + 30, 70))),
        )
    ]
    return CocoFiles(*write_set(tmp_path_factory.mktemp("data"), PICTURES, KINDS, instances))


@pytest.fixture(scope="module")
def begin(tmp_path_factory):
    return start().save_pretrained(tmp_path_factory.mktemp("begin") / "model")


def test_one_call_makes_a_model_of_the_data_sets_classes(data, tmp_path):
    model = start()
    before = {name: tensor.clone() for name, tensor in model.network.state_dict().items()}
    run = fine_tune(
        model, data, tmp_path / "run", QUICK, validation=data, max_detections=(1, 10, 200), device="cpu"
    )
    trained = SOLO.from_pretrained(run, device="cpu")
    assert dict(zip(trained.config.categories.names, trained.config.categories.ids, strict=True)) == KINDS
    assert trained.config.thresholds.max_per_image == 200
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.network.state_dict().items())
    scores = read_rows(run / "evaluation.csv")
    assert [row["epoch"] for row in scores] == ["1", "2"]
    assert list(scores[0])[:4] == ["epoch", "iteration", "AP", "AP50"] and "AR200" in scores[0]
    assert (run / "best" / "model.safetensors").is_file()
    with pytest.raises(ConfigError, match="not an empty directory"):
        fine_tune(model, data, run, QUICK)


def test_chosen_classes_keep_their_order_and_ids(data, tmp_path):
    run = fine_tune(start(), data, tmp_path, replace(QUICK, epochs=1), classes=["nut"], device="cpu")
    categories = SOLO.from_pretrained(run, device="cpu").config.categories
    assert (categories.names, categories.ids) == (("nut",), (7,))


def test_two_processes_train_and_score_as_one(data, begin, tmp_path):
    recipe = replace(QUICK, epochs=1)
    one = fine_tune(
        SOLO.from_pretrained(begin), data, tmp_path / "one", recipe, validation=data, device="cpu"
    )
    (tmp_path / "recipe.json").write_text(recipe.to_json())
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    verb = ["-m", "solo_infer", "train", "--model", begin, "--recipe", tmp_path / "recipe.json"]
    files = ["--images", data.images, "--annotations", data.annotations]
    files += ["--val-annotations", data.annotations, "--output", tmp_path / "two", "--device", "cpu"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        list(map(str, [*command, *verb, *files])), capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout == f"{tmp_path / 'two'}\n"
    assert done.stderr.count("evaluation after") == 1
    for name in ("training.csv", "evaluation.csv"):
        for row, expected in zip(read_rows(tmp_path / "two" / name), read_rows(one / name), strict=True):
            for column in ("iteration", "loss", "AP", "AR10"):
                if column in expected:
                    assert float(row[column]) == pytest.approx(float(expected[column]), rel=1e-3, abs=1e-6)


def test_scores_know_the_best_and_forget_what_is_done_again(tmp_path):
    scores = Scores(tmp_path, 0)
    for epoch, (ap, best) in enumerate(((0.2, True), (0.1, False), (0.3, True), (0.3, False)), start=1):
        scores.add(epoch, 10 * epoch, {"AP": ap, "AP50": 2 * ap})
        assert scores.last_is_best == best
    again = Scores(tmp_path, 20)
    assert [row["AP"] for row in read_rows(tmp_path / "evaluation.csv")] == ["0.2", "0.1"]
    again.add(3, 30, {"AP": 0.25, "AP50": 0.5})
    assert again.last_is_best
    Scores(tmp_path, 0)
    assert not (tmp_path / "evaluation.csv").exists()


def test_augmentation_of_the_recipes():
    preprocessing = PreprocessConfig(short_side=800, long_side=1333)
    assert augmentation(PUBLISHED_1X, preprocessing).steps == (ResizeChoice((800,), 1333), Flip())
    assert augmentation(PUBLISHED_3X, preprocessing).steps == (ResizeChoice(), Flip())
    assert batch_size_in_pixels(PUBLISHED_1X, preprocessing) is None
    bare = augmentation(replace(PUBLISHED_1X, augment="none"), preprocessing)
    assert bare.steps == (ResizeChoice((800,), 1333),) and bare.copy_paste is None
    jitter = augmentation(
        replace(FINE_TUNE, size=300, scales=(0.32, 0.64), copy_paste=0.2), PreprocessConfig(300, 500)
    )
    assert jitter.steps[-1] == LargeScaleJitter(320, (0.5, 1.0))
    assert jitter.copy_paste == CopyPaste(0.2)
    assert batch_size_in_pixels(FINE_TUNE, PreprocessConfig(300, 500)) == (320, 320)


def test_a_model_of_some_of_its_classes(small_model, photo):
    some = keep_classes(small_model, ["bird", "cat"])
    assert some.config.categories.names == ("bird", "cat")
    assert some.config.categories.ids == (3, 1)
    images = torch.zeros(1, 3, 96, 160)
    with torch.no_grad():
        expected = small_model.network(images)[1][..., [2, 0]]
        torch.testing.assert_close(some.network(images)[1], expected)
