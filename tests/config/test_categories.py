"""Class names, labels and COCO ids."""

import numpy as np
import pytest
import torch

from solo_infer.config.categories import COCO, Categories, unnamed
from solo_infer.errors import ConfigError, ResultError

PETS = Categories(("cat", "dog", "traffic light"))


def test_coco_has_its_official_ids():
    ids = dict(zip(COCO.names, COCO.ids, strict=True))
    assert len(COCO) == 80
    assert (ids["person"], ids["stop sign"], ids["cell phone"], ids["toothbrush"]) == (1, 13, 77, 90)
    assert sorted(ids.values()) == list(COCO.ids)


def test_other_ids_start_at_one():
    assert PETS.ids == (1, 2, 3)


def test_unnamed_classes():
    assert unnamed(80) is COCO
    assert unnamed(2).names == ("class 0", "class 1")


def test_lists_become_tuples():
    categories = Categories(["a", "b"], [7, 3])
    assert categories == Categories(("a", "b"), (7, 3))
    assert hash(categories) == hash(Categories(("a", "b"), (7, 3)))


@pytest.mark.parametrize(
    "names, ids",
    [
        ("cat", ()),
        (("cat", 3), ()),
        (("cat", "dog"), (1,)),
        (("cat", "dog"), (1, 1)),
        (("cat", "dog"), ("1", "2")),
        (("cat", "dog"), (1.5, 2)),
        (("cat", "dog"), (True, 2)),
    ],
)
def test_invalid_categories_are_refused(names, ids):
    with pytest.raises(ConfigError):
        Categories(names, ids)


@pytest.mark.parametrize(
    "classes, expected",
    [
        ("dog", [1]),
        (2, [2]),
        (["traffic light", 0], [2, 0]),
        (np.array([2, 1]), [2, 1]),
        (torch.tensor([1]), [1]),
        ({"cat"}, [0]),
        ([], []),
    ],
)
def test_labels(classes, expected):
    assert PETS.labels(classes) == expected


@pytest.mark.parametrize("classes", [3, -1, 1.0, True, None, [None], np.array([0.5])])
def test_invalid_label_is_refused(classes):
    with pytest.raises(ResultError, match=r"expected a name, or a label 0\.\.2"):
        PETS.labels(classes)


def test_unknown_name_suggests_similar_ones():
    with pytest.raises(
        ResultError, match=r"No class 'Traffic-Light'. Did you mean 'traffic light'\? Classes: cat"
    ):
        PETS.labels(["cat", "Traffic-Light"])
    with pytest.raises(ResultError, match="No class 'xyz'. Classes: cat, dog, traffic light"):
        PETS.labels("xyz")
