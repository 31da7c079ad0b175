import pytest
import torch
from helpers.training_sets import changed, instance, rectangle, write_set

from solo_infer.errors import ConfigError, DataError
from solo_infer.training.dataset import CocoDataset, union

ANIMALS = {"dog": 7, "cat": 3}


@pytest.fixture
def pets(tmp_path):
    """Two sets over a.png, b.png and c.png: one of cats and dogs, one of dogs and birds."""
    pictures = {"a.png": (40, 60), "b.png": (30, 20)}
    first = write_set(
        tmp_path,
        pictures,
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
    """Return (box, class name) pairs and the names of the labelled classes by file name."""
    found = {}
    for number, index in enumerate(dataset._chosen):
        target = dataset[number].target
        names = [dataset.classes[label] for label in target["labels"]]
        labelled = target.get("labelled", torch.arange(len(dataset.classes))).tolist()
        found[dataset.index.name(index)] = (
            list(zip(target["boxes"].tolist(), names, strict=True)),
            {dataset.classes[label] for label in labelled},
        )
    return found


def test_labels_of_an_image_are_merged(pets):
    both = union(pets)
    assert both.classes == ("cat", "dog", "bird")
    found = contents(both)
    assert found == {
        "a.png": (
            [([10, 5, 30, 25], "dog"), ([40, 8, 55, 38], "cat"), ([1, 1, 4, 4], "bird")],
            {"cat", "dog", "bird"},
        ),
        "c.png": ([([2, 2, 9, 9], "dog")], {"dog", "bird"}),
    }
    assert both[1].target["iscrowd"].tolist() == [True]


def test_the_first_set_that_labels_a_class_gives_it(pets):
    instances, _ = contents(union(pets[::-1]))["a.png"]
    assert instances == [([11, 6, 31, 26], "dog"), ([1, 1, 4, 4], "bird"), ([40, 8, 55, 38], "cat")]


def test_a_class_labelled_as_absent_stays_absent(pets, tmp_path):
    without = write_set(tmp_path, {"a.png": (40, 60)}, {"dog": 1}, [], name="none.json")
    merged = union([CocoDataset(*without, filter_empty=False), pets[0]])
    assert contents(merged)["a.png"] == ([([40, 8, 55, 38], "cat")], {"cat", "dog"})


def test_images_left_out_as_empty_are_considered(pets):
    """b.png has neither cats nor dogs, which the first set knows although it left it out."""
    found = contents(union(pets, filter_empty=False))
    assert found["b.png"] == ([], {"cat", "dog"})


def test_chosen_classes_give_the_labels(pets):
    merged = union(pets, classes=["bird", "zebra", "cat"], filter_empty=False)
    assert merged[0].target["labels"].tolist() == [2, 0]
    assert merged[0].target["labelled"].tolist() == [0, 2]
    assert contents(merged)["c.png"] == ([], {"bird"})


def test_excluded_images_are_in_no_set(pets):
    validation = pets[0]
    assert validation.file_names == {"a.png", "b.png"}
    assert union(pets, exclude=validation.file_names, filter_empty=False).file_names == {"c.png"}
    with pytest.raises(DataError, match="None of 0 images"):
        union(pets, exclude={"a.png", "b.png", "c.png"})


def test_unions_can_be_united(pets):
    assert contents(union([union(pets[:1]), pets[1]])) == contents(union(pets))


def test_equal_names_in_other_folders_are_other_images(tmp_path):
    sets = []
    for folder in ("one", "two"):
        square = [instance("a.png", "dog", rectangle(1, 1, 9, 9))]
        sets.append(CocoDataset(*write_set(tmp_path / folder, {"a.png": (20, 20)}, ANIMALS, square)))
    assert len(union(sets)) == 2
    assert union(sets, exclude={"two/a.png"}).index.path(0) == str((tmp_path / "one/a.png").resolve())
    with pytest.raises(DataError, match="None of 0 images"):
        union(sets, exclude={"a.png"})


def test_different_sizes_are_refused(pets, tmp_path):
    changed(tmp_path / "second.json", lambda content: content["images"][1].update(height=41))
    second = CocoDataset(tmp_path, tmp_path / "second.json")
    with pytest.raises(DataError, match="a.png has 41 x 60 .* 40 x 60"):
        union([pets[0], second])


def test_wrong_arguments_are_refused(pets):
    with pytest.raises(ConfigError, match="no data sets"):
        union([])
    with pytest.raises(ConfigError, match="not one"):
        union(pets, exclude="a.png")
