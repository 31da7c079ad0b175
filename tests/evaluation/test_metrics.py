"""COCO mask metrics, compared with pycocotools."""

import contextlib
import io
import json
import math
import threading

import pytest
from helpers.coco_sets import (
    BIRD,
    CAT,
    DOG,
    METRICS,
    as_detections,
    by_hand,
    content,
    noisy_detections,
    write,
)

from solo_infer.errors import ConfigError, DataError
from solo_infer.evaluation.evaluate import evaluate_detections

VALUES = content()


@pytest.fixture
def annotations(tmp_path):
    return write(tmp_path / "annotations.json", VALUES)


@pytest.fixture
def detections(tmp_path):
    return lambda entries: write(tmp_path / "detections.json", entries)


def test_ground_truth_as_detections_has_full_ap(annotations, detections):
    evaluation = evaluate_detections(annotations, detections(as_detections(VALUES)))
    assert tuple(evaluation.metrics) == METRICS
    for name in METRICS:
        # One detection per image and class cannot cover all instances.
        assert evaluation.metrics[name] == pytest.approx(1.0) or name == "AR1", name
    assert 0 < evaluation.metrics["AR1"] < 1
    assert [entry.name for entry in evaluation.per_class] == ["dog", "cat", "bird"]  # by id, as in COCO
    assert [entry.instances for entry in evaluation.per_class] == [4, 3, 1]  # the crowd does not count
    assert all((entry.ap, entry.ap50) == pytest.approx((1.0, 1.0)) for entry in evaluation.per_class)
    assert (evaluation.images, evaluation.timings, evaluation.detections) == (
        4,
        None,
        detections(as_detections(VALUES)),
    )


@pytest.mark.parametrize("seed", range(3))
def test_metrics_equal_pycocotools(annotations, detections, seed):
    path = detections(noisy_detections(VALUES, seed))
    evaluation = evaluate_detections(annotations, path)
    assert list(evaluation.metrics.values()) == pytest.approx(
        by_hand(annotations, path), abs=1e-12, nan_ok=True
    )
    assert 0.05 < evaluation.metrics["AP"] < 0.95
    for entry in evaluation.per_class:
        category = {"cat": CAT, "dog": DOG, "bird": BIRD}[entry.name]
        alone = by_hand(annotations, path, categories=[category])
        assert [entry.ap, entry.ap50] == pytest.approx(alone[:2], abs=1e-12)


def test_custom_max_detections(annotations, detections):
    path = detections(noisy_detections(VALUES, 0))
    evaluation = evaluate_detections(annotations, path, max_detections=(4, 1, 2, 1))
    names = [name.replace("AR100", "AR4").replace("AR10", "AR2") for name in METRICS]
    assert list(evaluation.metrics) == names
    expected = by_hand(annotations, path, max_detections=(1, 2, 4))  # its AP requires maxDets=100
    assert list(evaluation.metrics.values())[1:] == pytest.approx(expected[1:], abs=1e-12, nan_ok=True)
    assert evaluation.metrics["AP"] == pytest.approx(
        sum(entry.ap for entry in evaluation.per_class) / len(evaluation.per_class)
    )


def test_single_max_detections(annotations, detections):
    path = detections(as_detections(VALUES))
    assert evaluate_detections(annotations, path, max_detections=[5]).metrics["AR5"] == pytest.approx(1.0)
    one = evaluate_detections(annotations, path, max_detections=[1]).metrics
    assert len(one) == 10 and one["AP"] < 1 and one["AR1"] < 1


@pytest.mark.parametrize("numbers", [(), (0,), (1, -5), (2.5,), (True,), ("10",)])
def test_invalid_max_detections_raise(annotations, detections, numbers):
    with pytest.raises(ConfigError, match="max_detections=.*integers of at least 1"):
        evaluate_detections(annotations, detections([]), max_detections=numbers)


def test_annotation_ids_are_ignored(tmp_path, detections):
    values = content()
    for number, entry in enumerate(values["annotations"]):
        entry["id"] = number // 2  # pycocotools reads 0 as "no match" and drops duplicates
    evaluation = evaluate_detections(
        write(tmp_path / "annotations.json", values), detections(as_detections(values))
    )
    assert (evaluation.metrics["AP"], evaluation.metrics["AR100"]) == pytest.approx((1.0, 1.0))
    assert sum(entry.instances for entry in evaluation.per_class) == 8


@pytest.mark.parametrize(
    "rename",
    [
        lambda number: -number,
        lambda number: number * 10**30,
        lambda number: 2**63 + number if number > 20 else -number,
        lambda number: "image\0" + "\0" * number,
    ],
    ids=["negative", "huge", "mixed", "text"],
)
def test_image_ids_of_any_kind_give_the_same_metrics(tmp_path, detections, rename):
    values, entries = content(), noisy_detections(VALUES, 0)
    for image in values["images"]:
        image["id"] = rename(image["id"])
    for entry in values["annotations"] + entries:
        entry["image_id"] = rename(entry["image_id"])
    evaluation = evaluate_detections(write(tmp_path / "annotations.json", values), detections(entries))
    order = sorted(image["id"] for image in values["images"])
    plain = content()  # the same order of the images, on which equal scores depend
    numbers = {image_id: number for number, image_id in enumerate(order)}
    for image, renamed in zip(plain["images"], values["images"], strict=True):
        image["id"] = numbers[renamed["id"]]
    for entry, renamed in zip(plain["annotations"], values["annotations"], strict=True):
        entry["image_id"] = numbers[renamed["image_id"]]
    for entry in entries:
        entry["image_id"] = numbers[entry["image_id"]]
    expected = by_hand(write(tmp_path / "plain.json", plain), detections(entries))
    assert list(evaluation.metrics.values()) == pytest.approx(expected, abs=1e-12, nan_ok=True)


def test_no_detections_give_zero_ap(annotations, detections):
    evaluation = evaluate_detections(annotations, detections([]))
    assert set(evaluation.metrics.values()) == {0.0}
    assert [entry.ap for entry in evaluation.per_class] == [0.0, 0.0, 0.0]


def test_classes_without_instances_are_nan(tmp_path, detections):
    values = content()
    values["annotations"] = [entry for entry in values["annotations"] if entry["category_id"] == CAT]
    path = write(tmp_path / "annotations.json", values)
    evaluation = evaluate_detections(path, detections(noisy_detections(content(), 1)))
    by_name = {entry.name: entry for entry in evaluation.per_class}
    assert math.isnan(by_name["dog"].ap) and by_name["dog"].instances == 0
    assert evaluation.metrics["AP"] == by_name["cat"].ap
    evaluation = evaluate_detections(path, detections([]), classes=["bird"])
    assert all(math.isnan(value) for value in evaluation.metrics.values())


def test_classes_and_limit_select_a_subset(annotations, detections):
    path = detections(noisy_detections(VALUES, 2))
    cats = evaluate_detections(annotations, path, classes=["cat"])
    assert [entry.name for entry in cats.per_class] == ["cat"]
    expected = by_hand(annotations, path, categories=[CAT])
    assert list(cats.metrics.values()) == pytest.approx(expected, abs=1e-12, nan_ok=True)
    first = evaluate_detections(annotations, path, limit=1)  # image 30
    assert first.images == 1
    assert {entry.name: entry.instances for entry in first.per_class} == {"cat": 1, "dog": 1, "bird": 0}


def test_boxes_of_detections_are_ignored(annotations, detections):
    plain = noisy_detections(VALUES, 0)
    boxed = [{**entry, "bbox": [0, 0, 200, 140]} for entry in plain]
    assert (
        evaluate_detections(annotations, detections(boxed)).metrics
        == evaluate_detections(annotations, detections(plain)).metrics
    )


def test_pycocotools_is_silenced_without_redirecting_stdout(annotations, detections, capsys):
    path = detections(as_detections(VALUES))
    printed = []

    def print_repeatedly():
        while not done.is_set():
            print("line")
            printed.append(1)
            done.wait(0.001)

    done = threading.Event()
    printer = threading.Thread(target=print_repeatedly)
    printer.start()
    try:
        for _ in range(3):
            evaluate_detections(annotations, path)
    finally:
        done.set()
        printer.join()
    assert capsys.readouterr().out.split("\n") == ["line"] * len(printed) + [""]
    with contextlib.redirect_stdout(io.StringIO()) as output:
        by_hand(annotations, path)
    assert "Average Precision" in output.getvalue()


def test_json_and_table(annotations, detections):
    evaluation = evaluate_detections(annotations, detections(as_detections(VALUES)), classes=["bird"])
    values = json.loads(json.dumps(evaluation.to_dict(), allow_nan=False))
    assert values["metrics"]["AP"] == evaluation.metrics["AP"] and values["metrics"]["APs"] is None
    (bird,) = values["per_class"]
    assert bird == {"name": "bird", "AP": pytest.approx(1.0), "AP50": pytest.approx(1.0), "instances": 1}
    assert (values["images"], values["timings"]) == (4, None)
    table = evaluation.format_table().splitlines()
    assert "4 images, 1 instances" in table[0]
    assert table[1].split() == ["AP", "100.0", "AP50", "100.0", "AP75", "100.0"]
    assert table[2].split() == ["APs", "-", "APm", "100.0", "APl", "-"]
    assert table[-1].split() == ["bird", "100.0", "100.0", "1"]


def test_no_common_category_raises(annotations, detections):
    entries = [{**entry, "category_id": entry["category_id"] + 100} for entry in as_detections(VALUES)]
    with pytest.raises(DataError, match=r"No detection is of a category .*\[3, 17, 40\]"):
        evaluate_detections(annotations, detections(entries))
    entries[0]["category_id"] = CAT  # other categories are ignored, as for a model with more classes
    assert evaluate_detections(annotations, detections(entries)).metrics["AP"] < 0.5
