"""Reading of annotation files: classes, skipped instances, covered classes, errors."""

import math

import numpy as np
import pytest
from helpers.coco_sets import NO_MASK
from helpers.training_sets import (
    ANIMALS,
    change_json,
    compressed,
    instance,
    rectangle,
    write_animals,
    write_set,
)

from solo_infer.data.coco import read_annotations, read_ground_truth
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
    "entries, reason",
    [
        *[({"segmentation": segmentation}, "without a mask") for segmentation in NO_MASK],
        ({"segmentation": rectangle(70, 5, 90, 25)}, "covers no pixel"),
        ({"segmentation": [[0.1, 0.1, 0.2, 0.1, 0.2, 0.2]]}, "covers no pixel"),
        ({"segmentation": compressed(np.zeros((40, 60), bool))}, "covers no pixel"),
        ({"area": 0}, '"area" of 0 or less'),
        ({"area": -900.0}, '"area" of 0 or less'),
        ({"bbox": [60, 5, 20, 20]}, '"bbox" outside of the image'),
        ({"bbox": [-20, 5, 20, 20]}, '"bbox" outside of the image'),
        ({"bbox": [10, 5, 0.5, 20]}, "thinner than a pixel"),
        ({"bbox": [30, 25, -20, -20]}, "thinner than a pixel"),
        ({"bbox": [0, 0, 0, 0]}, "thinner than a pixel"),
    ],
)
def test_instances_without_a_visible_mask_are_skipped(files, entries, reason, caplog):
    change_json(files[1], lambda content: content["annotations"][0].update(entries))
    index = read_index(*files)
    assert index.labels.tolist() == [0, 0] and index.instance_counts.tolist() == [1, 1]
    (message,) = [text for text in caplog.messages if "skipped" in text]
    assert "1 of 3 instances skipped: 1 with" in message and reason in message
    assert "no instance of dog: training cannot learn it" in caplog.text


def test_file_with_only_boxes_is_rejected(files):
    def drop_masks(content):
        for entry in content["annotations"]:
            entry["segmentation"] = []

    change_json(files[1], drop_masks)
    with pytest.raises(
        DataError, match="none of 3 annotations can be used: 3 without a mask.*a data set of boxes"
    ):
        read_index(*files)


@pytest.mark.parametrize(
    "entries, message",
    [
        ({"area": 0}, '3 with an "area" of 0 or less. Correct "area", or remove it'),
        ({"bbox": [0.1, 0.1, 0.5, 0.5]}, '3 with a "bbox" outside of .*x, y, width and height in pixels'),
        (
            {"segmentation": [[0.1, 0.1, 0.5, 0.1, 0.5, 0.5]]},
            "3 with a mask that covers no pixel.*as fractions",
        ),
    ],
)
def test_file_without_usable_instances_is_rejected_with_the_reason(files, entries, message):
    change_json(files[1], lambda content: [entry.update(entries) for entry in content["annotations"]])
    with pytest.raises(DataError, match=message):
        read_index(*files)


# Optional keys, and whether a value is read (True: as a crowd, False: as an instance) or refused (None).
VALUES = [
    *[("iscrowd", value, False) for value in (None, 0, False, "0", "false", 0.0)],
    *[("iscrowd", value, True) for value in (1, True, "1", "true")],
    *[("iscrowd", value, None) for value in (2, "", "no", [], math.nan)],
    *[("area", value, False) for value in (None, 400, 400.0)],
    *[("area", value, None) for value in (math.nan, math.inf, "400", True, [], 10**400)],
    *[("bbox", value, False) for value in (None, [], [10, 5, 20, 20])],
    *[
        ("bbox", value, None)
        for value in ([math.nan] * 4, ["10", "5", "20", "20"], [[10, 5, 20, 20]], [1, 2], {}, 5)
    ],
    *[
        ("segmentation", value, False)
        for value in ([[10, 5], [30, 5], [30, 25], [10, 25]], [10, 5, 30, 5, 30, 25, 10, 25])
    ],
    *[
        ("segmentation", [value], None)
        for value in ([math.nan, 5, 30, 5, 30, 25], [10, 5, 1e9, 5, 30, 25], ["1"] * 6)
    ],
    *[("segmentation", value, None) for value in ({}, "", 5, {"size": [40, 60], "counts": [-1, 2401]})],
    ("ignore", None, False),
    ("ignore", "0", False),
    ("ignore", "maybe", None),
]


@pytest.mark.parametrize("key, value, is_crowd", VALUES, ids=lambda value: ascii(value)[:30])
def test_training_and_evaluation_read_annotations_alike(files, key, value, is_crowd):
    change_json(files[1], lambda content: content["annotations"][0].update({key: value}))
    readers = (lambda: read_index(*files), lambda: read_ground_truth(read_annotations(files[1])))
    if is_crowd is None:
        for read in readers:
            with pytest.raises(
                DataError, match=f'set.json: annotation 0 of image 100: .*({key}|polygon|RLE|"seg)'
            ):
                read()
    else:
        index, truth = (read() for read in readers)
        assert index.iscrowd.tolist() == [is_crowd, False, False] and index.labels.tolist() == [1, 0, 0]
        assert (len(truth[7]), truth[7][0].is_crowd, truth[7][0].area) == (1, is_crowd, 400)
        assert truth[7][0].counts == index.counts[0]


def test_ignored_instances_are_crowds_in_training_only(files):
    change_json(files[1], lambda content: content["annotations"][0].update(ignore=1))
    assert read_index(*files).iscrowd.tolist() == [True, False, False]
    assert [entry.is_crowd for entry in read_ground_truth(read_annotations(files[1]))[7]] == [False]


def add_root(content):
    for entry in content["categories"]:
        entry["supercategory"] = "animals"
    content["categories"].append({"id": 0, "name": "animals", "supercategory": "none"})
    content["images"][0]["labelled_category_ids"] = [0, 3, 7]


def test_category_that_only_groups_the_others_is_left_out(files, caplog):
    change_json(files[1], add_root)
    index = read_index(*files)
    assert (index.classes, index.category_ids) == (("cat", "dog"), (3, 7)) and index.labelled.all()
    assert "'animals' (id 0) is left out" in caplog.text
    index = read_index(*files, classes=["dog", "animals"])
    assert (index.classes, index.category_ids) == (("dog", "animals"), (7, 0)) and index.labelled.all()


def test_classes_without_instances_are_logged(files, caplog):
    change_json(files[1], lambda content: content["categories"].append({"id": 9, "name": "bird"}))
    assert read_index(*files).classes == ("cat", "dog", "bird")
    assert "no instance of bird: training cannot learn it" in caplog.text
    caplog.clear()
    read_index(*files, classes=["cat", "dog"])
    assert not caplog.text


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"segmentation": compressed(np.ones((20, 30), bool))}, r"annotation 0 of image 100.*\[20, 30\].*40"),
        ({"segmentation": "x"}, "annotation 0 .*segmentation"),
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
