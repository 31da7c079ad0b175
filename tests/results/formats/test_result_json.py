"""Results as JSON, and back: exact, described by the schema, and safe with hostile values."""

import copy
import json
import random

import numpy as np
import pytest
import torch
from helpers.fuzzing import campaign, mutate_json, only_typed_errors
from helpers.masks import random_mask
from helpers.results import PETS, assert_same, make_result

from solo_infer import SOLO, Categories, Result
from solo_infer.errors import ResultError
from solo_infer.ops import packed_masks
from solo_infer.results.formats.result_json import SCHEMA_VERSION, schema


def with_mask(mask):
    """Return a result with one mask (H, W)."""
    packed = packed_masks.pack(torch.from_numpy(mask))[None]
    return make_result(2, packed_masks=packed, image_size=mask.shape)[:1]


@pytest.mark.parametrize("count", [0, 1, 5])
def test_round_trip(count):
    result = make_result()[:count]
    for rebuilt in (Result.from_dict(result.to_dict()), Result.from_json(result.to_json(indent=2))):
        assert_same(rebuilt, result)
        assert rebuilt.to_dict() == result.to_dict()
    assert_same(Result.from_json(result.to_json().encode()), result)


def test_round_trip_of_a_photo(photo):
    result = SOLO.from_pretrained("tiny", device="cpu")(photo)
    rebuilt = Result.from_json(result.to_json())
    assert len(rebuilt) == len(result) >= 10
    assert_same(rebuilt, result)
    rebuilt.plot(photo)


def test_round_trip_of_random_masks():
    for number in range(50):
        mask = random_mask(number)
        values = with_mask(mask).to_dict()
        values["instances"][0]["box"] = [0, 0, 0, 0]
        np.testing.assert_array_equal(Result.from_dict(values).masks[0].numpy(), mask)


def test_categories_can_be_left_out():
    result = make_result()
    values = result.to_dict(categories=False)
    assert "categories" not in values and len(result.to_json(categories=False)) < len(result.to_json())
    assert_same(Result.from_dict(values, categories=PETS), result)
    with pytest.raises(ResultError, match='no "categories": pass those of the model'):
        Result.from_dict(values)
    with pytest.raises(ResultError, match="expected the same names and ids"):
        Result.from_dict(result.to_dict(), categories=Categories(("cat",)))


def test_unknown_keys_are_ignored():
    values = make_result().to_dict()
    values["instances"][0]["track_id"] = values["frame"] = 7
    assert_same(Result.from_dict(values), make_result())


def change(values, path, value):
    """Return values with another value at a path of keys."""
    values = copy.deepcopy(values)
    part = values
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = value
    return values


FIRST = ("instances", 0)
INVALID = [
    (("schema_version",), 2),
    (("schema_version",), True),
    (("schema_version",), None),
    (("source",), None),
    (("source",), "x" * 70_000),
    (("image_size",), [20, 29]),
    (("image_size", "height"), 0),
    (("image_size", "width"), -1),
    (("image_size", "width"), 29.5),
    (("image_size", "height"), 2_000_000),
    (("categories",), {}),
    (("categories", 0), "cat"),
    (("categories", 0, "id"), "17"),
    (("categories", 0, "name"), 3),
    (("instances",), None),
    (("instances", 0), []),
    ((*FIRST, "score"), 1.5),
    ((*FIRST, "score"), -0.1),
    ((*FIRST, "score"), "0.5"),
    ((*FIRST, "score"), True),
    ((*FIRST, "label"), -1),
    ((*FIRST, "label"), 0.5),
    ((*FIRST, "label"), True),
    ((*FIRST, "name"), None),
    ((*FIRST, "category_id"), "18"),
    ((*FIRST, "box"), [0, 0, 5]),
    ((*FIRST, "box"), [0, 0, "5", 3]),
    ((*FIRST, "box"), [-1, 0, 5, 3]),
    ((*FIRST, "mask"), "RLE"),
    ((*FIRST, "mask", "size"), [20]),
    ((*FIRST, "mask", "counts"), None),
    ((*FIRST, "mask", "counts"), "\u00e9"),
    ((*FIRST, "mask", "counts"), [-1, 581]),
]
INCONSISTENT = [  # what a schema cannot express
    (("image_size",), {"height": 1_000_000, "width": 1_000_000}),
    (("categories", 0, "id"), 18),
    ((*FIRST, "label"), 3),
    ((*FIRST, "label"), 0),
    ((*FIRST, "name"), "cat"),
    ((*FIRST, "category_id"), 17),
    ((*FIRST, "score"), float("nan")),
    ((*FIRST, "box"), [0, 0, float("inf"), 3]),
    ((*FIRST, "box"), [5, 0, 0, 3]),
    ((*FIRST, "box"), [0, 0, 30, 3]),
    ((*FIRST, "mask", "size"), [29, 20]),
    ((*FIRST, "mask", "counts"), ""),
    ((*FIRST, "mask", "counts"), "PPPPPPPP1"),
    ((*FIRST, "mask", "counts"), [579]),
    ((*FIRST, "mask", "counts"), [10**30]),
]


@pytest.mark.parametrize("path, value", INVALID + INCONSISTENT, ids=str)
def test_invalid_values_raise_a_result_error(path, value):
    with pytest.raises(ResultError, match="[Ee]xpected"):
        Result.from_dict(change(make_result().to_dict(), path, value))


@pytest.mark.parametrize("values", [None, [], "x", 1, {}, [make_result().to_dict()]])
def test_other_values_raise_a_result_error(values):
    with pytest.raises(ResultError, match="expected"):
        Result.from_dict(values)


@pytest.mark.parametrize(
    "text", ["", "{", b"\xff\xfe\xff", "[" * 100_000, "NaN", '{"a": Infinity}', "1" * 5000, None, 3, b"\x80"]
)
def test_text_that_is_not_json(text):
    with pytest.raises(ResultError, match="expected"):
        Result.from_json(text)


def test_memory_is_limited_before_it_is_used():
    values = make_result(1).to_dict()
    instance = values["instances"][0]
    values["image_size"] = {"height": 40_000, "width": 40_000}
    instance["mask"] = {"size": [40_000, 40_000], "counts": [40_000 * 40_000]}
    with pytest.raises(ResultError, match=r"take 1800000000 bytes of memory.* max_bytes"):
        Result.from_dict(values)
    small = make_result().to_dict()
    needed = 5 * 20 * 4 + 20 * 29
    assert_same(Result.from_dict(small, max_bytes=needed), make_result())
    with pytest.raises(ResultError, match="bytes of memory"):
        Result.from_dict(small, max_bytes=needed - 1)


def test_long_text_is_refused_before_it_is_parsed(monkeypatch):
    monkeypatch.setattr("solo_infer.results.formats.result_json._MAX_JSON", 100)
    with pytest.raises(ResultError, match="expected at most 100"):
        Result.from_json(make_result().to_json())


def test_random_values_raise_typed_errors_only(tmp_path):
    valid = json.loads(make_result().to_json())
    refused = 0
    for rng in campaign(seed=41):
        values = mutate_json(valid, rng)
        with only_typed_errors(rng, watched=tmp_path) as outcome:
            Result.from_dict(values).to_json()
        refused += outcome.error is not None
    assert refused


# --- Schema


def test_version_is_written_and_named_by_the_schema():
    content = schema()
    assert make_result().to_dict()["schema_version"] == SCHEMA_VERSION == 1
    assert content["properties"]["schema_version"]["const"] == SCHEMA_VERSION
    assert content["$id"].endswith(f":{SCHEMA_VERSION}")
    instance = make_result().to_dict()["instances"][0]
    assert set(content["$defs"]["instance"]["required"]) == set(instance)


@pytest.fixture(scope="module")
def validator():
    jsonschema = pytest.importorskip("jsonschema", reason="the schema is checked with jsonschema")
    jsonschema.Draft202012Validator.check_schema(schema())
    return jsonschema.Draft202012Validator(schema())


@pytest.mark.parametrize("count", [0, 5])
def test_results_match_the_schema(validator, count):
    for categories in (True, False):
        validator.validate(json.loads(make_result()[:count].to_json(categories=categories)))


@pytest.mark.parametrize("path, value", INVALID, ids=str)
def test_schema_refuses_invalid_values(validator, path, value):
    assert not validator.is_valid(change(make_result().to_dict(), path, value))


@pytest.mark.parametrize("key", ["schema_version", "source", "image_size", "instances"])
def test_required_keys(validator, key):
    values = {name: value for name, value in make_result().to_dict().items() if name != key}
    assert not validator.is_valid(values)
    with pytest.raises(ResultError, match=f'"{key}" is None'):
        Result.from_dict(values)


def test_random_keys_of_instances_are_required(validator):
    keys = list(make_result().to_dict()["instances"][0])
    random.Random(0).shuffle(keys)
    for key in keys:
        values = make_result().to_dict()
        del values["instances"][0][key]
        assert not validator.is_valid(values)
        with pytest.raises(ResultError, match=f'Instance 0: "{key}" is None'):
            Result.from_dict(values)
