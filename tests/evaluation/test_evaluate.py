"""Evaluation of a model on a COCO data set: class matching, results file, report, errors."""

import gc
import json
import logging
import math
import os
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.coco_sets import BIRD, CAT, DOG, METRICS, by_hand, content, draw_images, write
from helpers.oracle_segmenter import OracleSegmenter
from PIL import Image
from pycocotools import mask as rle

from solo_infer import SOLO, PostprocessConfig
from solo_infer.config.categories import Categories
from solo_infer.diagnostics.benchmark import STAGES
from solo_infer.errors import DataError, ImageError, ResultError
from solo_infer.evaluation.evaluate import evaluate, evaluate_detections
from solo_infer.results.result import Result

pytest_plugins = ["helpers.evaluation_fixtures"]


def read_entries(path):
    return json.loads(path.read_bytes())


# --- Evaluation


def test_perfect_model_has_full_ap(oracle, data_set):
    evaluation = evaluate(oracle, *data_set)
    for name in set(METRICS) - {"AR1"}:
        assert evaluation.metrics[name] == pytest.approx(1.0), name
    assert [entry.name for entry in evaluation.per_class] == ["dog", "cat", "bird"]
    assert evaluation.detections is None
    assert evaluation.timings.images == 4 and set(evaluation.timings.stages) == {"network", "record"}
    assert evaluation.timings.stages["network"] == 0.25
    assert evaluation.timings.images_per_second == pytest.approx(4 / evaluation.timings.seconds)


def test_output_file_holds_the_scored_detections(real, data_set, tmp_path):
    images, annotations = data_set
    output = tmp_path / "deep" / "detections.json"
    evaluation = evaluate(real, images, annotations, output=output, limit=2)
    entries = read_entries(output)
    assert {entry["image_id"] for entry in entries} == {30, 7}
    rescored = evaluate_detections(annotations, output, limit=2)
    assert (rescored.metrics, rescored.per_class) == (evaluation.metrics, evaluation.per_class)
    assert (evaluation.detections, evaluation.images) == (output, 2)
    assert set(evaluation.timings.stages) == {"load", "wait", *STAGES, "record"}
    values = json.loads(json.dumps(evaluation.to_dict(), allow_nan=False))
    assert values["detections"] == str(output) and values["timings"]["images_per_second"] > 0
    assert "2 images in " in evaluation.format_table() and "backbone" in evaluation.format_table()

    direct = real(str(images / "a/1.png"))
    written = [entry for entry in entries if entry["image_id"] == 7]
    assert [entry["score"] for entry in written] == direct.scores.tolist()
    ids = dict(zip(real.config.categories.names, (CAT, DOG, BIRD), strict=True))
    assert [entry["category_id"] for entry in written] == [ids[name] for name in direct.names]
    assert len(written) > 5 and len(set(direct.names)) > 1
    assert np.array_equal(rle.decode(written[0]["segmentation"]), direct.masks[0].numpy())


def test_paths_may_be_strings(model, data_set, tmp_path):
    images, annotations = map(str, data_set)
    evaluation = evaluate(model, images, annotations, output=str(tmp_path / "out.json"), limit=1)
    rescored = evaluate_detections(annotations, str(tmp_path / "out.json"), limit=1)
    assert rescored.metrics == evaluation.metrics
    assert rescored.detections == evaluation.detections == tmp_path / "out.json"


def test_metrics_equal_pycocotools(model, data_set, tmp_path):
    evaluation = evaluate(model, *data_set, output=tmp_path / "out.json")
    expected = by_hand(data_set[1], tmp_path / "out.json")
    assert list(evaluation.metrics.values()) == pytest.approx(expected, nan_ok=True)
    assert 0.2 < evaluation.metrics["AP"] < 0.99


def test_limit_selects_first_images(model, data_set, tmp_path):
    evaluation = evaluate(model, *data_set, output=tmp_path / "2.json", limit=2)
    assert evaluation.images == evaluation.timings.images == 2
    assert {entry["image_id"] for entry in read_entries(tmp_path / "2.json")} == {30, 7}
    evaluate(model, *data_set, output=tmp_path / "4.json")
    limited = evaluate_detections(data_set[1], tmp_path / "4.json", limit=2)
    assert (limited.metrics, limited.per_class) == (evaluation.metrics, evaluation.per_class)


def test_classes_missing_in_data_set_are_excluded_before_nms(
    small_model, data_set, other_annotations, tmp_path
):
    model = small_model.with_thresholds(PostprocessConfig(nms_pre=60, max_per_image=3))
    path = other_annotations((DOG, "dog"))
    evaluation = evaluate(model, data_set[0], path, output=tmp_path / "out.json", max_detections=[3], limit=2)
    assert [entry.name for entry in evaluation.per_class] == ["dog"]
    unlimited = small_model.with_thresholds(PostprocessConfig(nms_pre=60))
    for image in content()["images"][:2]:
        dogs = unlimited(str(data_set[0] / image["file_name"])).filter(classes="dog")[:3]
        written = [entry for entry in read_entries(tmp_path / "out.json") if entry["image_id"] == image["id"]]
        scores = [entry["score"] for entry in written]
        assert scores == pytest.approx(dogs.scores.tolist(), abs=1e-6)
        assert {entry["category_id"] for entry in written} <= {DOG}
        assert len(written) == 3  # otherwise the test checks nothing
    assert set(model(str(data_set[0] / "b/2.png")).names) != {"dog"}  # other classes would displace dogs


def test_thresholds_are_raised_to_max_detections(model, data_set, monkeypatch):
    calls = []
    stream = OracleSegmenter.stream

    def watch(self, source, **options):
        calls.append(options)
        return stream(self, source, **options)

    monkeypatch.setattr(OracleSegmenter, "stream", watch)
    model.config = replace(model.config, thresholds=PostprocessConfig(nms_pre=12, sigma=3.0))
    for numbers in ((1, 10, 100), (1, 600), (5,)):
        evaluate(model, *data_set, limit=1, max_detections=numbers, batch_size=3)
    thresholds = model.config.thresholds
    raised = replace(thresholds, max_per_image=600, nms_pre=600)
    assert [used["thresholds"] for used in calls] == [thresholds, raised, thresholds]
    assert {used["batch_size"] for used in calls} == {3}


def test_classes_missing_in_model_count_as_zero(oracle, data_set, other_annotations, caplog):
    path = other_annotations((DOG, "dog"), (CAT, "lynx"), (BIRD, "bird"), (5, "cat"))
    with caplog.at_level(logging.WARNING, logger="solo_infer"):
        evaluation = evaluate(oracle, data_set[0], path)
    assert "The model lacks 1 of the 4 classes (lynx): they count with AP 0" in caplog.text
    by_name = {entry.name: entry.ap for entry in evaluation.per_class}
    assert by_name["lynx"] == 0.0 and math.isnan(by_name["cat"])
    assert (by_name["dog"], by_name["bird"]) == pytest.approx((1.0, 1.0))
    assert evaluation.metrics["AP"] == pytest.approx(2 / 3)
    caplog.clear()
    evaluation = evaluate(oracle, data_set[0], path, classes=["dog", "bird", "cat"])
    assert evaluation.metrics["AP"] == pytest.approx(1.0) and not caplog.records


def test_no_common_class_raises(model, data_set, other_annotations, no_predictions):
    names = ["lynx", "kite", *(f"thing {number}" for number in range(9))]
    path = other_annotations(*enumerate(names, start=1))
    message = r"no class in common: the model has cat, dog, bird; .* has lynx, kite, .* 11 in all"
    with pytest.raises(DataError, match=message):
        evaluate(model, data_set[0], path)


def test_no_detections_give_zero_ap(real, data_set, tmp_path):
    strict = real.with_thresholds(PostprocessConfig(score_thr=1.0))
    evaluation = evaluate(strict, *data_set, output=tmp_path / "none.json", limit=1)
    assert read_entries(tmp_path / "none.json") == []
    assert evaluation.metrics["AP"] == evaluation.metrics["AR100"] == 0.0


def test_results_are_released_one_by_one(model, data_set, monkeypatch):
    alive: list[weakref.ref] = []
    counts = []

    def watch(**values):
        gc.collect()
        counts.append(sum(result() is not None for result in alive))
        result = Result(**values)
        alive.append(weakref.ref(result))
        return result

    monkeypatch.setattr(OracleSegmenter, "make", staticmethod(watch))
    evaluate(model, *data_set)
    assert len(counts) == 4 and max(counts) <= 1


def test_interrupt_keeps_finished_detections(model, data_set, tmp_path, monkeypatch):
    stream = OracleSegmenter.stream

    def stop(self, *arguments, **options):
        results = stream(self, *arguments, **options)
        yield next(results)
        raise KeyboardInterrupt

    monkeypatch.setattr(OracleSegmenter, "stream", stop)
    with pytest.raises(KeyboardInterrupt):
        evaluate(model, *data_set, output=tmp_path / "part.json")
    assert {entry["image_id"] for entry in read_entries(tmp_path / "part.json")} == {30}


# --- Errors


def test_missing_and_wrong_images_are_reported_together(model, data_set, tmp_path, no_predictions):
    draw_images(tmp_path, content())
    (tmp_path / "b" / "2.png").unlink()
    (tmp_path / "4.png").write_text("not an image")
    Image.new("RGB", (150, 220)).save(tmp_path / "3.png")
    with pytest.raises(DataError) as caught:
        evaluate(model, tmp_path, data_set[1])
    assert f"Of the 4 images of {data_set[1]} in {tmp_path}: 1 are missing (b/2.png); 1 have" in (
        str(caught.value)
    )
    assert "1 have another size (3.png); 1 are not images (4.png)." in str(caught.value)
    with pytest.raises(DataError, match=r"4 are missing \(b/2.png, a/1.png, 3.png, 4.png\)"):
        evaluate(model, tmp_path / "elsewhere", data_set[1])


def test_two_names_of_one_file(model, data_set, tmp_path, no_predictions):
    values = content()
    values["images"][2]["file_name"] = "./4.png"
    with pytest.raises(DataError, match='several "file_name" refer to the same file'):
        evaluate(model, data_set[0], write(tmp_path / "twice.json", values))


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_image_sizes_respect_exif_orientation(real, tmp_path, suffix):
    values = content()
    values["images"] = [{"id": 7, "file_name": f"rotated{suffix}", "height": 150, "width": 220}]
    values["annotations"] = [entry for entry in values["annotations"] if entry["image_id"] == 7]
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (150, 220)).save(tmp_path / f"rotated{suffix}", exif=exif)
    evaluation = evaluate(real, tmp_path, write(tmp_path / "annotations.json", values))
    assert evaluation.images == 1
    values["images"][0].update(height=220, width=150)
    values["annotations"] = []
    with pytest.raises(DataError, match="another size|is 220x150 px .*, but 150x220 px"):
        evaluate(real, tmp_path, write(tmp_path / "annotations.json", values))


def test_damaged_image_raises(real, data_set, tmp_path):
    draw_images(tmp_path, content())
    content_bytes = (tmp_path / "b" / "2.png").read_bytes()
    (tmp_path / "b" / "2.png").write_bytes(content_bytes[: len(content_bytes) // 2])
    with pytest.raises(ImageError, match=r"2\.png"):
        evaluate(real, tmp_path, data_set[1], output=tmp_path / "out.json")
    assert not (tmp_path / "out.json").exists()


def test_unreadable_header_defers_size_check_to_decoding(real, data_set, monkeypatch):
    monkeypatch.setattr("solo_infer.evaluation.predict.upright_size", lambda path: 1 / 0)
    assert evaluate(real, *data_set, limit=1).images == 1
    values = content()
    values["images"][0]["height"] = 151
    values["annotations"] = []
    path = write(data_set[1].with_name("taller.json"), values)
    with pytest.raises(DataError, match=r"2\.png is 220x150 px .*, but 220x151 px in"):
        evaluate(real, data_set[0], path, limit=1)


def test_masks_are_checked_before_prediction(model, data_set, tmp_path, no_predictions):
    values = content()
    values["annotations"][2]["segmentation"] = 5
    with pytest.raises(DataError, match="annotation 3 of image 7.*expected polygons or RLE"):
        evaluate(model, data_set[0], write(tmp_path / "broken.json", values))


def test_invalid_output_paths_raise(model, data_set, tmp_path, no_predictions):
    for path in (tmp_path, Path(os.devnull)):
        with pytest.raises(ResultError, match="is not a regular file"):
            evaluate(model, *data_set, output=path)
    (tmp_path / "file").touch()
    with pytest.raises(ResultError, match="cannot be written"):
        evaluate(model, *data_set, output=tmp_path / "file" / "out.json")


def test_duplicate_class_names_in_model(real, data_set, tmp_path):
    config = replace(real.config, categories=Categories(("bird", "dog", "bird")))
    evaluate(SOLO(config, real.network), *data_set, output=tmp_path / "out.json", limit=1)
    labels = real(str(data_set[0] / "b/2.png")).labels.tolist()
    written = [entry["category_id"] for entry in read_entries(tmp_path / "out.json")]
    assert written == [DOG if label == 1 else BIRD for label in labels] and {0, 2} <= set(labels)
