"""``predict_batch``, ``detect`` and ``count_candidates`` of both families."""

import pytest
import torch
from helpers.dense_outputs import dense_class_scores
from helpers.models import HEADS, YOLACT_VARIANTS
from helpers.predictions import assert_same_result, smooth_images

from solo_infer import PostprocessConfig, YOLACTPostprocessConfig, load_image
from solo_infer.diagnostics.benchmark import STAGES
from solo_infer.errors import ConfigError
from solo_infer.inference.preprocess import plan, prepare
from solo_infer.inference.yolact import class_scores
from solo_infer.runtime.stopwatch import Stopwatch

MODELS = (*HEADS, *YOLACT_VARIANTS)
FEW = {
    "solo": PostprocessConfig(max_per_image=2, score_thr=0.05),
    "yolact": YOLACTPostprocessConfig(max_per_image=2, score_thr=0.2),
}


@pytest.fixture(params=MODELS)
def model(request, small_models, small_yolacts):
    return {**small_models, **small_yolacts}[request.param]


@pytest.fixture
def images():
    return [load_image(image) for image in smooth_images(4)]


def network_inputs(model, images):
    """Return the network inputs and geometries of images of equal padded size."""
    preprocessing = model.config.preprocessing
    geometries = [plan(image, preprocessing) for image in images]
    return prepare(images, geometries, preprocessing, model.device, model.dtype), geometries


@pytest.mark.parametrize("synchronize", [False, True])
def test_predict_batch_equals_calls(model, images, synchronize):
    results = model.predict_batch(images, synchronize=synchronize)
    assert len(results) == len(images)
    for image, result in zip(images, results, strict=True):
        assert_same_result(result, model(image.pixels))
        assert result.source == image.name
        assert set(result.timings) == set(STAGES)


def test_predict_batch_with_thresholds(model, images):
    thresholds = FEW[model.family]
    results = model.predict_batch(images, thresholds=thresholds)
    assert all(len(result) <= 2 for result in results) and any(len(result) for result in results)
    for image, result in zip(images, results, strict=True):
        assert_same_result(result, model.with_thresholds(thresholds)(image.pixels))


def test_predict_batch_of_no_images(model):
    assert model.predict_batch([]) == []


def test_predict_batch_refuses_thresholds_of_another_family(model, images):
    other = FEW["yolact" if model.family == "solo" else "solo"]
    with pytest.raises(ConfigError, match=f"thresholds are {type(other).__name__}"):
        model.predict_batch(images, thresholds=other)
    inputs, geometries = network_inputs(model, [images[0].pixels])
    with pytest.raises(ConfigError, match=f"thresholds are {type(other).__name__}"):
        model.detect(inputs, geometries, thresholds=other)


def test_detect_gives_the_tensors_of_results(model, images):
    for image in images:
        inputs, geometries = network_inputs(model, [image.pixels])
        stopwatch = Stopwatch()
        (detections,) = model.detect(inputs, geometries, stopwatch=stopwatch)
        assert set(stopwatch.seconds) == set(STAGES) - {"preprocess"}
        result = model(image.pixels)
        assert torch.equal(detections.scores, result.scores)
        assert torch.equal(detections.labels, result.labels)
        assert torch.equal(detections.boxes, result.boxes)
        assert torch.equal(detections.packed_masks, result.packed_masks)
        assert not detections.scores.requires_grad


def test_detect_with_thresholds_and_classes(model, images):
    thresholds = FEW[model.family]
    inputs, geometries = network_inputs(model, [images[0].pixels])
    (detections,) = model.only("cat").detect(inputs, geometries, thresholds=thresholds)
    expected = model.only("cat")(images[0].pixels, thresholds=thresholds)
    assert torch.equal(detections.scores, expected.scores)
    assert set(detections.labels.tolist()) <= {0}


@torch.no_grad()
def test_count_candidates(model, images):
    """The plain forward pass has as many scores above the threshold, up to rounding."""
    pixels = images[0].pixels
    inputs, _ = network_inputs(model, [pixels, pixels[:, ::-1]])
    output = model.network(inputs)
    if model.family == "solo":
        scores = dense_class_scores(output)
    else:
        scores = class_scores(output.predictions.logits)
    above = scores > model.config.thresholds.score_thr
    counts = model.count_candidates(inputs)
    assert len(counts) == 2 and all(isinstance(count, int) for count in counts)
    for count, expected in zip(counts, above.flatten(1).sum(dim=1).tolist(), strict=True):
        assert abs(count - expected) <= 2 and expected > 10
    for count, expected in zip(
        model.only("cat").count_candidates(inputs), above[..., 0].flatten(1).sum(dim=1).tolist(), strict=True
    ):
        assert abs(count - expected) <= 2
    nothing = type(FEW[model.family])(score_thr=1.0)
    assert model.with_thresholds(nothing).count_candidates(inputs) == [0, 0]
