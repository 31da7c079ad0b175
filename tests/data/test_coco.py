"""COCO files: what is read, what is refused."""

import json
import math

import numpy as np
import pytest
from helpers.coco_sets import (
    CAT,
    DOG,
    HEIGHT,
    WIDTH,
    as_detections,
    bitmap_of,
    compressed,
    content,
    uncompressed,
    write,
)
from pycocotools import mask as rle

from solo_infer.data import coco
from solo_infer.data.coco import (
    iterate_list,
    read_annotations,
    read_detections,
    read_ground_truth,
    run_lengths,
)
from solo_infer.errors import ConfigError, DataError


@pytest.fixture
def write_annotations(tmp_path):
    return lambda values: write(tmp_path / "annotations.json", values)


@pytest.fixture
def data(write_annotations):
    return read_annotations(write_annotations(content()))


# --- Annotation files


def test_reading(data):
    assert [image.id for image in data.images] == [30, 7, 12, 99]
    assert data.images[1] == (7, "a/1.png", HEIGHT, WIDTH)
    assert data.categories.names == ("dog", "cat", "bird") and data.categories.ids == (3, 17, 40)
    assert len(data.annotations) == 9


def test_choosing(write_annotations):
    path = write_annotations(content())
    part = read_annotations(path, classes=["cat", "cat"], limit=2)
    assert [image.id for image in part.images] == [30, 7]
    assert part.categories.names == ("cat",)
    assert {entry["category_id"] for entry in part.annotations} == {CAT} and len(part.annotations) == 3
    assert part.image_ids == {30, 7, 12, 99} and part.category_ids == {3, 17, 40}
    with pytest.raises(DataError, match="No class 'Dog'. Did you mean 'dog'"):
        read_annotations(path, classes=["Dog"])
    with pytest.raises(DataError, match="no class was chosen"):
        read_annotations(path, classes=[])
    with pytest.raises(ConfigError, match="limit=0"):
        read_annotations(path, limit=0)


def test_truths(data):
    truths = read_ground_truth(data)
    assert {number: len(entries) for number, entries in truths.items()} == {3: 5, 17: 3, 40: 1}
    assert [truth.is_crowd for truth in truths[DOG]] == [False, True, False, False, False]
    crowd = truths[DOG][1]
    decoded = rle.decode({"size": [HEIGHT, WIDTH], "counts": crowd.counts})
    assert np.array_equal(decoded, bitmap_of(slice(0, 90))) and crowd.area == 90 * HEIGHT


def test_what_may_be_missing_of_an_annotation(write_annotations):
    values = content()
    for entry in values["annotations"]:
        del entry["id"], entry["area"], entry["iscrowd"]
    truths = read_ground_truth(read_annotations(write_annotations(values)))
    assert not any(truth.is_crowd for truth in truths[DOG])
    assert truths[DOG][1].area == 90 * HEIGHT


def test_text_ids(write_annotations):
    text = (
        json.dumps(content()).replace('"image_id": 7', '"image_id": "7"').replace('{"id": 7,', '{"id": "7",')
    )
    values = json.loads(text)
    with pytest.raises(DataError, match="image ids of several types"):
        read_annotations(write_annotations(values))
    for image in values["images"]:
        image["id"] = str(image["id"])
    for entry in values["annotations"]:
        entry["image_id"] = str(entry["image_id"])
    assert len(read_annotations(write_annotations(values)).annotations) == 9


def change(section, place=None, **fields):
    """Return a function that spoils an annotation file."""

    def spoil(values):
        if place is None:
            values[section] = fields.get("value")
        else:
            values[section][place].update(fields)
        return values

    return spoil


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda values: values["annotations"], "lists images, annotations, categories"),
        (change("images"), "lists images, annotations, categories"),
        (change("images", value=[]), "lists no images"),
        (change("categories", value=[]), "lists no categories"),
        (change("images", value=["1.png"]), "image '1.png': expected \"id\""),
        (change("images", 0, id=7), '"id" of images: 7 occurs more than once'),
        (change("images", 0, id=1.5), 'expected "id"'),
        (change("images", 0, file_name="a/1.png"), "\"file_name\" of images: 'a/1.png' occurs"),
        (change("images", 0, height=0), '"height" and "width"'),
        (change("images", 0, width="220"), '"height" and "width"'),
        (change("categories", 0, id="17"), 'category .* expected "id" \\(a whole'),
        (change("categories", 0, name=None), 'and "name"'),
        (change("categories", 0, name="dog"), "'dog' occurs more than once"),
        (change("categories", 0, id=3), "3 occurs more than once"),
        (change("annotations", 0, image_id=8), "annotation .*'image_id': 8.*that \"images\""),
        (change("annotations", 0, image_id=[7]), "annotation .*'image_id'"),
        (change("annotations", 0, category_id=2), "annotation .*'category_id': 2"),
        (change("annotations", value=[5]), "annotation 5: expected"),
    ],
)
def test_annotation_files_that_contradict_themselves(write_annotations, spoil, message):
    with pytest.raises(DataError, match=message):
        read_annotations(write_annotations(spoil(content())))


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"segmentation": []}, "expected polygons or RLE"),
        ({"segmentation": None}, "expected polygons or RLE"),
        ({"segmentation": [[1, 2]]}, "polygons that pycocotools does not take"),
        ({"segmentation": [["a"] * 6]}, "polygons that pycocotools does not take"),
        ({"segmentation": {"counts": "1"}}, "RLE of size None for an image of height 150, width 220"),
        ({"segmentation": {"size": [WIDTH, HEIGHT], "counts": "1"}}, r"RLE of size \[220, 150\]"),
        ({"segmentation": {"size": [HEIGHT, WIDTH], "counts": [5, 5]}}, "add up to the 33000 pixels"),
        ({"segmentation": {"size": [HEIGHT, WIDTH], "counts": [-5]}}, "no list of whole numbers"),
        ({"segmentation": {"size": [HEIGHT, WIDTH], "counts": None}}, "no list of whole numbers"),
        ({"segmentation": {"size": [HEIGHT, WIDTH], "counts": "a"}}, "damaged or cut off"),
        ({"area": "large"}, "\"area\" is 'large': expected a number"),
        ({"iscrowd": None}, '"iscrowd" is None'),
    ],
)
def test_annotations_without_a_usable_mask(write_annotations, fields, message):
    path = write_annotations(change("annotations", 4, **fields)(content()))
    with pytest.raises(DataError, match=message) as caught:
        read_ground_truth(read_annotations(path))
    assert "'id': 5" in str(caught.value)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(DataError, match="nothing.json cannot be read .FileNotFoundError"):
        read_annotations(tmp_path / "nothing.json")
    (tmp_path / "half.json").write_text('{"images": [')
    with pytest.raises(DataError, match="half.json cannot be read .JSONDecodeError"):
        read_annotations(tmp_path / "half.json")
    with pytest.raises(DataError, match="nothing.json cannot be read"):
        list(iterate_list(tmp_path / "nothing.json"))


# --- Results files


def test_detections(data, tmp_path):
    entries = as_detections(content(), [round(0.1 * place, 1) for place in range(9)])
    entries.append({**entries[0], "category_id": 1})  # a class of another data set
    first, second = write(tmp_path / "1.json", entries[:4]), write(tmp_path / "2.json", entries[4:])
    found = read_detections([first, second], data)
    assert {number: [entry.score for entry in found[number]] for number in found} == {
        3: [0.2, 0.4, 0.5, 0.6, 0.7],
        17: [0.0, 0.1, 0.3],
        40: [0.8],
    }
    assert found[DOG][1].area == 90 * HEIGHT
    assert found[DOG][1].counts == compressed(bitmap_of(slice(0, 90)))["counts"].encode()


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"image_id": 8}, "image 8 is not in .*annotations.json"),
        ({"score": math.nan}, '"score" is nan: expected a number'),
        ({"score": "high"}, "expected a number"),
        ({"segmentation": {"size": [10, 10], "counts": "1"}}, "RLE of size"),
        ({"segmentation": {"size": [HEIGHT, WIDTH], "counts": "`0"}}, "add up to the 33000 pixels"),
        ({"segmentation": None}, "expected polygons or RLE"),
    ],
)
def test_detections_that_are_refused(data, tmp_path, fields, message):
    entries = as_detections(content())
    entries[3].update(fields)
    with pytest.raises(DataError, match=message):
        read_detections([write(tmp_path / "detections.json", entries)], data)


@pytest.mark.parametrize("key", ["image_id", "category_id", "score", "segmentation"])
def test_detections_that_lack_something(data, tmp_path, key):
    entries = as_detections(content())
    del entries[2][key]
    with pytest.raises(DataError, match=f"detections.json: detection .*KeyError: '{key}'"):
        read_detections([write(tmp_path / "detections.json", entries)], data)


@pytest.mark.parametrize("chunk", [1, 7, 1 << 20])
@pytest.mark.parametrize("indent", [None, 2])
def test_a_list_is_read_piece_by_piece(tmp_path, monkeypatch, chunk, indent):
    monkeypatch.setattr(coco, "_CHUNK", chunk)
    entries = [{"a": [1, {"b": "] }, süß"}]}, {}, {"c": -1.5e-3}]
    path = tmp_path / "list.json"
    path.write_text(json.dumps(entries, indent=indent, ensure_ascii=False), encoding="utf-8")
    assert list(iterate_list(path)) == entries
    path.write_text("[ \n ] ")
    assert list(iterate_list(path)) == []


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "expected a JSON list"),
        ('{"images": []}', "expected a JSON list"),
        ('[{"a": 1}, {"a"', "no complete COCO results file"),
        ('[{"a": 1}', "no complete COCO results file"),
        ('[{"a": 1}, 5]', "5 in the list: expected only objects"),
        (b"[{\xff}]", "cannot be read"),
    ],
)
def test_what_is_no_list_of_detections(tmp_path, text, message):
    path = tmp_path / "detections.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError, match=message):
        list(iterate_list(path))


# --- Run lengths


def test_run_lengths():
    random = np.random.default_rng(0)
    for density in (0.0, 0.001, 0.1, 0.5, 1.0):
        mask = np.zeros((HEIGHT, WIDTH), np.uint8)
        mask[random.uniform(size=mask.shape) < density] = 1
        counts = compressed(mask)["counts"].encode()
        assert run_lengths(counts).tolist() == uncompressed(mask)["counts"]


@pytest.mark.parametrize("counts", [b"", b"\x10", b"p", b"a", b"PPPPPPPP1"])
def test_damaged_run_lengths(counts):
    with pytest.raises(ValueError, match="damaged"):
        run_lengths(counts)
