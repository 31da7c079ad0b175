"""Reading COCO results files, and the errors for invalid ones."""

import json
import math

import pytest
from helpers.coco_sets import DOG, HEIGHT, WIDTH, as_detections, bitmap_of, compressed, content, write

from solo_infer.data import coco_results
from solo_infer.data.coco import read_annotations
from solo_infer.data.coco_results import iterate_list, read_detections
from solo_infer.errors import DataError


@pytest.fixture
def data(tmp_path):
    return read_annotations(write(tmp_path / "annotations.json", content()))


def test_read_detections(data, tmp_path):
    entries = as_detections(content(), [round(0.1 * index, 1) for index in range(9)])
    entries.append({**entries[0], "category_id": 1})  # a class of another data set
    first, second = write(tmp_path / "1.json", entries[:4]), write(tmp_path / "2.json", entries[4:])
    detections = read_detections([first, str(second)], data)
    assert {number: [entry.score for entry in detections[number]] for number in detections} == {
        3: [0.2, 0.4, 0.5, 0.6, 0.7],
        17: [0.0, 0.1, 0.3],
        40: [0.8],
    }
    assert detections[DOG][1].area == 90 * HEIGHT
    assert detections[DOG][1].counts == compressed(bitmap_of(slice(0, 90)))["counts"].encode()


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"image_id": 8}, "image 8 is not in .*annotations.json"),
        ({"score": math.nan}, '"score" is nan: expected a finite number'),
        ({"score": 10**400}, "expected a finite number"),
        ({"score": "high"}, "expected a finite number"),
        ({"segmentation": {"size": [10, 10], "counts": "1"}}, "RLE of size"),
        ({"segmentation": {"size": [HEIGHT, WIDTH], "counts": "`0"}}, "add up to the 33000 pixels"),
        ({"segmentation": None}, "expected polygons or RLE"),
    ],
)
def test_invalid_detection_raises_error(data, tmp_path, fields, message):
    entries = as_detections(content())
    entries[3].update(fields)
    with pytest.raises(DataError, match=message):
        read_detections([write(tmp_path / "detections.json", entries)], data)


@pytest.mark.parametrize("key", ["image_id", "category_id", "score", "segmentation"])
def test_detection_with_missing_key_raises_error(data, tmp_path, key):
    entries = as_detections(content())
    del entries[2][key]
    with pytest.raises(DataError, match=f"detections.json: detection .*KeyError: '{key}'"):
        read_detections([write(tmp_path / "detections.json", entries)], data)


@pytest.mark.parametrize("chunk", [1, 7, 1 << 20])
@pytest.mark.parametrize("indent", [None, 2])
def test_list_is_read_in_chunks(tmp_path, monkeypatch, chunk, indent):
    monkeypatch.setattr(coco_results, "_CHUNK", chunk)
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
        ('[{"a": 1}, {"a"', "not a complete COCO results file"),
        ('[{"a": 1}', "not a complete COCO results file"),
        ('[{"a": 1}, 5]', "5 in the list: expected only objects"),
        (b"[{\xff}]", "cannot be read"),
    ],
)
def test_invalid_list_raises_error(tmp_path, text, message):
    path = tmp_path / "detections.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError, match=message):
        list(iterate_list(path))


def test_missing_file_raises_error(tmp_path):
    with pytest.raises(DataError, match="nothing.json cannot be read"):
        list(iterate_list(tmp_path / "nothing.json"))


def test_detections_of_unknown_classes_only_raise_error(data, tmp_path):
    entries = [{**entry, "category_id": 1} for entry in as_detections(content())]
    with pytest.raises(DataError, match="No detection is of a category of .*annotations.json"):
        read_detections([write(tmp_path / "detections.json", entries)], data)
    assert read_detections([write(tmp_path / "empty.json", [])], data) == {3: [], 17: [], 40: []}
