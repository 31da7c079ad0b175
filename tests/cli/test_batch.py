"""``batch`` and ``merge`` without a cluster: resuming, refusing, and equality with ``predict``."""

import json
import os
import shutil
import sys
from pathlib import Path

import fsspec
import pytest
from helpers import inline_ray
from helpers.command_line import assert_clear, files_below

from solo_infer.errors import ClusterError, WeightsError
from solo_infer.segmenters import auto

pq = pytest.importorskip("pyarrow.parquet", reason="tables need pyarrow, of the extra ray")
pytest_plugins = ["helpers.command_line_fixtures"]


@pytest.fixture
def ray(monkeypatch, loaded, saved):
    """Replace Ray by workers in this process, which load the model as the command does."""
    from solo_infer.integrations import ray as integration

    monkeypatch.setattr(
        integration, "load_model", lambda name, thresholds=None, **options: _load(name, thresholds, options)
    )

    def _load(name, thresholds, options):
        if name != saved:
            return load_model(name, thresholds=thresholds, **options)
        return loaded if thresholds is None else loaded.with_thresholds(thresholds)

    load_model = auto.load_model
    return inline_ray.install(monkeypatch, 2, 2)


def batch(run, saved, *arguments):
    return run("batch", *arguments, "--model", saved, "--device", "cpu", "--images-per-file", "1")


def rows_in(folder):
    return [row for path in sorted(Path(folder).glob("*.parquet")) for row in pq.read_table(path).to_pylist()]


def test_files_folders_patterns_and_lists(run, ray, photos, saved):
    Path("list.txt").write_text("photos/deep/1.png\n\n  photos/2.jpg \n", encoding="utf-8")
    code, out, err = batch(run, saved, "photos/*.png", "photos", "--list", "list.txt", "--output", "out")
    assert (code, err.count("\n")) == (0, 1), err
    assert [row["uri"] for row in rows_in("out")] == ["photos/1.png", "photos/2.jpg", "photos/deep/1.png"]
    assert "1 worker with 2 threads" in err or "2 workers" in err
    assert out.startswith("3 images in ") and out.endswith(f"-> {os.path.abspath('out')}\n")


SETTINGS = {
    "plain": [],
    "score": ["--min-score", "0.4"],
    "classes": ["--classes", "dog", "cat", "--across-classes"],
    "nms": ["--nms", "greedy", "--nms-iou", "0.4"],
    "size": ["--input-size", "64", "96"],
    "tiles": ["--tile", "64", "--tile-overlap", "20"],
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_merged_outputs_equal_those_of_predict(run, ray, photos, saved, settings):
    (photos / "text.jpg").write_text("no image")
    sources = ["photos/deep", "photos", "missing.jpg"]
    saving = [
        *("--save-coco", "{}/a.json", "--save-dataset", "{}/b.json", "--save-csv", "{}/c.csv"),
        *("--save-labelme", "{}/labelme", "--save-crops", "{}/crops", "--polygons"),
    ]

    def options(folder):
        return [part.format(folder) for part in saving]

    code, _, err = run(
        "predict", *sources, "--model", saved, "--device", "cpu", "--no-save", *settings, *options("one")
    )
    assert code == 1 and "2 failed, 3 done" in err
    code, _, err = batch(run, saved, *sources, *settings, "--output", "out")
    assert code == 1 and "2 failed, 3 done" in err and "text.jpg" in err and "missing.jpg" in err
    code, out, err = run("merge", "out", *options("two"))
    assert (code, out) == (0, "") and "1 image left out" in err
    first, second = files_below(Path("one")), files_below(Path("two"))
    assert first == second and len(first) > 10
    for name in first:
        assert Path("one", name).read_bytes() == Path("two", name).read_bytes(), name


def test_merge_to_yolo_and_standard_output(run, ray, photos, saved):
    shutil.move("photos/deep/1.png", "photos/3.png")
    assert batch(run, saved, "photos", "--output", "out")[0] == 0
    predict = ["predict", "photos", "--model", saved, "--no-save", "--save-yolo", "y1", "--save-json", "-"]
    expected = run(*predict)[1]
    code, out, err = run("merge", "out", "--save-yolo", "y2", "--save-json", "-")
    assert (code, out) == (0, expected) and json.loads(out)
    for name in files_below(Path("y1")):
        assert Path("y1", name).read_bytes() == Path("y2", name).read_bytes()


def test_stopped_run_continues_where_it_was(run, ray, photos, saved):
    assert batch(run, saved, "photos/**/*", "--output", "whole")[0] == 0
    expected = {path.name: path.read_bytes() for path in Path("whole").glob("*.parquet")}
    started = []

    def stop(row):
        if len(started) == 2:
            raise KeyboardInterrupt
        started.append(row)

    ray.before_part = stop
    code, out, err = batch(run, saved, "photos/**/*", "--output", "out")
    assert code == 130 and "interrupted" in err and out.startswith("2 images in ")
    code, _, err = run("merge", "out", "--save-csv", "a.csv")
    assert code == 1
    assert_clear(err, "1 of 3 files", "are missing", "--partial")
    assert run("merge", "out", "--save-csv", "a.csv", "--partial")[0] == 0 and Path("a.csv").exists()
    times = {path: path.stat().st_mtime_ns for path in Path("out").glob("*.parquet")}
    assert len(times) == 2
    resumed = []
    ray.before_part = resumed.append
    code, _, err = batch(run, saved, "photos/**/*", "--output", "out")
    assert code == 0 and "2 of 3 images are done already" in err and len(resumed) == 1
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert {path.name: path.read_bytes() for path in Path("out").glob("*.parquet")} == expected
    ray.before_part = pytest.fail
    code, out, err = batch(run, saved, "photos/**/*", "--output", "out")
    assert (code, out) == (0, "") and "3 of 3 images are done already" in err


def test_workers_that_fail_leave_their_attempts_and_a_typed_error(run, ray, photos, saved):
    def fail(row):
        raise inline_ray.RayError("worker died: out of memory")

    ray.before_part = fail
    code, _, err = batch(run, saved, "photos", "--output", "out")
    assert code == 1
    assert_clear(err, "ClusterError", "out of memory", "run the command again to continue")
    ray.before_part = lambda row: None
    assert batch(run, saved, "photos", "--output", "out")[0] == 0


def test_errors_of_workers_keep_their_type(run, ray, photos, saved, monkeypatch):
    from solo_infer.integrations import ray as integration

    def fail(name, **options):
        raise WeightsError("no weights on this machine")

    monkeypatch.setattr(integration, "load_model", fail)
    code, _, err = batch(run, saved, "photos", "--output", "out")
    assert code == 1
    assert_clear(err, "WeightsError: no weights on this machine")


MIXED = {
    "score": (["--min-score", "0.4"], "min_score 0.4 instead of None"),
    "classes": (["--classes", "cat"], r"classes"),
    "dtype": (["--dtype", "bfloat16"], "dtype 'bfloat16' instead of 'float32'"),
    "tile": (["--tile", "64"], "tile"),
    "model": (["--model", "tiny"], "model 'tiny'"),
}


@pytest.mark.parametrize(("change", "message"), MIXED.values(), ids=MIXED)
def test_two_models_in_one_output_are_refused(run, ray, photos, saved, change, message):
    assert batch(run, saved, "photos", "--output", "out")[0] == 0
    before = {path: path.read_bytes() for path in Path("out").iterdir()}
    code, _, err = run("batch", "photos", "--model", saved, "--device", "cpu", "--output", "out", *change)
    assert code == 1
    assert_clear(err, "ResultError", "another run", message, "choose another folder")
    assert {path: path.read_bytes() for path in Path("out").iterdir()} == before


def test_errors_are_repeated_on_request(run, ray, photos, saved):
    good = (photos / "1.png").read_bytes()
    (photos / "1.png").write_bytes(b"")
    assert batch(run, saved, "photos", "--output", "out")[0] == 1
    (photos / "1.png").write_bytes(good)
    assert batch(run, saved, "photos", "--output", "out")[0] == 0
    assert [row["error"] is None for row in rows_in("out")] == [False, True]
    code, _, err = batch(run, saved, "photos", "--output", "out", "--retry-errors")
    assert code == 0 and "1 of 2 images are done already" in err
    assert [row["error"] for row in rows_in("out")] == [None, None]


def test_object_store(run, ray, photos, saved):
    files = fsspec.filesystem("memory")
    files.store.clear()
    for path in photos.glob("*.*"):
        files.pipe_file(f"/bucket/{path.name}", path.read_bytes())
    assert batch(run, saved, "memory://bucket", "--output", "memory://runs/one")[0] == 0
    assert run("merge", "memory://runs/one", "--save-coco", "a.json")[0] == 0
    predict = ["predict", "memory://bucket", "--model", saved, "--no-save", "--save-coco", "b.json"]
    assert run(*predict)[0] == 0
    assert Path("a.json").read_bytes() == Path("b.json").read_bytes() and len(
        json.loads(Path("a.json").read_text())
    )
    assert batch(run, saved, "memory://bucket/*.png", "--output", Path("out").absolute().as_uri())[0] == 0
    assert len(rows_in("out")) == 1
    files.store.clear()


def test_workers_and_threads(run, ray, photos, saved):
    arguments = ["batch", "photos", "--model", saved, "--device", "cpu", "--images-per-file", "1"]
    assert run(*arguments, "--output", "out", "--workers", "2")[0] == 0
    (call,) = ray.calls
    assert call["concurrency"] == (2, 2) and call["num_cpus"] == 2 and call["num_gpus"] is None
    assert call["runtime_env"]["env_vars"]["OMP_NUM_THREADS"] == "2"
    code, _, err = run(*arguments, "--output", "other", "--workers", "5")
    assert code == 1
    assert_clear(err, "ClusterError", "5 workers need one CPU each", "have 4", "--workers")


def test_missing_ray_is_named(run, photos, saved, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    code, _, err = run("batch", "photos", "--model", saved, "--output", "out")
    assert code == 1 and not Path("out").exists()
    assert_clear(err, ClusterError.__name__, "pip install 'solo-infer[ray]'")


def test_images_without_pyarrow(run, ray, photos, saved, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    code, _, err = run("batch", "photos", "--model", saved, "--output", "out")
    assert code == 1
    assert_clear(err, "pip install 'solo-infer[ray]'")


USAGE = {
    "no source": (["batch", "--output", "out"], 2, "expected a SOURCE or --list FILE"),
    "no output": (["batch", "photos"], 2, "--output"),
    "no workers": (["batch", "photos", "--output", "out", "--workers", "0"], 2, "at least 1"),
    "overlap": (["batch", "photos", "--output", "out", "--tile-overlap", "3"], 2, "requires --tile"),
    "no list": (
        ["batch", "--list", "missing.txt", "--output", "out"],
        1,
        "--list 'missing.txt' cannot be read",
    ),
    "a video": (["batch", "clip.mp4", "--output", "out"], 1, "is a video"),
    "no image": (["batch", "missing.jpg", "--output", "out"], 1, "does not exist"),
    "no format": (["merge", "photos"], 2, "expected an output"),
    "no run": (["merge", "photos", "--save-csv", "a.csv"], 1, "is not the output of a run"),
    "no folder": (["merge", "missing", "--save-csv", "a.csv"], 1, "is not the output of a run"),
    "ids": (["merge", "photos", "--save-csv", "a.csv", "--image-ids", "a.json"], 2, "--image-ids requires"),
    "two on stdout": (["merge", "photos", "--save-csv", "-", "--save-json", "-"], 2, "standard output"),
}


@pytest.mark.parametrize(("arguments", "expected", "message"), USAGE.values(), ids=USAGE)
def test_misuse(run, ray, photos, arguments, expected, message):
    Path("clip.mp4").write_bytes(b"x")
    code, out, err = run(*arguments)
    assert (code, out) == (expected, "")
    assert_clear(err, message)
    assert not Path("out").exists()


@pytest.mark.parametrize("target", ["photos/1.png", "out/part-000000.parquet", "out/_manifest.json"])
def test_merge_overwrites_no_input(run, ray, photos, saved, target):
    assert batch(run, saved, "photos", "--output", "out")[0] == 0
    before = Path(target).read_bytes()
    code, _, err = run("merge", "out", "--save-csv", target)
    assert code == 1 and Path(target).read_bytes() == before
    assert_clear(err, "is the same file as")
