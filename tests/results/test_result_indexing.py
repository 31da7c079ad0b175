"""Iteration, indexing and filtering of results."""

import numpy as np
import pytest
import torch
from helpers.results import assert_same, make_masks, make_result

from solo_infer import Instance, Result
from solo_infer.errors import ResultError


@pytest.fixture
def result():
    return make_result()


def test_iteration_yields_instances(result):
    instances = list(result)
    assert len(instances) == len(result) == 5
    first = instances[0]
    assert isinstance(first, Instance)
    assert (first.label, first.name, first.box) == (1, "dog", (0.0, 0.0, 5.0, 3.0))
    assert first.score == pytest.approx(0.9)
    for instance, mask in zip(instances, make_masks(5), strict=True):
        assert torch.equal(instance.mask, mask)


@pytest.mark.parametrize("index", [1, -4, np.int64(1), np.uint8(1), torch.tensor(1), np.array(1)])
def test_index_by_integer(result, index):
    instance = result[index]
    assert isinstance(instance, Instance)
    assert (instance.name, instance.box) == ("cat", (2.0, 1.0, 7.0, 4.0))
    assert torch.equal(instance.mask, make_masks(5)[1])


@pytest.mark.parametrize("index", [5, -6, torch.tensor(5)])
def test_integer_out_of_range_raises_index_error(result, index):
    with pytest.raises(IndexError, match="of a result with 5"):
        result[index]


def test_argmax_is_an_index(result):
    assert result[result.scores.argmin()].score == pytest.approx(0.1)


@pytest.mark.parametrize(
    "index, expected_indices",
    [
        (slice(None), [0, 1, 2, 3, 4]),
        (slice(2), [0, 1]),
        (slice(-2, None), [3, 4]),
        (slice(None, None, 2), [0, 2, 4]),
        (slice(None, None, -1), [4, 3, 2, 1, 0]),
        (slice(9, 12), []),
        ([True, False, False, True, False], [0, 3]),
        ((False,) * 5, []),
        (np.array([True, False, False, True, False]), [0, 3]),
        (torch.tensor([True, False, False, True, False]), [0, 3]),
        ([3, 0, 0], [3, 0, 0]),
        ([-1], [4]),
        (np.array([4, 1], np.uint8), [4, 1]),
        (np.array([0, 1, 2])[::-1], [2, 1, 0]),
        (torch.tensor([1, 0], dtype=torch.uint8), [1, 0]),
        (range(3), [0, 1, 2]),
        ([], []),
        (np.array([]), []),
        (torch.tensor([]), []),
    ],
)
def test_index_by_several(result, index, expected_indices):
    selected = result[index]
    assert isinstance(selected, Result)
    original = make_result()
    expected = make_result(
        **{
            name: getattr(original, name)[expected_indices]
            for name in ("scores", "labels", "boxes", "packed_masks")
        }
    )
    assert_same(selected, expected)
    assert selected.timings == result.timings
    assert selected.image is result.image


@pytest.mark.parametrize(
    "index",
    [
        [True, False],
        np.zeros(6, bool),
        np.array([], bool),
        torch.ones(4, dtype=torch.bool),
        True,
        torch.tensor(True),
        [0, 5],
        [-6],
        [0.5],
        1.0,
        torch.tensor([0.0]),
        torch.zeros(1, dtype=torch.bfloat16),
        "dog",
        ["dog"],
        None,
        [[0, 1]],
        [[0], [1, 2]],
        np.ones((5, 5), bool),
        {"a": 1},
    ],
)
def test_invalid_index_raises_error(result, index):
    with pytest.raises(ResultError, match="expected|Index"):
        result[index]


def test_index_by_comparison_of_scores(result):
    assert len(result[result.scores > 0.4]) == 3
    assert len(result[result.scores.numpy() > 0.4]) == 3
    assert len(result[(result.scores > 0.4).tolist()]) == 3


def test_selection_does_not_keep_other_masks_in_memory():
    many = make_result(packed_masks=torch.zeros(5, 1000, 1000, dtype=torch.uint8), image_size=(1000, 8000))
    for selection in (many[0], next(iter(many)), many[:1], many.filter(0.9)):
        packed = selection._packed if isinstance(selection, Instance) else selection.packed_masks
        assert packed.untyped_storage().nbytes() == 1_000_000


# --- filter


@pytest.mark.parametrize(
    "options, count",
    [
        ({}, 5),
        ({"min_score": 0.5}, 3),  # inclusive
        ({"min_score": 0.3}, 4),  # 0.30000001 as float32
        ({"min_score": 1}, 0),
        ({"classes": ["dog"]}, 2),
        ({"classes": "dog"}, 2),
        ({"classes": 1}, 2),
        ({"classes": ["cat", 2]}, 3),
        ({"classes": np.array([0, 1])}, 4),
        ({"classes": []}, 0),
        ({"min_score": 0.6, "classes": ("dog", "bird")}, 1),
    ],
)
def test_filter(result, options, count):
    filtered = result.filter(**options)
    assert isinstance(filtered, Result)
    assert len(filtered) == count
    assert (filtered.scores >= options.get("min_score", 0)).all()


@pytest.mark.parametrize("min_score", [-0.1, 1.1, 30, float("nan")])
def test_filter_by_invalid_score_raises_error(result, min_score):
    with pytest.raises(ResultError, match=r"min_score=.*expected a number in 0\.\.1"):
        result.filter(min_score)


def test_filter_by_unknown_class_raises_error(result):
    for searched in (result, make_result(0)):
        with pytest.raises(ResultError, match=r"No class 'Dog'. Did you mean 'dog'\?"):
            searched.filter(classes=["cat", "Dog"])
