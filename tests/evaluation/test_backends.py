"""Implementations of COCO's evaluation give the same numbers."""

import builtins
import math
import sys

import pytest
from helpers.coco_sets import content, noisy_detections, write

from solo_infer.evaluation import backends, metrics
from solo_infer.evaluation.evaluate import evaluate_detections

VALUES = content()


@pytest.fixture
def both(monkeypatch, tmp_path):
    """Return a function that evaluates detections with both implementations."""
    pytest.importorskip("faster_coco_eval", reason="faster-coco-eval is not installed (extra eval)")

    def evaluate(values, entries, **options):
        files = write(tmp_path / "annotations.json", values), write(tmp_path / "detections.json", entries)
        evaluations = []
        for backend in (backends.faster_coco_eval(), backends.pycocotools()):
            monkeypatch.setattr(metrics, "select_backend", lambda backend=backend: backend)
            evaluations.append(evaluate_detections(*files, **options))
        return evaluations

    return evaluate


def assert_equal(faster, plain):
    """Compare two evaluations up to the 2e-16 that pycocotools adds to the denominator of the precision."""
    assert faster.metrics == pytest.approx(plain.metrics, abs=1e-12, nan_ok=True)
    for first, second in zip(faster.per_class, plain.per_class, strict=True):
        assert (first.name, first.instances) == (second.name, second.instances)
        assert (first.ap, first.ap50) == pytest.approx((second.ap, second.ap50), abs=1e-12, nan_ok=True)


@pytest.mark.parametrize(
    "options",
    [{}, {"classes": ["dog"]}, {"limit": 2}, {"max_detections": [1]}, {"max_detections": (2, 3, 5, 7)}],
    ids=str,
)
@pytest.mark.parametrize("seed", range(4))
def test_both_give_the_same_metrics(both, seed, options):
    faster, plain = both(VALUES, noisy_detections(VALUES, seed), **options)
    assert_equal(faster, plain)
    assert not math.isnan(plain.metrics["AP50"])


@pytest.mark.parametrize(
    "change",
    [
        lambda values, entries: entries.clear(),
        lambda values, entries: values["annotations"].clear(),
        lambda values, entries: [entry.update(iscrowd=1) for entry in values["annotations"]],
        lambda values, entries: [entry.update(ignore=1) for entry in values["annotations"]],
        lambda values, entries: [entry.update(id=0) for entry in values["annotations"]],
        lambda values, entries: [entry.update(score=0.5) for entry in entries],
        lambda values, entries: [entry.update(area=1e12) for entry in values["annotations"]],
        lambda values, entries: [entry.update(area=1024.0) for entry in values["annotations"]],
        lambda values, entries: [entry.update(bbox=[0, 0, 1, 1]) for entry in entries],
        lambda values, entries: entries.extend(entries * 40),
    ],
    ids=["no detections", "no truth", "crowds", "ignore", "ids", "ties", "area", "area limit", "box", "many"],
)
def test_both_give_the_same_metrics_at_the_edges(both, change):
    values, entries = content(), noisy_detections(VALUES, 1)
    change(values, entries)
    faster, plain = both(values, entries)
    assert_equal(faster, plain)


def test_faster_coco_eval_prints_nothing(both, capfd):
    both(VALUES, noisy_detections(VALUES, 0))
    assert capfd.readouterr() == ("", "")


@pytest.fixture
def selected(monkeypatch):
    """Return a function that selects an implementation while the import of one fails."""

    def select(error):
        real = builtins.__import__

        def failing(name, *args, **options):
            if error is not None and name == "faster_coco_eval":
                raise error
            return real(name, *args, **options)

        for name in [name for name in sys.modules if name.split(".")[0] == "faster_coco_eval"]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setattr(builtins, "__import__", failing)
        return backends.select_backend.__wrapped__().name

    return select


def test_pycocotools_without_faster_coco_eval(selected, caplog):
    missing = ModuleNotFoundError("No module named 'faster_coco_eval'", name="faster_coco_eval")
    assert selected(missing) == "pycocotools" and not caplog.messages


@pytest.mark.parametrize(
    "error",
    [
        ImportError("undefined symbol"),
        OSError("cannot open shared object file"),
        ModuleNotFoundError("No module named 'cv2'", name="cv2"),
    ],
    ids=["import", "library", "dependency"],
)
def test_a_broken_faster_coco_eval_is_reported(selected, caplog, error):
    assert selected(error) == "pycocotools"
    assert f"does not work ({type(error).__name__}: {error}): pycocotools is used" in caplog.text


def test_faster_coco_eval_is_preferred(selected):
    pytest.importorskip("faster_coco_eval", reason="faster-coco-eval is not installed (extra eval)")
    assert selected(None) == "faster-coco-eval"
