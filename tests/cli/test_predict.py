"""``solo-infer predict``: in this process, and once as a real program."""

import argparse
import json
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from helpers.command_line import assert_clear, files_below, program
from helpers.faulty_server import forbid_sockets
from PIL import Image

from solo_infer import SOLO
from solo_infer.cli.options import with_nms
from solo_infer.errors import ConfigError, ResultError
from solo_infer.results.writers import CocoFile, ImageFolder
from solo_infer.runtime import environment
from solo_infer.weights import manifest

pytest_plugins = ["helpers.command_line_fixtures"]


def test_as_a_program(photos, saved):
    (photos / "bad.jpg").write_bytes(b"not an image")
    code, out, err = program(
        "predict", "photos", "--model", saved, "--output", "out", "--save-json", "r.json"
    )
    assert code == 1
    assert [line.split(": ")[0] for line in out.splitlines()] == ["photos/1.png", "photos/2.jpg"]
    assert_clear(err, "photos/bad.jpg", "1 failed, 2 done")
    assert files_below(Path("out")) == ["1_segmented.png", "2_segmented.jpg"]
    assert {entry["image_id"] for entry in json.loads(Path("r.json").read_text())} == {1, 2}


def test_each_image_is_segmented_once(run, photos, saved):
    sources = ["photos/2.jpg", "photos", "./photos/1.png", "photos/**/*.png"]
    code, out, err = run("predict", *sources, "--model", saved, "--output", "out")
    assert (code, err) == (0, "")
    assert [line.split(": ")[0] for line in out.splitlines()] == [
        "photos/2.jpg",
        "photos/1.png",
        "photos/deep/1.png",
    ]
    assert files_below(Path("out")) == ["1_segmented.png", "1_segmented_2.png", "2_segmented.jpg"]
    with Image.open("out/1_segmented_2.png") as drawing:
        assert drawing.size == (90, 100)


def test_summary_line_counts_the_drawn_instances(run, photos, saved, loaded):
    _, out, _ = run("predict", "photos/1.png", "--model", saved, "--min-score", 0.6)
    result = loaded("photos/1.png")
    drawn = result.filter(0.6)
    assert 0 < len(drawn) < len(result)
    for name in set(drawn.names):
        assert f"{drawn.names.count(name)} {name}" in out
    assert out.endswith("-> 1_segmented.png\n")
    with Image.open("1_segmented.png") as drawing:
        assert drawing.tobytes() == drawn.plot().tobytes()


def test_boxes(run, photos, saved, loaded):
    run("predict", "photos/1.png", "--model", saved, "--boxes")
    with Image.open("1_segmented.png") as drawing:
        assert drawing.tobytes() == loaded("photos/1.png").filter(0.3).plot(boxes=True).tobytes()


def test_no_save(run, photos, saved):
    before = files_below(Path("."))
    code, out, _ = run("predict", "photos", "--model", saved, "--no-save", "--output", "out")
    assert code == 0 and len(out.splitlines()) == 2 and "->" not in out
    assert files_below(Path(".")) == before and not Path("out").exists()


@pytest.mark.parametrize("min_score", [None, 0.0, 0.7])
def test_min_score_of_the_coco_file(run, photos, saved, loaded, min_score):
    option = [] if min_score is None else ["--min-score", min_score]
    run("predict", "photos/1.png", "--model", saved, "--save-json", "r.json", "--no-save", *option)
    scores = [entry["score"] for entry in json.loads(Path("r.json").read_text())]
    expected = loaded("photos/1.png")
    assert expected.scores[-1] < 0.3
    assert scores == expected.filter(min_score or 0.0).scores.tolist()


def test_classes(run, photos, saved):
    predict = ("predict", "photos", "--model", saved, "--save-json", "r.json")
    code, out, _ = run(*predict, "--classes", "dog", "bird")
    assert code == 0 and "cat" not in out
    assert {entry["category_id"] for entry in json.loads(Path("r.json").read_text())} == {2, 3}


def test_other_classes_do_not_count_towards_the_limits(run, photos, saved, loaded):
    """The limits nms_pre and max_per_image apply to the selected classes only."""
    code, out, _ = run(
        "predict", "photos/1.png", "--model", saved, "--json", "--no-save", "--classes", "bird"
    )
    (image,) = json.loads(out)
    expected = loaded.only("bird")("photos/1.png")
    assert code == 0
    assert [instance["score"] for instance in image["instances"]] == expected.scores.tolist()
    assert len(expected) > len(loaded("photos/1.png").filter(classes="bird"))


@pytest.mark.parametrize("min_score", [None, 0.7])
def test_json_on_standard_output(run, photos, saved, loaded, min_score):
    option = [] if min_score is None else ["--min-score", min_score]
    (photos / "bad.jpg").write_bytes(b"not an image")
    code, out, err = run("predict", "photos", "--model", saved, "--json", "--save-json", "r.json", *option)
    assert code == 1
    assert_clear(err, "photos/bad.jpg", "1 failed, 2 done")
    images = json.loads(out)
    assert [image["source"] for image in images] == ["photos/1.png", "photos/2.jpg"]
    for image in images:
        expected = loaded(image["source"]).filter(min_score or 0.0)
        assert image == json.loads(expected.to_json())
    assert files_below(Path(".")).count("1_segmented.png") == 1
    scores = [instance["score"] for image in images for instance in image["instances"]]
    assert scores == [entry["score"] for entry in json.loads(Path("r.json").read_text())]


def test_json_without_images(run, saved):
    code, out, err = run("predict", "missing.jpg", "--model", saved, "--json")
    assert (code, out) == (1, "[]\n")
    assert_clear(err, "missing.jpg", "1 failed, 0 done")


def test_greedy_nms(run, photos, saved, loaded):
    predict = ["predict", "photos/1.png", "--model", saved, "--no-save", "--save-json", "r.json"]
    for options, settings in (
        (["--nms", "greedy"], {"nms": "greedy"}),
        (["--nms", "greedy", "--nms-iou", 0.1], {"nms": "greedy", "nms_iou": 0.1}),
        (["--nms", "matrix"], {}),
    ):
        assert run(*predict, *options)[0] == 0
        expected = loaded("photos/1.png", thresholds=replace(loaded.config.thresholds, **settings))
        scores = [entry["score"] for entry in json.loads(Path("r.json").read_text())]
        assert scores == expected.scores.tolist()
    code, out, err = run(*predict, "--nms-iou", 0.1)
    assert (code, out) == (1, "")
    assert_clear(err, "--nms-iou requires greedy NMS: add --nms greedy")


def test_nms_of_another_family():
    other = SimpleNamespace(config=SimpleNamespace(thresholds=None))
    assert with_nms(other, argparse.Namespace(nms=None, nms_iou=None)) is other
    with pytest.raises(ConfigError, match="are for SOLO models"):
        with_nms(other, argparse.Namespace(nms="greedy", nms_iou=None))


def test_batch_size_does_not_change_results(run, photos, saved):
    for size in (1, 3):
        sources = ["photos", "photos/deep"]
        run("predict", *sources, "--model", saved, "--save-json", f"{size}.json", "--batch-size", size)
    assert Path("1.json").read_text() == Path("3.json").read_text()


def test_coco_file_loads_in_pycocotools(run, photos, saved, loaded):
    from pycocotools.coco import COCO

    images = {"2.jpg": (400, 120), "photos/1.png": (7, 150), "deep/1.png": (8, 90)}
    truth = {
        "images": [
            {"id": number, "file_name": name, "height": 100, "width": width}
            for name, (number, width) in images.items()
        ],
        "categories": [{"id": 1 + label, "name": name} for label, name in enumerate(("cat", "dog", "bird"))],
        "annotations": [],
    }
    Path("truth.json").write_text(json.dumps(truth))
    run(
        "predict",
        "photos",
        "photos/deep",
        "--model",
        saved,
        "--save-json",
        "r.json",
        "--image-ids",
        "truth.json",
    )
    results = COCO("truth.json").loadRes("r.json")
    for name, number in (("photos/1.png", 7), ("photos/2.jpg", 400), ("photos/deep/1.png", 8)):
        annotations = results.loadAnns(results.getAnnIds(imgIds=[number]))
        expected = loaded(name)
        assert [annotation["score"] for annotation in annotations] == expected.scores.tolist()
        np.testing.assert_array_equal(
            results.annToMask(annotations[0]).astype(bool), expected.masks[0].numpy()
        )


def test_unreadable_images_are_reported_and_skipped(run, photos, saved):
    (photos / "0.jpg").write_bytes(b"")
    (photos / "3.png").write_bytes((photos / "1.png").read_bytes()[:500])
    sources = ["photos", "missing.jpg", "photos/*.webp", "photos/deep"]
    code, out, err = run("predict", *sources, "--model", saved, "--save-json", "r.json")
    assert code == 1
    assert len(out.splitlines()) == 3
    assert_clear(err, "photos/0.jpg", "photos/3.png", "missing.jpg", "photos/*.webp", "4 failed, 3 done")
    assert len({entry["image_id"] for entry in json.loads(Path("r.json").read_text())}) == 3


@pytest.mark.parametrize("source", ["missing.jpg", "empty", "empty/*", "missing/*.jpg"])
def test_sources_without_images(run, saved, tmp_path, monkeypatch, source):
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    code, out, err = run("predict", source, "--model", saved, "--save-json", "r.json")
    assert (code, out) == (1, "")
    assert_clear(err, source, "1 failed, 0 done")
    assert run.loadings == []
    assert not Path("r.json").exists()


def test_unknown_class_fails_before_the_first_image(run, photos, saved, monkeypatch):
    monkeypatch.setattr(SOLO, "stream", None)
    code, out, err = run(
        "predict", "photos", "--model", saved, "--save-json", "r.json", "--classes", "cat", "dgo"
    )
    assert (code, out) == (1, "")
    assert_clear(err, "ResultError: No class 'dgo'. Did you mean 'dog'?")
    assert not Path("r.json").exists()


def test_unknown_model(run, photos):
    code, out, err = run("predict", "photos", "--model", "decopled_r50_3x")
    assert (code, out) == (1, "")
    assert_clear(err, "No model 'decopled_r50_3x'", "Did you mean 'decoupled_r50_3x'")


def test_device_is_passed_on(run, photos, saved):
    code, _, err = run("predict", "photos", "--model", saved, "--device", "cuda:999")
    assert run.loadings[0][1]["device"] == "cuda:999"
    assert code == 0  # the fixture ignores the device


@pytest.mark.parametrize(
    "options", [["--output", "file/out"], ["--save-json", "file/r.json"], ["--save-json", "photos"]]
)
def test_output_errors_come_before_the_model_is_loaded(run, photos, saved, options):
    Path("file").write_text("not a folder")
    code, out, err = run("predict", "photos", "--model", saved, *options)
    assert (code, out) == (1, "")
    assert_clear(err, "ResultError", options[1])
    assert run.loadings == []
    assert Path("file").read_text() == "not a folder"


def test_unwritable_drawing_does_not_stop_the_others(run, photos, saved):
    Path("out/1_segmented.png").mkdir(parents=True)
    code, out, err = run("predict", "photos", "--model", saved, "--output", "out", "--save-json", "r.json")
    assert code == 1
    assert len(out.splitlines()) == 1
    assert_clear(err, "Cannot write 'out/1_segmented.png'", "1 failed, 1 done")
    assert {entry["image_id"] for entry in json.loads(Path("r.json").read_text())} == {1, 2}


def test_drawings_never_overwrite_a_source(run, photos, saved):
    data = (photos / "1.png").read_bytes()
    (photos / "1_segmented.png").write_bytes(data)
    code, _, _ = run("predict", "photos", "--model", saved, "--output", "photos")
    assert code == 0
    assert (photos / "1_segmented.png").read_bytes() == data
    assert (photos / "1_segmented_2.png").is_file()


@pytest.mark.parametrize(
    "images, message",
    [
        (None, "truth.json cannot be read"),
        ([{"id": 1, "file_name": "1.png"}], "'photos/2.jpg' is not"),
    ],
)
def test_image_ids_that_do_not_match(run, photos, saved, images, message):
    if images is not None:
        Path("truth.json").write_text(json.dumps({"images": images}))
    code, out, err = run(
        "predict", "photos", "--model", saved, "--save-json", "r.json", "--image-ids", "truth.json"
    )
    assert (code, out) == (1, "")
    assert_clear(err, message)
    assert run.loadings == []


def test_interruption_keeps_finished_images(run, photos, saved, monkeypatch):
    add = ImageFolder.add

    def interrupt(folder, result):
        if result.source.endswith("2.jpg"):
            raise KeyboardInterrupt
        return add(folder, result)

    monkeypatch.setattr(ImageFolder, "add", interrupt)
    code, out, err = run("predict", "photos", "photos/deep", "--model", saved, "--save-json", "r.json")
    assert (code, len(out.splitlines())) == (130, 1)
    assert err.endswith("solo-infer: interrupted\n")
    assert {entry["image_id"] for entry in json.loads(Path("r.json").read_text())} == {1, 2}


def test_error_leaves_no_coco_file(run, photos, saved, monkeypatch):
    def fail(coco, result):
        raise ResultError("The disk is full.")

    monkeypatch.setattr(CocoFile, "add", fail)
    code, _, err = run("predict", "photos", "--model", saved, "--save-json", "r.json")
    assert code == 1
    assert_clear(err, "ResultError: The disk is full.")
    assert not [path for path in Path(".").iterdir() if path.name != "photos"]


def test_offline_opens_no_socket(run, photos, saved, monkeypatch):
    forbid_sockets(monkeypatch)
    code, out, err = run("predict", "photos/1.png", "http://127.0.0.1:9/x.png", "--model", saved, "--offline")
    assert (code, len(out.splitlines())) == (1, 1)
    assert_clear(err, "OfflineError", "http://127.0.0.1:9/x.png", "1 failed, 1 done")
    code, _, err = run("predict", "photos/1.png", "--model", "solo_r50_3x", "--offline")
    assert code == 1
    assert_clear(err, "OfflineError: Offline mode is on, and solo_r50_3x is not on this machine")
    assert environment.OFFLINE not in os.environ


def test_offline_restores_the_environment(run, photos, saved, monkeypatch):
    monkeypatch.setenv(environment.OFFLINE, "0")
    run("predict", "photos/1.png", "--model", saved, "--offline", "--no-save")
    assert os.environ[environment.OFFLINE] == "0"


def test_non_ascii_names(run, photos, saved, monkeypatch):
    odd = os.fsdecode(b"z\xe9hl.png")  # invalid UTF-8
    for name in ("süß 犬.png", odd, "[1]*.png"):
        (photos / name).write_bytes((photos / "1.png").read_bytes())
    code, out, err = run(
        "predict", "photos/süß 犬.png", f"photos/{odd}", "photos/[1]*.png", "--model", saved, "--output", "ö"
    )
    assert (code, err) == (0, "")
    assert "photos/süß 犬.png" in out and "z\\udce9hl.png" in out
    written = files_below(Path("ö"))
    assert written == sorted(
        ["[1]*_segmented.png", os.fsdecode(b"z\xe9hl_segmented.png"), "süß 犬_segmented.png"]
    )


def test_home_is_expanded_in_output_paths(run, photos, saved, monkeypatch):
    monkeypatch.setenv("HOME", os.getcwd())
    code, out, _ = run(
        "predict", "~/photos/1.png", "--model", saved, "--output", "~/out", "--save-json", "~/out/r.json"
    )
    assert code == 0
    assert files_below(Path("out")) == ["1_segmented.png", "r.json"]
    assert not Path("~").exists()


def test_progress_is_shown_on_terminals_only(run, photos, saved):
    for number in range(10, 16):
        (photos / f"{number}.png").write_bytes((photos / "1.png").read_bytes())
    code, out, err = run("predict", "photos", "--model", saved, "--no-save")
    assert (code, err, len(out.splitlines())) == (0, "", 8)


def test_default_model_and_loading_options(run, photos, monkeypatch):
    run("predict", "photos/1.png", "--offline", "--dtype", "bfloat16")
    (name, options) = run.loadings[0]
    assert name == manifest.DEFAULT_MODEL
    assert (options["device"], options["dtype"]) == ("auto", "bfloat16")


def test_tiles(run, photos, saved, loaded):
    code, out, _ = run("predict", "photos/1.png", "--model", saved, "--no-save", "--json", "--tile", 64)
    assert code == 0
    (printed,) = json.loads(out)
    assert printed["instances"] == loaded("photos/1.png", tile=(64, 16)).to_dict()["instances"] != []
    arguments = ("predict", "photos/1.png", "--model", saved, "--tile", 64, "--tile-overlap", 32)
    code, out, _ = run(*arguments, "--no-save", "--json", "--save-json", "r.json")
    (printed,) = json.loads(out)
    expected = loaded("photos/1.png", tile=(64, 32))
    assert printed["instances"] == expected.to_dict()["instances"]
    written = json.loads(Path("r.json").read_text())
    assert [entry["segmentation"] for entry in written] == [mask["mask"] for mask in printed["instances"]]
    assert run(*arguments)[0] == 0
    with Image.open("1_segmented.png") as drawing:
        assert drawing.size == (150, 100)


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--tile-overlap", 32), 2, "--tile-overlap requires --tile"),
        (
            ("--tile", 64, "--tile-overlap", 40),
            1,
            "overlap=40: expected at most half of the size",
        ),
        (("--tile", 32), 1, "size=32: expected a tile of at least 64 pixels"),
    ],
)
def test_invalid_tiles_are_refused_before_the_model_is_loaded(run, photos, saved, options, code, message):
    result, _, err = run("predict", "photos", "--model", saved, *options)
    assert result == code and message in err and "Traceback" not in err
    assert run.loadings == []
