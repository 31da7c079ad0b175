"""Files that ``predict`` writes besides drawings: contents, standard output, and no overwritten files."""

import contextlib
import csv
import io
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers.command_line import assert_clear, files_below, program
from PIL import Image

from solo_infer import Result
from solo_infer.cli.outputs import FILES
from solo_infer.data.coco import read_annotations, read_ground_truth
from solo_infer.errors import ResultError
from solo_infer.results.writers import CropFolder

pytest_plugins = ["helpers.command_line_fixtures"]

ALL = ["--save-coco", "r.json", "--save-dataset", "d.json", "--save-csv", "t.csv"]
ALL += ["--save-yolo", "yolo", "--save-crops", "crops", "--save-labelme", "labelme"]


def test_all_outputs_of_one_run(run, photos, saved, loaded):
    code, out, err = run("predict", "photos", "photos/deep", "--model", saved, "--no-save", *ALL)
    assert (code, len(out.splitlines())) == (0, 3)
    assert err.count("\n") == 1 and "photos/deep/1.png gets image id 3" in err
    sources = ["photos/1.png", "photos/2.jpg", "photos/deep/1.png"]
    results = {source: loaded(source) for source in sources}
    seen = {source: result.filter(0.3) for source, result in results.items()}
    assert len(json.loads(Path("r.json").read_text())) == sum(map(len, results.values()))

    data = read_annotations("d.json")
    assert [image.file_name for image in data.images] == ["1.png", "2.jpg", "deep/1.png"]
    truth = [item for items in read_ground_truth(data).values() for item in items]
    pixels = sum(int(result.masks.sum()) for result in seen.values())
    assert sum(item.area for item in truth) == pixels > 0
    with Path("t.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["score"]) for row in rows] == [s for r in seen.values() for s in r.scores.tolist()]
    assert files_below(Path("yolo")) == ["data.yaml", "labels/1.txt", "labels/1_2.txt", "labels/2.txt"]
    assert Path("yolo/labels/1_2.txt").read_text() == seen["photos/deep/1.png"].to_yolo()
    assert files_below(Path("labelme")) == ["1.json", "1_2.json", "2.json"]
    content = json.loads(Path("labelme/1.json").read_text())
    assert content == seen["photos/1.png"].to_labelme("../photos/1.png")
    crops = [name for name in files_below(Path("crops")) if name.startswith("1/")]
    expected = [(i, crop) for i, crop in enumerate(seen["photos/1.png"].to_crops()) if crop.width]
    assert len(crops) == len(expected) > 0
    for name, (index, crop) in zip(crops, expected, strict=True):
        assert name.startswith(f"1/{index:03d}_")
        with Image.open(Path("crops") / name) as image:
            assert image.tobytes() == crop.tobytes()


@pytest.mark.parametrize("min_score", [0.0, 0.6])
def test_min_score_holds_for_all_outputs(run, photos, saved, loaded, min_score):
    run("predict", "photos/1.png", "--model", saved, "--no-save", *ALL, "--min-score", min_score)
    result = loaded("photos/1.png").filter(min_score)
    nonempty = sum(bool(instance.mask.any()) for instance in result)
    assert len(json.loads(Path("r.json").read_text())) == len(result)
    assert len(json.loads(Path("d.json").read_text())["annotations"]) == nonempty
    assert len(Path("t.csv").read_text().splitlines()) == len(result) + 1
    assert len(Path("yolo/labels/1.txt").read_text().splitlines()) == nonempty
    assert len(files_below(Path("crops"))) == nonempty


def test_save_json_is_another_name_of_save_coco(run, photos, saved):
    for option in ("--save-json", "--save-coco"):
        run("predict", "photos", "--model", saved, "--no-save", option, f"{option[2:]}.json")
    assert Path("save-json.json").read_text() == Path("save-coco.json").read_text()


def test_image_ids_and_polygons_of_a_data_set(run, photos, saved):
    images = {"images": [{"id": "x", "file_name": "1.png"}]}
    Path("ids.json").write_text(json.dumps(images))
    predict = ["predict", "photos/1.png", "--model", saved, "--no-save", "--save-dataset", "d.json"]
    run(*predict, "--image-ids", "ids.json", "--polygons", "--min-score", 0)
    content = json.loads(Path("d.json").read_text())
    assert [image["id"] for image in content["images"]] == ["x"]
    assert {type(entry["segmentation"]) for entry in content["annotations"]} == {list}
    run(*predict, "--min-score", 0)
    kinds = {type(entry["segmentation"]) for entry in json.loads(Path("d.json").read_text())["annotations"]}
    assert dict in kinds  # some masks have holes


# --- Standard output


@pytest.mark.parametrize("option", [*FILES, "--save-coco"])
def test_standard_output_has_the_file_and_nothing_else(run, photos, saved, option):
    common = ["predict", "photos", "--model", saved, "--no-save"]
    (photos / "bad.jpg").write_bytes(b"not an image")
    assert run(*common, option, "file", "--quiet")[0] == 1
    code, out, err = run(*common, option, "-")
    assert code == 1
    assert_clear(err, "photos/bad.jpg", "1 failed, 2 done")
    assert out.encode() == Path("file").read_bytes()
    assert not Path("-").exists()


def test_standard_output_may_be_a_text_stream(run, photos, saved):
    common = ["predict", "photos", "--model", saved, "--no-save", "--save-dataset"]
    with contextlib.redirect_stdout(io.StringIO()) as stream:
        assert run(*common, "-")[0] == 0
    run(*common, "d.json")
    assert stream.getvalue() == Path("d.json").read_text(encoding="utf-8")


def test_from_standard_input_to_standard_output(photos, saved, loaded):
    """The real program between two pipes."""
    with open(photos / "1.png", "rb") as image:
        code, out, err = program(
            "predict", "-", "--model", saved, "--no-save", "--save-csv", "-", "--device", "cpu", stdin=image
        )
    assert (code, err) == (0, "")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert len(rows) == len(loaded("photos/1.png").filter(0.3)) > 0
    assert {row["source"] for row in rows} == {"/dev/stdin"}


def test_a_client_rebuilds_the_printed_results(run, photos, saved, loaded):
    code, out, _ = run("predict", "photos", "--model", saved, "--no-save", "--json")
    results = [Result.from_dict(values) for values in json.loads(out)]
    assert (code, len(results)) == (0, 2)
    for result in results:
        expected = loaded(result.source)
        assert np.array_equal(result.masks, expected.masks)
        assert result.categories == expected.categories and np.array_equal(result.boxes, expected.boxes)


def test_a_data_set_of_standard_input(run, photos, saved, monkeypatch):
    from solo_infer.data import pipes

    with open(photos / "1.png", "rb") as file:
        monkeypatch.setattr(pipes, "_STDIN_DESCRIPTOR", file.fileno())
        code, out, _ = run(
            "predict", "-", "photos/deep/1.png", "--model", saved, "--no-save", "--save-dataset", "-"
        )
    assert code == 0
    assert [image["file_name"] for image in json.loads(out)["images"]] == ["stdin", "1.png"]


@pytest.mark.parametrize(
    "options, message",
    [
        (["--save-csv", "-", "--json"], "--save-csv and --json would both be written to standard output"),
        (["--save-csv", "-", "--save-coco", "-"], "--save-json and --save-csv would both be written"),
        (["--polygons"], "--polygons requires --save-dataset"),
        (
            ["--image-ids", "x.json", "--save-csv", "t.csv"],
            "--image-ids requires --save-json or --save-dataset",
        ),
    ],
)
def test_options_that_exclude_each_other(run, photos, saved, options, message):
    code, out, err = run("predict", "photos", "--model", saved, *options)
    assert (code, out, run.loadings) == (2, "", [])
    assert_clear(err, message)


# --- Outputs never overwrite an input or another output


@pytest.fixture
def inputs(photos, saved):
    """Write every kind of input; return the content of each file, to compare it afterwards."""
    shutil.copytree(saved, "model")
    shutil.copy(photos / "1.png", "photo.png")
    images = [
        {"id": 1, "file_name": "1.png"},
        {"id": 2, "file_name": "2.jpg"},
        {"id": 3, "file_name": "photo.png"},
    ]
    Path("a.json").write_text(json.dumps({"images": images}))
    os.link("photo.png", "hard.png")
    os.symlink("photos", "album")
    Path("edited/labels").mkdir(parents=True)
    Path("edited/labels/2.txt").write_text("0 0 0 1 1 1 0\n")
    Path("edited/photo.json").write_text("{}")
    return {name: Path(name).read_bytes() for name in files_below(Path("."))}


PREDICT = ["predict", "photo.png", "photos", "--model", "model", "--no-save"]
IDS = ["--image-ids", "a.json", "--save-json"]
REFUSED = {
    "data set on image": (["--save-dataset", "hard.png"], "is the same file as the image"),
    "csv on image": (["--save-csv", "album/2.jpg"], "is the same file as the image"),
    "csv on weights": (["--save-csv", "model/model.safetensors"], "is the same file as --model"),
    "csv on ids": ([*IDS, "r.json", "--save-csv", "./a.json"], "is the same file as --image-ids"),
    "two files": (["--save-csv", "x", "--save-dataset", "./x"], "is the same file as --save-dataset"),
    "three files": ([*IDS, "x", "--save-csv", "photos/../x"], "is the same file as --save-json"),
    "file on yolo": (
        ["--save-csv", "y/labels/photo.txt", "--save-yolo", "y"],
        "is the same file as the label",
    ),
    "file on data.yaml": (
        ["--save-csv", "y/data.yaml", "--save-yolo", "y"],
        "is the same file as --save-csv",
    ),
    "file on labelme": (
        ["--save-dataset", "l/1.json", "--save-labelme", "l"],
        "is the same file as the label",
    ),
    "edited yolo": (["--save-yolo", "edited"], "exists, and may have been edited"),
    "edited labelme": (["--save-labelme", "edited"], "exists, and may have been edited"),
    "folder is a file": (["--save-crops", "photo.png"], "can be written to photo.png"),
    "folder below a file": (["--save-yolo", "photo.png/x"], "can be written to photo.png/x"),
    "file is a folder": (["--save-csv", "photos"], "photos is a folder"),
}


@pytest.mark.parametrize("options, message", REFUSED.values(), ids=REFUSED)
def test_outputs_are_refused_before_the_work(run, inputs, options, message):
    code, out, err = run(*PREDICT, *options)
    assert (code, out, run.loadings) == (1, "", [])
    assert_clear(err, message)
    assert {name: Path(name).read_bytes() for name in files_below(Path("."))} == inputs


def test_drawings_overwrite_no_other_output(run, photos, saved):
    code, _, err = run("predict", "photos/1.png", "--model", saved, "--save-csv", "1_segmented.png")
    assert code == 1
    assert_clear(err, "--save-csv", "is the same file as the drawing")


def test_crops_never_overwrite_a_source(run, photos, saved, loaded):
    (photos / "1").mkdir()
    name = loaded("photos/1.png").names[0]
    source = photos / "1" / f"000_{name}.png"
    shutil.copy(photos / "1.png", source)
    before = source.read_bytes()
    code, _, _ = run("predict", "photos/**/*.png", "--model", saved, "--no-save", "--save-crops", "photos")
    assert code == 0 and source.read_bytes() == before
    assert (photos / "1" / f"000_{name}_2.png").is_file()


def test_an_output_that_fails_is_reported_and_the_others_go_on(run, photos, saved, monkeypatch):
    write = CropFolder._write

    def fail(folder, result, path):
        if result.source.endswith("1.png"):
            raise ResultError("The disk is full.")
        write(folder, result, path)

    monkeypatch.setattr(CropFolder, "_write", fail)
    code, out, err = run("predict", "photos", "--model", saved, "--no-save", *ALL)
    assert code == 1
    assert_clear(err, "The disk is full", "1 failed, 1 done")
    assert len(json.loads(Path("d.json").read_text())["images"]) == 2


def test_an_interrupt_completes_the_files(run, photos, saved, monkeypatch):
    write = CropFolder._write

    def interrupt(folder, result, path):
        if result.source.endswith("2.jpg"):
            raise KeyboardInterrupt
        write(folder, result, path)

    monkeypatch.setattr(CropFolder, "_write", interrupt)
    code, _, _ = run("predict", "photos", "photos/deep", "--model", saved, "--no-save", *ALL)
    assert code == 130
    assert len(json.loads(Path("d.json").read_text())["images"]) == 2
    assert {row["image_id"] for row in json.loads(Path("r.json").read_text())} == {1, 2}
    assert Path("t.csv").read_bytes().endswith(b"\r\n")
    assert not [name for name in files_below(Path(".")) if Path(name).name.startswith(".")]
