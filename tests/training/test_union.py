"""Unions of data sets that label different classes."""

import pytest
import torch
from helpers.training_sets import change_json, instance, rectangle, write_set

from solo_infer.errors import ConfigError, DataError
from solo_infer.training.dataset import CocoDataset, union

ANIMALS = {"dog": 7, "cat": 3}


@pytest.fixture
def datasets(tmp_path):
    """Two data sets over a.png, b.png and c.png: one of cats and dogs, one of dogs and birds."""
    first = write_set(
        tmp_path,
        {"a.png": (40, 60), "b.png": (30, 20)},
        ANIMALS,
        [
            instance("a.png", "dog", rectangle(10, 5, 30, 25)),
            instance("a.png", "cat", rectangle(40, 8, 55, 38)),
        ],
    )
    second = write_set(
        tmp_path,
        {"c.png": (20, 20), "a.png": (40, 60)},
        {"dog": 1, "bird": 2},
        [
            instance("a.png", "dog", rectangle(11, 6, 31, 26)),
            instance("a.png", "bird", rectangle(1, 1, 4, 4)),
            instance("c.png", "dog", rectangle(2, 2, 9, 9), iscrowd=1),
        ],
        name="second.json",
    )
    return CocoDataset(*first), CocoDataset(*second)


def contents(dataset):
    """Return (box, class name) pairs and the names of the labeled classes by file name."""
    by_name = {}
    for number, image in enumerate(dataset._images):
        target = dataset[number].target
        names = [dataset.classes[label] for label in target["labels"]]
        labelled = target.get("labelled", torch.arange(len(dataset.classes))).tolist()
        by_name[dataset.index.name(image)] = (
            list(zip(target["boxes"].tolist(), names, strict=True)),
            {dataset.classes[label] for label in labelled},
        )
    return by_name


def test_instances_of_an_image_are_merged(datasets):
    merged = union(datasets)
    assert merged.classes == ("cat", "dog", "bird")
    assert contents(merged) == {
        "a.png": (
            [([10, 5, 30, 25], "dog"), ([40, 8, 55, 38], "cat"), ([1, 1, 4, 4], "bird")],
            {"cat", "dog", "bird"},
        ),
        "c.png": ([([2, 2, 9, 9], "dog")], {"dog", "bird"}),
    }
    assert merged[1].target["iscrowd"].tolist() == [True]


def test_class_is_taken_from_the_first_data_set_that_labels_it(datasets):
    instances, _ = contents(union(datasets[::-1]))["a.png"]
    assert instances == [([11, 6, 31, 26], "dog"), ([1, 1, 4, 4], "bird"), ([40, 8, 55, 38], "cat")]


def test_labeled_class_without_instances_stays_empty(datasets, tmp_path):
    files = write_set(tmp_path, {"a.png": (40, 60)}, {"dog": 1}, [], name="none.json")
    merged = union([CocoDataset(*files, filter_empty=False), datasets[0]])
    assert contents(merged)["a.png"] == ([([40, 8, 55, 38], "cat")], {"cat", "dog"})


def test_skipped_images_are_considered(datasets):
    """The first data set skips b.png, which has neither cats nor dogs."""
    assert contents(union(datasets, filter_empty=False))["b.png"] == ([], {"cat", "dog"})


def test_selected_classes_give_the_labels(datasets):
    merged = union(datasets, classes=["bird", "zebra", "cat"], filter_empty=False)
    assert merged[0].target["labels"].tolist() == [2, 0]
    assert merged[0].target["labelled"].tolist() == [0, 2]
    assert contents(merged)["c.png"] == ([], {"bird"})


def test_excluded_images(datasets):
    validation = datasets[0]
    assert validation.file_names == {"a.png", "b.png"}
    assert union(datasets, exclude=validation.file_names, filter_empty=False).file_names == {"c.png"}
    with pytest.raises(DataError, match="None of 0 images"):
        union(datasets, exclude={"a.png", "b.png", "c.png"})


def test_union_of_unions(datasets):
    assert contents(union([union(datasets[:1]), datasets[1]])) == contents(union(datasets))


def test_equal_names_in_different_folders_are_different_images(tmp_path):
    datasets = []
    for folder in ("one", "two"):
        square = [instance("a.png", "dog", rectangle(1, 1, 9, 9))]
        datasets.append(CocoDataset(*write_set(tmp_path / folder, {"a.png": (20, 20)}, ANIMALS, square)))
    assert len(union(datasets)) == 2
    first_only = union(datasets, exclude={"two/a.png"})
    assert first_only.index.path(0) == str((tmp_path / "one/a.png").resolve())
    with pytest.raises(DataError, match="None of 0 images"):
        union(datasets, exclude={"a.png"})


def test_different_sizes_of_an_image_are_rejected(datasets, tmp_path):
    change_json(tmp_path / "second.json", lambda content: content["images"][1].update(height=41))
    second = CocoDataset(tmp_path, tmp_path / "second.json")
    with pytest.raises(DataError, match="a.png has 41 x 60 .* 40 x 60"):
        union([datasets[0], second])


def test_wrong_arguments_are_rejected(datasets):
    with pytest.raises(ConfigError, match="no data sets"):
        union([])
    with pytest.raises(ConfigError, match="not one"):
        union(datasets, exclude="a.png")
