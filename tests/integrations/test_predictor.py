"""``integrations.ray.Predictor`` called with batches of plain data."""

import pickle
import threading

import numpy as np
import pytest

from solo_infer import ConfigError, ImageError, ResultError, WeightsError, load_image, load_model
from solo_infer.integrations import ray as integration
from solo_infer.integrations.ray import Predictor
from solo_infer.segmenters.fingerprint import fingerprint

pytest.importorskip("pyarrow", reason="tables need pyarrow, of the extra ray")
pytest_plugins = ["helpers.command_line_fixtures"]

NAMES = ["1.png", "2.jpg", "deep/1.png"]


@pytest.fixture
def paths(photos):
    return [str(photos / name) for name in NAMES]


@pytest.fixture
def predictor(saved):
    return Predictor(saved, device="cpu")


def expected_instances(model, source):
    return model(source).to_dict(categories=False)["instances"]


@pytest.mark.parametrize("column", ["path", "bytes", "image"])
@pytest.mark.parametrize("kind", ["numpy", "list", "arrow"])
def test_columns_of_read_images_and_read_binary_files(predictor, loaded, paths, column, kind):
    import pyarrow as pa

    values = {
        "path": paths,
        "bytes": [open(path, "rb").read() for path in paths],
        "image": [load_image(path).pixels for path in paths],
    }
    batch = {"path": paths, column: values[column]}
    if kind == "numpy":
        batch = {name: np.array([*items, None], object)[:-1] for name, items in batch.items()}
    if kind == "arrow":
        batch["image"] = [pixels.tolist() for pixels in batch.pop("image")] if column == "image" else None
        batch = pa.table({name: items for name, items in batch.items() if items is not None})
    rows = predictor(batch).to_pylist()
    assert [row["uri"] for row in rows] == paths
    for row, path in zip(rows, paths, strict=True):
        result = loaded(path)
        assert (row["height"], row["width"]) == result.image_size and row["error"] is None
        assert row["instances"] == expected_instances(loaded, path) and len(row["instances"]) > 3


def test_equal_images_in_one_array(predictor, loaded, photo):
    batch = {"image": np.stack([photo[:100, :120], photo[50:150, :120]])}
    rows = predictor(batch).to_pylist()
    assert [row["instances"] for row in rows] == [expected_instances(loaded, x) for x in batch["image"]]
    assert [row["uri"] for row in rows] == ["", ""]


def test_bad_images_are_rows_with_their_errors(predictor, loaded, paths, tmp_path):
    (tmp_path / "text.jpg").write_text("no image")
    bad = [str(tmp_path / "text.jpg"), str(tmp_path / "missing.jpg"), "s3://", ""]
    names = [bad[0], paths[0], bad[1], bad[2], paths[1], bad[3]]
    rows = predictor({"path": names}).to_pylist()
    assert [row["uri"] for row in rows] == names
    assert [row["error"] is None for row in rows] == [False, True, False, False, True, False]
    assert "is not an image" in rows[0]["error"] and "does not exist" in rows[2]["error"]
    for index in (0, 2, 3, 5):
        assert (rows[index]["width"], rows[index]["height"], rows[index]["instances"]) == (None, None, [])
    for index in (1, 4):
        assert rows[index]["instances"] == expected_instances(loaded, names[index])


@pytest.mark.parametrize("value", [None, 1.5, b"", b"text", np.zeros((2, 3, 3)) + 9])
def test_value_that_is_no_image(predictor, value):
    column = np.empty(1, object)
    column[0] = value
    (row,) = predictor({"bytes": column}).to_pylist()
    assert row["error"] and row["instances"] == []


def test_batch_of_bad_images_has_the_schema_of_others(predictor, paths):
    bad, good = predictor({"path": ["missing.jpg"]}), predictor({"path": paths[:1]})
    assert bad.schema == good.schema


def test_other_columns_are_kept(predictor, paths):
    batch = {"path": np.array(paths), "split": np.array(["a", "b", "c"]), "weight": np.arange(3)}
    rows = predictor(batch).to_pylist()
    assert [(row["split"], row["weight"]) for row in rows] == [("a", 0), ("b", 1), ("c", 2)]
    assert "path" not in rows[0]


@pytest.mark.parametrize("batch", [{}, {"url": ["a.jpg"]}, ["a.jpg"], "a.jpg", None])
def test_batch_without_images_is_refused(predictor, batch):
    with pytest.raises(ImageError, match="expected"):
        predictor(batch)


def test_model_is_loaded_once_in_the_first_call(monkeypatch, predictor, loaded, saved, paths):
    loadings = []
    monkeypatch.setattr(integration, "load_model", lambda *args, **options: loadings.append(args) or loaded)
    copy = pickle.loads(pickle.dumps(predictor))
    assert loadings == []
    threads = [threading.Thread(target=copy, args=({"path": paths[:1]},)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert loadings == [(saved,)]
    assert len(pickle.dumps(copy)) == len(pickle.dumps(predictor)) < 10_000


@pytest.mark.parametrize(
    "options",
    [
        {"min_score": 0.4},
        {"input_size": 64},
        {"across_classes": True},
        {"tile": (64, 16)},
        {"batch_size": 3},
        {"readers": 1},
    ],
    ids=str,
)
def test_options_of_a_call(saved, loaded, paths, options):
    call = {name: value for name, value in options.items() if name not in ("readers", "batch_size")}
    rows = Predictor(saved, device="cpu", **options)({"path": paths}).to_pylist()
    for row, path in zip(rows, paths, strict=True):
        assert row["instances"] == loaded(path, **call).to_dict(categories=False)["instances"]


def test_classes_and_thresholds(saved, loaded, paths):
    thresholds = loaded.config.thresholds
    rows = Predictor(saved, classes=["dog"], thresholds=thresholds)({"path": paths}).to_pylist()
    expected = [expected_instances(loaded.only("dog"), path) for path in paths]
    assert [row["instances"] for row in rows] == expected
    assert {instance["name"] for row in rows for instance in row["instances"]} == {"dog"}


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"batch_size": 0}, ConfigError),
        ({"readers": True}, ConfigError),
        ({"tile": 3}, ConfigError),
        ({"model": 5}, ConfigError),
    ],
)
def test_invalid_options_are_refused_before_the_work(saved, options, error):
    with pytest.raises(error):
        Predictor(**{"model": saved, **options})


def test_unknown_class_is_an_error_of_the_job(saved, paths):
    with pytest.raises(ResultError, match="No class 'zebra'"):
        Predictor(saved, classes="zebra")({"path": paths})


def test_fingerprint_of_another_model_is_refused(saved, loaded, paths):
    mark = fingerprint(loaded)
    assert Predictor(saved, expected_fingerprint=mark)({"path": paths[:1]}).num_rows == 1
    with pytest.raises(WeightsError, match="is another one than that of the run"):
        Predictor(saved, min_score=0.5, expected_fingerprint=mark)({"path": paths})


def test_fingerprints(loaded, saved):
    mark = fingerprint(loaded)
    assert mark == fingerprint(load_model(saved, device="cpu")) and len(mark) == 64
    changed = load_model(saved, device="cpu")
    next(changed.network.parameters()).mul_(1.001)
    others = {
        fingerprint(model)
        for model in (
            changed,
            load_model(saved, device="cpu", dtype="bfloat16"),
            loaded.with_settings(min_score=0.5),
            loaded.with_settings(input_size=64),
        )
    }
    assert len(others) == 4 and mark not in others
