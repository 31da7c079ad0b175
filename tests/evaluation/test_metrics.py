"""COCO's mask metrics: what pycocotools gives, also where it gives up."""

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
from solo_infer.evaluation.evaluate import score

VALUES = content()


@pytest.fixture
def annotations(tmp_path):
    return write(tmp_path / "annotations.json", VALUES)


@pytest.fixture
def detections(tmp_path):
    return lambda found: write(tmp_path / "detections.json", found)


def test_the_truth_is_perfect(annotations, detections):
    found = score(annotations, detections(as_detections(VALUES)))
    assert tuple(found.metrics) == METRICS
    for name in METRICS:
        # With one detection an image and class, not all can be found.
        assert found.metrics[name] == pytest.approx(1.0) or name == "AR1", name
    assert 0 < found.metrics["AR1"] < 1
    assert [entry.name for entry in found.per_class] == ["dog", "cat", "bird"]  # by id, as in COCO
    assert [entry.instances for entry in found.per_class] == [4, 3, 1]  # the crowd does not count
    assert all((entry.ap, entry.ap50) == pytest.approx((1.0, 1.0)) for entry in found.per_class)
    assert (found.images, found.timings, found.detections) == (4, None, detections(as_detections(VALUES)))


@pytest.mark.parametrize("seed", range(3))
def test_the_numbers_of_pycocotools(annotations, detections, seed):
    path = detections(noisy_detections(VALUES, seed))
    found = score(annotations, path)
    assert list(found.metrics.values()) == pytest.approx(by_hand(annotations, path), abs=1e-12, nan_ok=True)
    assert 0.05 < found.metrics["AP"] < 0.95
    for entry in found.per_class:
        number = {"cat": CAT, "dog": DOG, "bird": BIRD}[entry.name]
        alone = by_hand(annotations, path, categories=[number])
        assert [entry.ap, entry.ap50] == pytest.approx(alone[:2], abs=1e-12)


def test_other_numbers_of_detections(annotations, detections):
    path = detections(noisy_detections(VALUES, 0))
    found = score(annotations, path, max_detections=(4, 1, 2, 1))
    names = [name.replace("AR100", "AR4").replace("AR10", "AR2") for name in METRICS]
    assert list(found.metrics) == names
    expected = by_hand(annotations, path, max_detections=(1, 2, 4))  # whose AP is of 100, so not there
    assert list(found.metrics.values())[1:] == pytest.approx(expected[1:], abs=1e-12, nan_ok=True)
    assert found.metrics["AP"] == pytest.approx(
        sum(entry.ap for entry in found.per_class) / len(found.per_class)
    )


def test_a_single_number_of_detections(annotations, detections):
    path = detections(as_detections(VALUES))
    assert score(annotations, path, max_detections=[5]).metrics["AR5"] == pytest.approx(1.0)
    one = score(annotations, path, max_detections=[1]).metrics
    assert len(one) == 10 and one["AP"] < 1 and one["AR1"] < 1


@pytest.mark.parametrize("numbers", [(), (0,), (1, -5), (2.5,), (True,), ("10",)])
def test_impossible_numbers_of_detections(annotations, detections, numbers):
    with pytest.raises(ConfigError, match="max_detections=.*whole numbers of at least 1"):
        score(annotations, detections([]), max_detections=numbers)


def test_ids_of_annotations_do_not_matter(tmp_path, detections):
    values = content()
    for number, entry in enumerate(values["annotations"]):
        entry["id"] = number // 2  # 0 is "no match" for pycocotools, and of two equal ones it loses one
    found = score(write(tmp_path / "annotations.json", values), detections(as_detections(values)))
    assert (found.metrics["AP"], found.metrics["AR100"]) == pytest.approx((1.0, 1.0))
    assert sum(entry.instances for entry in found.per_class) == 8


def test_no_detections(annotations, detections):
    found = score(annotations, detections([]))
    assert set(found.metrics.values()) == {0.0}
    assert [entry.ap for entry in found.per_class] == [0.0, 0.0, 0.0]


def test_nothing_to_measure(tmp_path, detections):
    values = content()
    values["annotations"] = [entry for entry in values["annotations"] if entry["category_id"] == CAT]
    path = write(tmp_path / "annotations.json", values)
    found = score(path, detections(noisy_detections(content(), 1)))
    by_name = {entry.name: entry for entry in found.per_class}
    assert math.isnan(by_name["dog"].ap) and by_name["dog"].instances == 0
    assert found.metrics["AP"] == by_name["cat"].ap
    found = score(path, detections([]), classes=["bird"])
    assert all(math.isnan(value) for value in found.metrics.values())


def test_choosing_classes_and_images(annotations, detections):
    path = detections(noisy_detections(VALUES, 2))
    cats = score(annotations, path, classes=["cat"])
    assert [entry.name for entry in cats.per_class] == ["cat"]
    expected = by_hand(annotations, path, categories=[CAT])
    assert list(cats.metrics.values()) == pytest.approx(expected, abs=1e-12, nan_ok=True)
    first = score(annotations, path, limit=1)  # image 30
    assert first.images == 1
    assert {entry.name: entry.instances for entry in first.per_class} == {"cat": 1, "dog": 1, "bird": 0}


def test_boxes_of_detections_do_not_count(annotations, detections):
    plain = noisy_detections(VALUES, 0)
    boxed = [{**entry, "bbox": [0, 0, 200, 140]} for entry in plain]
    assert score(annotations, detections(boxed)).metrics == score(annotations, detections(plain)).metrics


def test_nothing_is_printed_and_pycocotools_stays_as_it_is(annotations, detections, capsys):
    path = detections(as_detections(VALUES))
    seen = []

    def talk():
        while not done.is_set():
            print("me too")
            seen.append(1)
            done.wait(0.001)

    done = threading.Event()
    talker = threading.Thread(target=talk)
    talker.start()
    try:
        for _ in range(3):
            score(annotations, path)
    finally:
        done.set()
        talker.join()
    assert capsys.readouterr().out.split("\n") == ["me too"] * len(seen) + [""]
    with contextlib.redirect_stdout(io.StringIO()) as told:
        by_hand(annotations, path)
    assert "Average Precision" in told.getvalue()


def test_as_json_and_as_table(annotations, detections):
    values = content()
    found = score(annotations, detections(as_detections(values)), classes=["bird"])
    told = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert told["metrics"]["AP"] == found.metrics["AP"] and told["metrics"]["APs"] is None
    (bird,) = told["per_class"]
    assert bird == {"name": "bird", "AP": pytest.approx(1.0), "AP50": pytest.approx(1.0), "instances": 1}
    assert (told["images"], told["timings"]) == (4, None)
    table = found.format_table().splitlines()
    assert "4 images, 1 instances" in table[0]
    assert table[1].split() == ["AP", "100.0", "AP50", "100.0", "AP75", "100.0"]
    assert table[2].split() == ["APs", "-", "APm", "100.0", "APl", "-"]
    assert table[-1].split() == ["bird", "100.0", "100.0", "1"]


def test_classes_in_common_are_needed(annotations, detections):
    entries = [{**entry, "category_id": entry["category_id"] + 100} for entry in as_detections(VALUES)]
    with pytest.raises(DataError, match=r"No detection is of a category .*\[3, 17, 40\]"):
        score(annotations, detections(entries))
    entries[0]["category_id"] = CAT  # others are left out, as with a model that knows more classes
    assert score(annotations, detections(entries)).metrics["AP"] < 0.5
