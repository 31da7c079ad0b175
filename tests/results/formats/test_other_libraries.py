"""Objects of supervision and FiftyOne."""

import importlib
import json
import types

import numpy as np
import pytest
from helpers.results import HEIGHT, WIDTH, make_result
from PIL import Image

from solo_infer.errors import ResultError


@pytest.fixture
def supervision():
    return pytest.importorskip("supervision", reason="supervision is not installed")


@pytest.mark.parametrize("count", [5, 1, 0])
def test_supervision(supervision, count):
    result = make_result()[:count]
    detections = result.to_supervision()
    assert isinstance(detections, supervision.Detections) and len(detections) == count
    for values, expected in (
        (detections.xyxy, result.boxes),
        (detections.mask, result.masks),
        (detections.confidence, result.scores),
        (detections.class_id, result.labels),
    ):
        np.testing.assert_array_equal(values, expected.numpy())
    assert list(detections["class_name"]) == result.names


def test_annotators_of_supervision(supervision):
    result = make_result()
    drawn = supervision.MaskAnnotator().annotate(result.image.copy(), result.to_supervision())
    changed = (drawn != result.image).any(axis=2)
    np.testing.assert_array_equal(changed, result.masks.any(dim=0).numpy())


def test_tracker_input_can_be_filtered(supervision):
    detections = make_result().to_supervision()
    best = detections[detections.confidence > 0.6]
    assert list(best["class_name"]) == ["dog", "cat"] and best.mask.shape == (2, HEIGHT, WIDTH)


def check_fiftyone(detections, result):
    assert len(detections) == 4  # the last mask is empty
    for detection, instance in zip(detections, result, strict=False):
        left, top, width, height = (
            np.multiply(detection.bounding_box, (WIDTH, HEIGHT) * 2).round().astype(int)
        )
        mask = np.zeros((HEIGHT, WIDTH), bool)
        mask[top : top + height, left : left + width] = detection.mask
        np.testing.assert_array_equal(mask, instance.mask.numpy())
        assert (detection.label, detection.confidence) == (instance.name, instance.score)


def test_values_for_fiftyone(monkeypatch):
    """The keywords and values, without the package, whose database is large."""
    module = types.SimpleNamespace(Detection=types.SimpleNamespace, Detections=types.SimpleNamespace)
    monkeypatch.setattr(importlib, "import_module", {"fiftyone": module}.__getitem__)
    detections = make_result().to_fiftyone().detections
    assert set(vars(detections[0])) == {"label", "confidence", "bounding_box", "mask"}
    check_fiftyone(detections, make_result())


def test_fiftyone(tmp_path):
    fiftyone = pytest.importorskip("fiftyone", reason="fiftyone is not installed")
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "a.png")
    sample = fiftyone.Sample(filepath=str(tmp_path / "a.png"))
    sample["segments"] = make_result().to_fiftyone()
    check_fiftyone(sample["segments"].detections, make_result())
    json.loads(sample.to_json())


@pytest.mark.parametrize("name", ["supervision", "fiftyone"])
def test_a_missing_package_is_named(monkeypatch, name):
    def fail(module):
        raise ImportError(f"No module named {module!r}")

    monkeypatch.setattr(importlib, "import_module", fail)
    with pytest.raises(ResultError, match=f"needs the package {name} .*pip install {name}"):
        getattr(make_result(), f"to_{name}")()
