"""Models of every family in an engine: the results of the PyTorch model."""

import numpy as np
import pytest
import torch
from helpers.engines import engine_model

from solo_infer.diagnostics.pairing import pair_with, reference_of
from solo_infer.inference.detections import Detections
from solo_infer.segmenters.base import Segmenter

FAMILIES = ("tiny", "solo", "decoupled", "decoupled_light", "solov2", "mmdet", "original")


@pytest.fixture(scope="module")
def models(small_models, small_yolacts, small_tiny):
    """Return a small model of every family and variant."""
    return {"tiny": small_tiny, **small_models, **small_yolacts}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("upright", [False, True])
def test_results_equal_those_of_pytorch(family, upright, models, photo):
    model = models[family]
    engine = engine_model(model)
    assert isinstance(engine, type(model)) and isinstance(engine, Segmenter)
    image = np.ascontiguousarray(photo.transpose(1, 0, 2)) if upright else photo
    result, expected = engine(image), model(image)
    assert len(expected) > 3
    # Masks of these models have few pixels: one that crosses the threshold moves a score by hundredths.
    found, reference = (
        Detections(item.scores, item.labels, item.boxes, item.packed_masks) for item in (result, expected)
    )
    pairs = pair_with(found, reference_of(reference, image.shape[1]), image.shape[:2], 0.05)
    assert pairs.unpaired <= 0.05 and pairs.iou_loss < 0.1
    assert result.image_size == image.shape[:2] and result.categories == model.config.categories


def test_tiles(small_tiny, photo):
    # Without a threshold, each tile has a hundred instances of noise, which take half a minute to compare.
    options = {"tile": (192, 64), "min_score": 0.12}
    result, expected = engine_model(small_tiny)(photo, **options), small_tiny(photo, **options)
    assert len(result) == len(expected) > 5
    torch.testing.assert_close(result.scores, expected.scores, rtol=0, atol=1e-3)


def test_pixels(small_tiny, photo):
    """Normalization in the graph differs by the rounding of the padding."""
    result, expected = engine_model(small_tiny, pixels=True)(photo), small_tiny(photo)
    assert abs(len(result) - len(expected)) <= 1
    torch.testing.assert_close(result.scores[:5], expected.scores[:5], rtol=0, atol=1e-2)


def test_images_of_another_size_fit_into_a_fixed_one(small_tiny, photo):
    engine = engine_model(small_tiny, size=(96, 160))
    assert len(engine(photo)) == len(small_tiny(photo))
    upright = engine(np.ascontiguousarray(photo.transpose(1, 0, 2)))
    assert len(upright) > 3 and upright.masks.shape[1:] == (photo.shape[1], photo.shape[0])


def test_representation(small_tiny):
    assert "any size, float32 in torch" in repr(engine_model(small_tiny))
    assert "96 x 160" in repr(engine_model(small_tiny, size=(96, 160)))
