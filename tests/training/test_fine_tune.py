"""Fine-tuning on a data set on disk, in one process and in several."""

from dataclasses import replace

import pytest
import torch
from helpers.training_runs import (
    NUTS_AND_BOLTS,
    QUICK_FINE_TUNE,
    small_start,
    train_in_two_processes,
    write_nuts_and_bolts,
)

from solo_infer import SOLO
from solo_infer.errors import ConfigError, ResultError
from solo_infer.training import CocoFiles, fine_tune
from solo_infer.training.fine_tune import require_empty_dir
from solo_infer.training.metrics_log import read_rows


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_nuts_and_bolts(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def saved_start(tmp_path_factory):
    """Directory of the initial model."""
    return small_start().save_pretrained(tmp_path_factory.mktemp("start") / "model")


def test_one_call_trains_a_model_of_the_classes_of_the_data_set(data, tmp_path):
    model = small_start()
    before = {name: tensor.clone() for name, tensor in model.network.state_dict().items()}
    run = fine_tune(
        model,
        data,
        tmp_path / "run",
        QUICK_FINE_TUNE,
        validation=data,
        max_detections=(1, 10, 200),
        device="cpu",
    )
    trained = SOLO.from_pretrained(run, device="cpu")
    categories = trained.config.categories
    assert dict(zip(categories.names, categories.ids, strict=True)) == NUTS_AND_BOLTS
    assert trained.config.thresholds.max_per_image == 200
    assert trained.config.thresholds.nms_pre >= 1000
    assert trained.config.preprocessing == model.config.preprocessing
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.network.state_dict().items())
    rows = read_rows(run / "evaluation.csv")
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert list(rows[0])[:4] == ["epoch", "iteration", "AP", "AP50"] and "AR200" in rows[0]
    assert (run / "best" / "model.safetensors").is_file()
    with pytest.raises(ConfigError, match="not an empty directory"):
        fine_tune(model, data, run, QUICK_FINE_TUNE)


@pytest.mark.parametrize("is_link", [False, True])
def test_run_never_overwrites_annotations(data, tmp_path, is_link):
    annotations = tmp_path / "mine.json" if is_link else tmp_path / "run" / "recipe.json"
    annotations.parent.mkdir(exist_ok=True)
    annotations.write_bytes(data.annotations.read_bytes())
    if is_link:
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "training.csv").symlink_to(annotations)
    with pytest.raises(ResultError, match="same file as the annotations"):
        fine_tune(
            small_start(),
            CocoFiles(data.images, annotations),
            tmp_path / "run",
            QUICK_FINE_TUNE,
            device="cpu",
            resume=True,
        )
    assert annotations.read_bytes() == data.annotations.read_bytes()


def test_selected_classes_keep_their_order_and_ids(data, tmp_path):
    files = CocoFiles(str(data.images), str(data.annotations))
    recipe = replace(QUICK_FINE_TUNE, epochs=1)
    run = fine_tune(small_start(), files, str(tmp_path), recipe, classes=["nut"], device="cpu")
    assert run == tmp_path
    categories = SOLO.from_pretrained(run, device="cpu").config.categories
    assert (categories.names, categories.ids) == (("nut",), (7,))


def test_new_runs_require_an_empty_directory(tmp_path):
    require_empty_dir(tmp_path)
    require_empty_dir(str(tmp_path / "new"))
    (tmp_path / "note.txt").write_text("other content")
    require_empty_dir(tmp_path, resume=True)
    for path in (tmp_path, str(tmp_path), tmp_path / "note.txt"):
        with pytest.raises(ConfigError, match="not an empty directory"):
            require_empty_dir(path)


def test_two_processes_train_and_evaluate_as_one(data, saved_start, tmp_path):
    recipe = replace(QUICK_FINE_TUNE, epochs=1)
    one = fine_tune(
        SOLO.from_pretrained(saved_start), data, tmp_path / "one", recipe, validation=data, device="cpu"
    )
    two, (first, second) = train_in_two_processes(saved_start, data, recipe, tmp_path)
    assert (first.stdout, second.stdout) == (f"{two}\n", "")
    assert (first.stderr + second.stderr).count("evaluation after") == 1
    for name in ("training.csv", "evaluation.csv"):
        for row, expected in zip(read_rows(two / name), read_rows(one / name), strict=True):
            for column in ("iteration", "loss", "AP", "AR10"):
                if column in expected:
                    assert float(row[column]) == pytest.approx(float(expected[column]), rel=1e-3, abs=1e-6)
