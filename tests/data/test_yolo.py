"""Data sets in YOLO format: descriptions, images, label files."""

import os

import numpy as np
import pytest
import yaml
from helpers.yolo_sets import SQUARE, TRIANGLE, write_nuts_and_bolts, write_yolo_set
from PIL import Image
from pycocotools import mask as coco

from solo_infer.data.coco import read_annotations, read_ground_truth
from solo_infer.data.yolo import find_split, read_description, read_yolo
from solo_infer.errors import DataError, SoloInferError


def test_polygons_become_pixels_of_the_image(tmp_path):
    path = write_yolo_set(
        tmp_path,
        {"images/train/a.jpg": [f"1 {SQUARE}"], "images/train/b.png": [f"0 {TRIANGLE}", f"1 {SQUARE}"]},
    )
    folder, content = read_yolo(path)
    assert folder == str(tmp_path / "images" / "train")
    data = read_annotations(content)
    assert [(image.file_name, image.height, image.width) for image in data.images] == [
        ("a.jpg", 90, 120),
        ("b.png", 90, 120),
    ]
    assert (data.categories.names, data.categories.ids) == (("nut", "bolt"), (0, 1))
    assert [annotation.category_id for annotation in data.annotations] == [1, 0, 1]
    pixels = [12, 9, 72, 9, 72, 54, 12, 54]
    assert data.annotations[0].segmentation == [pytest.approx(pixels)]
    truth = read_ground_truth(data)[1][0]
    mask = coco.decode({"size": [90, 120], "counts": truth.counts})
    expected = np.zeros((90, 120), np.uint8)
    expected[9:54, 12:72] = 1
    assert np.array_equal(mask, expected)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("names: [a, b]", ("a", "b")),
        ("names:\n  - a\n  - b", ("a", "b")),
        ("names: {1: b, 0: a}", ("a", "b")),
        ("names:\n  0: no\n  1: 1.0", ("no", "1.0")),
        ("names: [yes, 007]\nnc: 2", ("yes", "007")),
        ("nc: 2", ("class_0", "class_1")),
    ],
)
def test_names(tmp_path, names, expected):
    path = tmp_path / "data.yaml"
    path.write_text(f"train: x\n{names}\n")
    assert read_description(path).names == expected


LABELS = {"set/images/train/a.jpg": [f"0 {SQUARE}"], "set/images/train/deep/b.jpg": [f"1 {SQUARE}"]}
FILES = ["a.jpg", "deep/b.jpg"]


@pytest.mark.parametrize(
    "description",
    [
        "path: set\ntrain: images/train",
        "path: {root}/set\ntrain: images/train",
        "path: {root}/moved/elsewhere\ntrain: set/images/train",
        "train: set/images/train",
        "train: {root}/set/images/train",
        "train: [set/images/train/deep, set/images/train/a.jpg]",
        "train: ../set/images/train",
        "train: list.txt",
        "path: set\ntrain: ../list.txt",
        "train: [list.txt, list.txt]",
    ],
)
def test_places_of_images(tmp_path, description):
    text = description.format(root=tmp_path) + "\nnames: [nut, bolt]\n"
    path = write_yolo_set(tmp_path, LABELS, text)
    lines = ["./set/images/train/a.jpg", "", str(tmp_path / "set/images/train/deep/b.jpg")]
    (tmp_path / "list.txt").write_text("\r\n".join(lines))
    folder, content = read_yolo(path)
    images = [os.path.join(folder, image["file_name"]) for image in content.content["images"]]
    assert sorted(images) == [str(tmp_path / "set/images/train" / name) for name in FILES]
    assert len(content.content["annotations"]) == 2


def test_path_may_be_relative_to_the_working_directory(tmp_path, monkeypatch):
    path = write_yolo_set(tmp_path, LABELS, "path: set\ntrain: images/train\nnames: [nut, bolt]\n")
    (tmp_path / "configs").mkdir()
    moved = path.rename(tmp_path / "configs" / "data.yaml")
    monkeypatch.chdir(tmp_path)
    assert len(find_split(read_description(moved), "train")) == 2


@pytest.mark.parametrize(
    ("image", "label"),
    [
        ("images/train/a.jpg", "labels/train/a.txt"),
        ("train/images/a.jpg", "train/labels/a.txt"),
        ("images/images/a.v1.jpg", "images/labels/a.v1.txt"),
        ("images/a.jpg", "images/a.txt"),
        ("photos/a.JPG", "photos/a.txt"),
    ],
)
def test_places_of_labels(tmp_path, image, label):
    description = f"train: {os.path.dirname(image)}\nnames: [nut]\n"
    path = write_yolo_set(tmp_path, {image: None}, description)
    (tmp_path / label).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / label).write_text(f"0 {SQUARE}")
    assert len(read_yolo(path)[1].content["annotations"]) == 1


def test_images_without_labels_are_background(tmp_path):
    labels = {"images/train/a.jpg": [f"0 {SQUARE}"], "images/train/b.jpg": None, "images/train/c.jpg": []}
    content = read_yolo(write_yolo_set(tmp_path, labels))[1].content
    assert (len(content["images"]), len(content["annotations"])) == (3, 1)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_encodings(tmp_path, encoding):
    path = write_nuts_and_bolts(tmp_path)
    for file in [path, *tmp_path.rglob("*.txt")]:
        file.write_bytes(file.read_text().replace("nut", "Mutter-Größe").encode(encoding))
    content = read_yolo(path)[1].content
    assert content["categories"][0]["name"] == "Mutter-Größe" and len(content["annotations"]) == 6


def test_exif_orientation_counts(tmp_path):
    path = write_yolo_set(tmp_path, {"images/train/a.jpg": [f"0 {SQUARE}"]})
    with Image.open(tmp_path / "images/train/a.jpg") as image:
        exif = image.getexif()
        exif[0x0112] = 6
        image.save(tmp_path / "images/train/a.jpg", exif=exif)
    image = read_yolo(path)[1].content["images"][0]
    assert (image["height"], image["width"]) == (120, 90)


def test_boxes_are_left_out_with_a_warning(tmp_path, caplog):
    path = write_yolo_set(tmp_path, {"images/train/a.jpg": ["0 0.5 0.5 0.2 0.2", f"1 {SQUARE}"]})
    data = read_annotations(read_yolo(path)[1])
    truth = read_ground_truth(data)
    assert [len(truth[number]) for number in (0, 1)] == [0, 1]
    assert "1 of 2 instances skipped: 1 without a mask" in caplog.text


def test_data_sets_of_boxes_are_refused(tmp_path):
    path = write_yolo_set(tmp_path, {"images/train/a.jpg": ["0 0.5 0.5 0.2 0.2"]})
    with pytest.raises(DataError, match=r"data\.yaml: none of 1 annotations.*Masks cannot be read"):
        read_ground_truth(read_annotations(read_yolo(path)[1]))


def test_repeated_lines_count_once(tmp_path, caplog):
    path = write_yolo_set(tmp_path, {"images/train/a.jpg": [f"0 {SQUARE}", f"0  {SQUARE} ", f"1 {SQUARE}"]})
    assert len(read_yolo(path)[1].content["annotations"]) == 2
    assert "1 repeated lines" in caplog.text


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (f"2 {SQUARE}", r"class number is '2': expected an integer in 0\.\.1"),
        (f"-1 {SQUARE}", "class number is '-1'"),
        (f"0.5 {SQUARE}", "class number is '0.5'"),
        (f"nan {SQUARE}", "class number is 'nan'"),
        (f"inf {SQUARE}", "class number is 'inf'"),
        (f"nut {SQUARE}", "'nut' is not a number"),
        (f"0_1 {SQUARE}", "'0_1' is not a number"),
        ("0", "0 numbers after the class number"),
        ("0 0.5 0.5 0.2", "3 numbers"),
        ("0 0.5 0.5 0.2 0.2 0.9", "5 numbers"),
        (f"0 {SQUARE} 0.5", "9 numbers"),
        ("0 12 9 72 9 72 54", "12.0 is not a fraction of the image's size"),
        ("0 0.1 0.1 nan 0.1 0.5 0.5", "nan is not a fraction"),
        ("0 0.1 0.1 1e400 0.1 0.5 0.5", "inf is not a fraction"),
        ("0 0.1 0.1 -0.2 0.1 0.5 0.5", "-0.2 is not a fraction"),
        ("\0" * 40, "is not a number"),
    ],
)
def test_malformed_labels(tmp_path, line, message):
    path = write_yolo_set(tmp_path, {"images/train/a.jpg": [f"0 {SQUARE}", line]})
    with pytest.raises(DataError, match=rf"a\.txt, line 2: .*{message}") as caught:
        read_yolo(path)
    assert len(str(caught.value)) < 1000 and str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not the data.yaml"),
        ("[" * 100_000, "cannot be read"),
        ("- a\n- b", "is not the data.yaml"),
        ("train: [", "cannot be read"),
        ("a: \0", "cannot be read"),
        ("train: images/train", '"names" is None'),
        ("train: images/train\nnames: []", '"names" is'),
        ("train: images/train\nnames: nut", '"names" is'),
        ("train: images/train\nnames: [[a]]", '"names" is'),
        ("train: images/train\nnames: ['']", '"names" is'),
        ("train: images/train\nnames: {0: a, 2: b}", "class numbers"),
        ("train: images/train\nnames: {x: a}", "class numbers"),
        ("train: images/train\nnames: {0: a, 00: b}", "class numbers"),
        ("train: images/train\nnames: {[0]: a}", "cannot be read"),
        ("train: images/train\nnames: [a, b]\nnc: 3", '"nc" is'),
        ("train: images/train\nnames: [a, b]\nnc: [2]", '"nc" is'),
        ("train: images/train\nnc: 999999999", '"names" is'),
        ("train: {a: b}\nnames: [a]", '"train" is'),
        ("train: [[a]]\nnames: [a]", '"train" is'),
        ("path: [a]\ntrain: images/train\nnames: [a]", '"path" is'),
        ("train: nowhere\nnames: [nut, bolt]", "does not exist"),
        ("train: https://example.com/set.zip\nnames: [nut, bolt]", "does not exist"),
        ("train: labels\nnames: [nut, bolt]", '"train" has no images'),
        ("val: images/train\nnames: [nut, bolt]", "has no 'train': expected one of its splits: val"),
        ("names: [nut, bolt]", "has no split"),
        ("train: lost.txt\nnames: [nut, bolt]", "2 of 3 images do not exist: 'lost/1.jpg'"),
        ("train: binary.txt\nnames: [nut, bolt]", "cannot be read"),
        ("train: damaged\nnames: [nut, bolt]", "1 of 1 images cannot be read"),
        ("train: unlabelled\nnames: [nut, bolt]", "there is no label file"),
        ("names: &a [*a]\ntrain: images/train", "cannot be read"),
        ("names: !!python/object/apply:os.getcwd []\ntrain: images/train", '"names" is'),
    ],
)
def test_malformed_descriptions(tmp_path, text, message):
    path = write_yolo_set(tmp_path, {"images/train/a.jpg": [f"0 {SQUARE}"], "unlabelled/a.jpg": None}, text)
    (tmp_path / "lost.txt").write_text("images/train/a.jpg\nlost/1.jpg\nlost/2.jpg")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xd8\xff\xe0" * 10)
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "a.jpg").write_bytes(b"nothing")
    with pytest.raises(DataError, match=message) as caught:
        read_yolo(path)
    assert str(path.parent) in str(caught.value) and len(str(caught.value)) < 2000


def test_repeated_class_names_are_refused(tmp_path):
    path = write_nuts_and_bolts(tmp_path, "train: images/train\nnames: [nut, nut]\n")
    with pytest.raises(DataError, match="'nut' occurs more than once"):
        read_annotations(read_yolo(path)[1])


@pytest.mark.parametrize("kind", ["folder", "large", "dangling", "encoding"])
def test_label_files_that_cannot_be_read(tmp_path, kind):
    path = write_yolo_set(tmp_path, {"images/train/a.jpg": []})
    label = tmp_path / "labels/train/a.txt"
    label.unlink()
    if kind == "folder":
        label.mkdir()
    elif kind == "dangling":
        label.symlink_to("nowhere")
    elif kind == "large":
        with label.open("wb") as file:
            file.truncate(2**27)
    else:
        label.write_bytes(b"\xff\xd8\xff\xe0" * 10)
    with pytest.raises(DataError, match=r"a\.txt cannot be read"):
        read_yolo(path)


def test_missing_description(tmp_path):
    with pytest.raises(DataError, match="data.yaml cannot be read"):
        read_yolo(tmp_path / "data.yaml")


def test_folders_that_link_to_themselves(tmp_path):
    path = write_nuts_and_bolts(tmp_path)
    (tmp_path / "images/train/again").symlink_to(tmp_path / "images")
    assert len(find_split(read_description(path), "val")) == 2


def test_random_descriptions_and_labels_give_data_or_an_error(tmp_path):
    path = write_nuts_and_bolts(tmp_path)
    description, label = path.read_bytes(), tmp_path / "labels/train/0.txt"
    lines = label.read_bytes()
    random = np.random.default_rng(0)
    for _ in range(150):
        for file, content in ((path, description), (label, lines)):
            damaged = bytearray(content)
            for position in random.integers(0, len(damaged), random.integers(0, 4)):
                damaged[position] = random.integers(0, 256)
            file.write_bytes(damaged)
        try:
            read_ground_truth(read_annotations(read_yolo(path)[1]))
        except SoloInferError as error:
            assert str(tmp_path) in str(error)


def test_values_are_read_as_text(tmp_path):
    path = write_nuts_and_bolts(tmp_path)
    values = yaml.safe_load("train: images/train\nnames: [on, 0x10, 2020-01-01, ~, null]")
    assert values["names"] != ["on", "0x10", "2020-01-01", "~", "null"]  # of the safe loader
    path.write_text("train: images/train\nnames: [on, 0x10, 2020-01-01, ~, null]\n")
    assert read_description(path).names == ("on", "0x10", "2020-01-01", "~", "null")
