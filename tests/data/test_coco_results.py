"""Reading COCO results files, and the errors for invalid ones."""

import json
import math
import tracemalloc

import pytest
from helpers.coco_sets import (
    DOG,
    HEIGHT,
    NO_MASK,
    WIDTH,
    as_detections,
    bitmap_of,
    compressed,
    content,
    write,
)

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
        *[({"segmentation": segmentation}, "expected polygons or RLE") for segmentation in NO_MASK],
        ({"segmentation": [[math.nan, 8, 38, 8, 38, 38]]}, "coordinate nan: expected a finite"),
        ({"segmentation": [[8, 8, 1e9, 8, 38, 38]]}, "coordinate 1000000000.0: expected a finite"),
        ({"segmentation": [[None, 8, 38, 8, 38, 38]]}, "coordinate None: expected a number"),
        ({"segmentation": [{"size": [HEIGHT, WIDTH], "counts": [-1, 5]}]}, "not in 0..33000"),
        ({"score": True}, '"score" is True'),
        ({"image_id": True}, "image True is not in"),
        ({"image_id": [7]}, "image .7. is not in"),
        ({"image_id": None}, "image None is not in"),
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
        ("", "not a complete COCO results file: expected a JSON list .*, at the end"),
        ("\n \n", "expected a JSON list"),
        ("[]]", "expected nothing after the list, at character 2 "),
        ('[{"a": 1}] xx', "expected nothing after the list, at character 11 .'xx'"),
        ('[{"a": 1}]\n[{"b": 1}]', "expected nothing after the list, at character 11 "),
        ('[{"a": 1}]{}', "expected nothing after the list"),
        ('[{"a": 1}],', "expected nothing after the list"),
        ('[{"a": 1}]\0', "expected nothing after the list"),
        ("[]\ufeff", "expected nothing after the list"),
        ('[{"a": 1} {"b": 1}]', "expected ',' or ']' after a detection, at character 10 "),
        ('[{"a": 1}, , {"b": 1}]', "Expecting value, at character 11 "),
        ('[{"a": 1},]', "Expecting value, at character 10 "),
        ('[, {"a": 1}]', "Expecting value, at character 1 "),
        ('[{"a": 1};{"b": 1}]', "expected ',' or ']' after a detection"),
        ('[{"a": 1}\u00a0]', "expected ',' or ']' after a detection"),
        ('{"a": 1}\n{"b": 1}', "expected a JSON list"),
        ('"text"', "expected a JSON list"),
        ('[{"a" 1}, ' + '{"b": 1},' * 1000, "Expecting ':' delimiter, at character 6 "),
        ("[" * 100_000, "nested too deeply|in the list: expected only objects"),
        ('[{"a": ' + "[" * 100_000, "nested too deeply"),
        ('[{"a": 1' + "0" * 5000 + "}]", "digits"),
        ("[NaN]", "nan in the list: expected only objects"),
        ("[null]", "None in the list: expected only objects"),
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


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be", "utf-32"])
def test_encodings(data, tmp_path, encoding):
    path = tmp_path / "detections.json"
    path.write_bytes(json.dumps(as_detections(content())).encode(encoding))
    assert sum(map(len, read_detections([path], data).values())) == 9


def test_polygons_are_detections_too(data, tmp_path):
    entries = [{**entry, "score": 0.5} for entry in content()["annotations"] if entry["id"] in (1, 3)]
    detections = read_detections([write(tmp_path / "detections.json", entries)], data)
    assert [entry.area for entry in detections[DOG]] == [content()["annotations"][2]["area"]]


@pytest.mark.parametrize("end", ["", "\n]", '{"unclosed": "'])
def test_memory_does_not_grow_with_the_file(tmp_path, monkeypatch, end):
    monkeypatch.setattr(coco_results, "_CHUNK", 1 << 14)
    path = tmp_path / "large.json"
    path.write_text("[" + ",".join(['{"counts": "' + "x" * 1000 + '"}'] * 3000) + end)
    tracemalloc.start()
    try:
        if end.endswith("]"):
            assert sum(1 for _ in iterate_list(path)) == 3000
        else:
            with pytest.raises(DataError, match="after a detection"):
                sum(1 for _ in iterate_list(path))
        assert tracemalloc.get_traced_memory()[1] < 500_000
    finally:
        tracemalloc.stop()


def test_detections_of_endless_length_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(coco_results, "_CHUNK", 1 << 10)
    monkeypatch.setattr(coco_results, "_MAX_ENTRY", 1 << 14)
    path = tmp_path / "endless.json"
    path.write_text('[{"counts": "' + "x" * 10**6)
    with pytest.raises(DataError, match="a detection is longer than 16384 characters"):
        list(iterate_list(path))


def test_messages_quote_values_short_and_escaped(data, tmp_path):
    path = tmp_path / "detections.json"
    for text in (
        '["\x1b[31m' + "x" * 10**5,
        '[{"a": 1} ' + "\u202e" * 10**5,
        json.dumps([{"\x1b": "\n" * 10**5}]),
    ):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(DataError) as caught:
            read_detections([path], data)
        assert len(str(caught.value)) < 800 and str(caught.value).isprintable()
