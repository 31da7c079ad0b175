"""Reading of annotation files: classes, skipped instances, covered classes, errors."""

import logging

import numpy as np
import pytest
from helpers.training_sets import (
    ANIMALS,
    change_json,
    compressed,
    instance,
    rectangle,
    write_animals,
    write_set,
)

from solo_infer.errors import ConfigError, DataError
from solo_infer.training.annotation_index import PackedBytes, read_index


@pytest.fixture
def files(tmp_path):
    return write_animals(tmp_path)


def test_packed_bytes():
    packed = PackedBytes([b"one", b"", b"three"])
    assert len(packed) == 3
    assert [packed[index] for index in range(3)] == [b"one", b"", b"three"]


@pytest.mark.parametrize("convert", [str, lambda path: path])
def test_index_of_a_file(files, convert):
    folder, path = files
    index = read_index(convert(folder), convert(path))
    assert (index.classes, index.category_ids) == (("cat", "dog"), (3, 7))  # in the order of the ids
    assert len(index) == 2
    assert index.instance_counts.tolist() == [2, 1]
    assert index.labels.tolist() == [1, 0, 0] and index.iscrowd.tolist() == [False] * 3
    assert index.shapes.tolist() == [[40, 60], [30, 20]]
    assert index.labelled.all()
    assert [index.name(image) for image in range(2)] == ["a.png", "b.png"]
    assert index.path(1) == str(folder.resolve() / "b.png")
    assert [list(index.instances(image)) for image in range(2)] == [[0, 1], [2]]


def test_selected_classes_give_the_labels(files):
    index = read_index(*files, classes=["dog"])
    assert (index.classes, index.category_ids) == (("dog",), (7,))
    assert index.labels.tolist() == [0] and index.instance_counts.tolist() == [1, 0]
    assert read_index(*files, classes=["dog", "cat"]).labels.tolist() == [0, 1, 1]


def test_classes_missing_in_the_file_are_not_labeled(files):
    index = read_index(*files, classes=["zebra", "dog", "cat"])
    assert index.labels.tolist() == [1, 2, 2] and index.category_ids == ()
    assert index.labelled.tolist() == [[False, True, True]] * 2


def test_image_records_may_list_their_labeled_classes(tmp_path):
    sizes = {"a.png": (40, 60), "b.png": (40, 60), "c.png": (40, 60)}
    instances = [instance(name, category, rectangle(10, 5, 30, 25)) for name in sizes for category in ANIMALS]
    records = {"a.png": {"labelled_category_ids": [3]}, "c.png": {"labelled_category_ids": []}}
    files = write_set(tmp_path, sizes, ANIMALS, instances, records=records)
    index = read_index(*files)
    assert index.labelled.tolist() == [[True, False], [True, True], [False, False]]
    assert index.instance_counts.tolist() == [1, 2, 0]  # the dogs of a.png may be incomplete
    change_json(files[1], lambda content: content["images"][0].update(labelled_category_ids=[4]))
    with pytest.raises(DataError, match=r"labelled_category_ids.*\[4\].*category ids"):
        read_index(*files)


@pytest.mark.parametrize(
    "entries",
    [
        {"segmentation": []},
        {"segmentation": [[1, 1, 20, 20]]},
        {"segmentation": rectangle(70, 5, 90, 25)},
        {"segmentation": compressed(np.zeros((40, 60), bool))},
        {"area": 0},
        {"bbox": [60, 5, 20, 20]},
        {"bbox": [-20, 5, 20, 20]},
        {"bbox": [10, 5, 0.5, 20]},
    ],
)
def test_instances_without_a_visible_mask_are_skipped(files, entries, caplog):
    change_json(files[1], lambda content: content["annotations"][0].update(entries))
    with caplog.at_level(logging.INFO):
        index = read_index(*files)
    assert index.labels.tolist() == [0, 0] and index.instance_counts.tolist() == [1, 1]
    assert "1 of 3 instances skipped" in caplog.text


def test_file_with_only_boxes_is_rejected(files):
    def drop_masks(content):
        for entry in content["annotations"]:
            entry["segmentation"] = []

    change_json(files[1], drop_masks)
    with pytest.raises(DataError, match="none of 3 annotations has a mask.*from a data set of boxes"):
        read_index(*files)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"segmentation": compressed(np.ones((20, 30), bool))}, r"annotation 0 of image 100.*\[20, 30\].*40"),
        ({"segmentation": None}, "annotation 0 .*segmentation"),
        ({"bbox": [1, 2]}, r"annotation 0 .*bbox.*\[1, 2\].*width"),
        ({"category_id": 99}, "category_id"),
    ],
)
def test_errors_name_the_annotation(files, entries, message):
    change_json(files[1], lambda content: content["annotations"][0].update(entries))
    with pytest.raises(DataError, match=message):
        read_index(*files)


def test_errors_name_missing_and_damaged_files(files):
    folder, path = files
    with pytest.raises(DataError, match="other.json"):
        read_index(folder, folder / "other.json")
    with pytest.raises(DataError, match="No folder .*photos"):
        read_index(folder / "photos", path)
    (folder / "b.png").unlink()
    with pytest.raises(DataError, match="1 of 2 images .*'b.png'"):
        read_index(folder, path)
    path.write_text("{")
    with pytest.raises(DataError, match="set.json"):
        read_index(folder, path)


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (["dogs", "bird"], r"no category 'dogs' \(did you mean 'dog'\?\).*cat, dog"),
        (["cat", "Dog"], r"'Dog' \(did you mean 'dog'\?\)"),
        (["cat", "d_og"], r"'d_og' \(did you mean 'dog'\?\)"),
        (["horse"], "no category 'horse'"),
    ],
)
def test_misspelled_classes_are_rejected_with_suggestions(files, classes, message):
    with pytest.raises(DataError, match=message):
        read_index(*files, classes=classes)


def test_similar_classes_are_warned_about(files, caplog):
    read_index(*files, classes=["cat", "dogs"])
    assert "'dogs' (did you mean 'dog'?)" in caplog.text
    caplog.clear()
    read_index(*files, classes=["cat", "dog", "dogs"])
    assert not caplog.text  # "dog" is used


@pytest.mark.parametrize("classes", ["cat", [], ["cat", "cat"], [3]])
def test_classes_must_be_different_names(files, classes):
    with pytest.raises(ConfigError, match="classes="):
        read_index(*files, classes=classes)
