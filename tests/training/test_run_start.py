"""Comparison of the start of a run with that of its resumption."""

import json
from dataclasses import replace

import pytest
from helpers.models import small_config
from helpers.training_sets import change_json, write_animals

from solo_infer.config import Categories
from solo_infer.training.annotation_index import read_index
from solo_infer.training.recipe import FINE_TUNE
from solo_infer.training.run_start import (
    data_differences,
    fingerprint,
    model_differences,
    recipe_differences,
    summarize,
)

CONFIG = small_config("decoupled_light")


def saved(config):
    return json.loads(json.dumps(config.to_dict()))


def test_equal_starts_have_no_differences():
    assert model_differences(saved(CONFIG), CONFIG) == []
    assert recipe_differences(FINE_TUNE, replace(FINE_TUNE, workers=0, log_every=3)) == []
    old = saved(CONFIG)
    del old["architecture"]["head_bias"]  # a field that an earlier version lacked
    assert model_differences(old, CONFIG) == []


def test_only_what_differs_is_described():
    recipe = replace(FINE_TUNE, lr=1e-3, milestones=(1, 2), scale_range=(0.5, 1.0))
    assert recipe_differences(FINE_TUNE, recipe) == [
        "lr 0.0004 -> 0.001",
        "milestones [8, 11] -> [1, 2]",
        "scale_range [0.6, 1.6] -> [0.5, 1.0]",
    ]
    config = replace(CONFIG, categories=Categories(("cat", "bird", "dog"), (1, 2, 9)))
    assert model_differences(saved(CONFIG), config) == [
        "classes ['cat', 'dog', 'bird'] -> ['cat', 'bird', 'dog']",
        "category ids [1, 2, 3] -> [1, 2, 9]",
    ]


def test_long_lists_show_the_first_difference():
    names = tuple(f"class {label}" for label in range(80))
    changed = (*names[:50], "other", *names[51:])
    old, new = (
        replace(CONFIG, architecture=replace(CONFIG.architecture, num_classes=80), categories=Categories(n))
        for n in (names, changed)
    )
    assert model_differences(saved(old), new) == ["classes[50] 'class 50' -> 'other'"]
    fewer = replace(CONFIG, categories=Categories(("cat", "dog", "bird")))
    assert "number of classes 80 -> 3" in model_differences(saved(old), fewer)


def test_messages_are_short():
    differences = [f"value {number} 1 -> 2" for number in range(20)]
    assert summarize(differences).endswith("value 5 1 -> 2; and 14 more")
    assert summarize(differences[:2]) == "value 0 1 -> 2; value 1 1 -> 2"


@pytest.mark.parametrize(
    ("change", "differences"),
    [
        (lambda content: None, []),
        (lambda content: content["annotations"].pop(), ["instances 3 -> 2", "checksum of annotations"]),
        (lambda content: content["annotations"][0].update(iscrowd=1), ["checksum of annotations"]),
        (lambda content: content["annotations"][0].update(category_id=3), ["checksum of annotations"]),
        (
            lambda content: content["annotations"][0].update(segmentation=[[10, 5, 29, 5, 29, 25, 10, 25]]),
            ["checksum of annotations"],
        ),
        (lambda content: content["images"].reverse(), ["checksum of image", "checksum of annotations"]),
        (
            lambda content: content["images"][0].update(labelled_category_ids=[3, 7]),
            [],
        ),
    ],
)
def test_fingerprint_of_a_data_set(tmp_path, change, differences):
    files = write_animals(tmp_path / "first")
    before = fingerprint(read_index(*files))
    moved = write_animals(tmp_path / "second")
    change_json(moved[1], change)
    found = data_differences(json.loads(json.dumps(before)), fingerprint(read_index(*moved)))
    assert len(found) == len(differences)
    assert all(text.startswith(start) for text, start in zip(found, differences, strict=True)), found
