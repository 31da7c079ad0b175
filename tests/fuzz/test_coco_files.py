"""Hostile annotation files, results files and image ids give data or a clear error, in bounded time."""

import json
from collections import Counter

import numpy as np
import pytest
from helpers.coco_sets import as_detections, content, draw_images, ellipse, noisy_detections
from helpers.fuzzing import (
    any_value,
    campaign,
    mutate_bytes,
    mutate_json,
    only_typed_errors,
)
from pycocotools import mask as coco

from solo_infer.data.coco import read_annotations, read_image_ids
from solo_infer.data.coco_results import iterate_list
from solo_infer.data.segmentation import MAX_OUTSIDE, to_rle
from solo_infer.errors import DataError
from solo_infer.evaluation.evaluate import evaluate_detections
from solo_infer.evaluation.predict import _find_images
from solo_infer.results.writers import ImageIds
from solo_infer.training.dataset import CocoDataset

pytestmark = pytest.mark.fuzz

ENCODINGS = ("utf-8", "utf-8", "utf-8-sig", "utf-16", "latin-1", "utf-32")


def annotations():
    """Return an annotation file that has every key that is read."""
    values = content()
    for number, entry in enumerate(values["annotations"]):
        entry.update(bbox=[0, 0, 220, 150], ignore=number % 2)
    values["images"][0]["labelled_category_ids"] = [17, 3]
    for entry in values["categories"]:
        entry["supercategory"] = "animals"
    values["categories"].append({"id": 0, "name": "animals", "supercategory": "none"})
    return values


@pytest.fixture(scope="module")
def data_set(tmp_path_factory):
    """Return an annotation file, its image folder and a folder to write in."""
    root = tmp_path_factory.mktemp("fuzz")
    values = annotations()
    folder = draw_images(root / "photos", values)
    (root / "watched").mkdir()
    for name in ("annotations.json", "detections.json"):
        (root / "watched" / name).touch()
    return values, folder, root / "watched"


@pytest.fixture
def count(request):
    """Return a counter of outcomes, which is printed (pytest -s) with the longest call."""
    outcomes, longest = Counter(), [0.0]

    def add(outcome):
        outcomes[type(outcome.error).__name__ if outcome.error else "success"] += 1
        longest[0] = max(longest[0], outcome.seconds)

    yield add
    total = sum(outcomes.values())
    print(f"\n{request.node.name}: {total} inputs, {dict(outcomes)}, longest call {longest[0]:.2f} s")
    assert total > 0 and outcomes["DataError"] > 0 and outcomes["success"] > 0


def encode(value, rng):
    """Return a JSON text in some encoding, sometimes damaged."""
    text = json.dumps(value, ensure_ascii=rng.random() < 0.5, indent=rng.choice((None, None, 1)))
    data = text.encode(rng.choice(ENCODINGS), "replace" if rng.random() < 0.5 else "backslashreplace")
    return mutate_bytes(data, rng) if rng.random() < 0.15 else data


def test_annotation_files(data_set, count):
    values, folder, watched = data_set
    path = watched / "annotations.json"
    for rng in campaign("annotations"):
        path.write_bytes(encode(mutate_json(values, rng), rng))
        use = rng.choice((use_in_training, use_in_evaluation, read_image_ids))
        with only_typed_errors(rng, watched) as outcome:
            use(path, folder) if use is not read_image_ids else read_image_ids(path)
        count(outcome)


def use_in_training(path, folder):
    data = CocoDataset(folder, path, filter_empty=False)
    data[0]


def use_in_evaluation(path, folder):
    _find_images(folder, read_annotations(path))
    empty = path.with_name("detections.json")
    empty.write_text("[]")
    evaluate_detections(path, empty)


def test_results_files(data_set, count):
    values, _, watched = data_set
    path, truth = watched / "detections.json", watched / "annotations.json"
    truth.write_text(json.dumps(values))
    valid = as_detections(values) + noisy_detections(values, 0)[:10]
    valid += [{**valid[0], "segmentation": entry["segmentation"]} for entry in values["annotations"]]
    for rng in campaign("results"):
        path.write_bytes(encode(mutate_json(valid, rng), rng))
        with only_typed_errors(rng, watched) as outcome:
            evaluate_detections(truth, path)
        count(outcome)


def test_results_files_are_json_or_refused(tmp_path, count):
    """The grammar accepts the texts that ``json`` accepts."""
    path = tmp_path / "list.json"
    valid = [{"a": [1, {"b": "] }, süß"}]}, {}, {"c": -1.5e-3, "d": "\u2028"}, {"e": None}]
    for rng in campaign("json"):
        text = json.dumps(valid[: rng.randrange(5)], ensure_ascii=False, indent=rng.choice((None, 2)))
        path.write_bytes(mutate_bytes(text.encode(), rng))
        with only_typed_errors(rng) as outcome:
            entries = list(iterate_list(path))
        count(outcome)
        try:
            expected = json.loads(path.read_bytes())
        except (ValueError, RecursionError):
            expected = None
        if outcome.error is None:
            assert repr(entries) == repr(expected), rng.name
        else:
            assert not (isinstance(expected, list) and all(isinstance(x, dict) for x in expected)), rng.name


def test_segmentations(count):
    """Polygons and RLE give the mask of pycocotools, no mask or an error."""
    height, width = 40, 60
    for rng in campaign("segmentations"):
        valid = random_segmentation(rng, height, width)
        value = mutate_json(valid, rng) if rng.random() < 0.7 else valid
        with only_typed_errors(rng, seconds=1.0) as outcome:
            try:
                mask = to_rle(value, height, width)
            except ValueError as error:
                raise DataError(str(error)) from error
        count(outcome)
        if outcome.error is None and mask is not None:
            counts, area = mask
            decoded = coco.decode({"size": [height, width], "counts": counts})
            assert decoded.shape == (height, width) and int(decoded.sum()) == area, rng.name
        if value is valid:
            expected = (
                valid if isinstance(valid, dict) else coco.merge(coco.frPyObjects(valid, height, width))
            )
            if isinstance(expected["counts"], list):
                expected = coco.frPyObjects(expected, height, width)
            assert np.array_equal(decoded, coco.decode(expected)), rng.name


def random_segmentation(rng, height, width):
    """Return polygons, partly outside of the image, or RLE of both kinds."""
    kind = rng.randrange(4)
    if kind == 0:
        scale = rng.choice((1, 20, 20, 500, MAX_OUTSIDE // 100))
        numbers = [
            [rng.uniform(-scale, 50 + scale) for _ in range(2 * rng.randrange(3, 9))] for _ in range(2)
        ]
        return [[rng.choice((number, round(number))) for number in polygon] for polygon in numbers]
    if kind == 1:
        return ellipse(rng.uniform(0, 60), rng.uniform(0, 40), rng.uniform(0.1, 50), rng.uniform(0.1, 30))
    mask = np.random.default_rng(rng.randrange(2**32)).random((height, width)) < rng.random() ** 2
    encoded = coco.encode(np.asfortranarray(mask, np.uint8))
    if kind == 2:
        return {"size": [height, width], "counts": encoded["counts"].decode()}
    flat = mask.flatten(order="F").astype(np.int8)
    edges = [0, *np.flatnonzero(np.diff(flat, prepend=0)).tolist(), flat.size]
    return {"size": [height, width], "counts": np.diff(edges).tolist()}


def test_file_names(data_set, count):
    """File names never lead out of the folder, in training, evaluation and image ids."""
    values, folder, watched = data_set
    path, root = watched / "annotations.json", str(folder.resolve())
    pieces = (
        "..",
        ".",
        "",
        "/",
        "\\",
        "\\\\",
        "C:",
        "a",
        "b",
        "1.png",
        "3.png",
        "~",
        "photos",
        "%2e",
        "file:",
        "\0",
        "x" * 300,
    )
    for rng in campaign("names"):
        for image in values["images"]:
            if rng.random() < 0.3:
                joined = rng.choice(("/", "\\")).join(rng.choices(pieces, k=rng.randrange(1, 7)))
                image = rng.choice(values["images"])
                image["file_name"] = rng.choice(
                    (joined, joined + "/" + image["file_name"][-20:], f"{root}/{joined}")
                )
        path.write_text(json.dumps(values))
        with only_typed_errors(rng, watched) as outcome:
            for source in _find_images(folder, read_annotations(path)):
                assert (folder / source).resolve().is_relative_to(root)
            ImageIds(read_image_ids(path)).of("photos/3.png")
        count(outcome)
        if rng.random() < 0.3:
            for image, name in zip(values["images"], ("b/2.png", "a/1.png", "3.png", "4.png"), strict=True):
                image["file_name"] = name


def test_optional_keys(data_set, count):
    """Training and evaluation accept and refuse the same values of optional keys."""
    values, folder, watched = data_set
    path = watched / "annotations.json"
    for rng in campaign("keys"):
        changed = annotations()
        for _ in range(rng.choice((1, 2))):
            entry = rng.choice(changed["annotations"])
            key = rng.choice(("iscrowd", "ignore", "area", "bbox", "segmentation", "id"))
            entry[key] = rng.choice((any_value(rng), [any_value(rng) for _ in range(4)], str(entry.get(key))))
        path.write_text(json.dumps(changed))
        errors = []
        for use in (use_in_training, use_in_evaluation):
            with only_typed_errors(rng, watched) as outcome:
                use(path, folder)
            count(outcome)
            errors.append(outcome.error)
        assert (errors[0] is None) == (errors[1] is None), f"{rng.name}: {errors}"
        assert errors[0] is None or str(errors[0]) == str(errors[1]), rng.name
