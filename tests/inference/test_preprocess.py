"""Sizes of the network input, and preprocessing of batches."""

import numpy as np
import pytest
import torch
from helpers.smooth_images import smooth_images

from solo_infer.config import PreprocessConfig
from solo_infer.inference.preprocess import Geometry, plan, plan_fixed_size, prepare


@pytest.mark.parametrize(
    ("size", "resized", "padded"),
    [
        ((427, 640), (800, 1199), (800, 1216)),
        ((600, 512), (938, 800), (960, 800)),
        ((1, 1), (800, 800), (800, 800)),
        ((1, 4000), (1, 1333), (32, 1344)),
        ((2000, 20), (1333, 13), (1344, 32)),
        ((800, 1333), (800, 1333), (800, 1344)),
        ((3000, 4000), (800, 1067), (800, 1088)),
    ],
)
def test_plan(size, resized, padded):
    assert plan(np.zeros((*size, 3), np.uint8), PreprocessConfig()) == Geometry(size, resized, padded)


def test_plan_of_light_models_rounds_beyond_the_long_side():
    assert plan(np.zeros((512, 512, 3), np.uint8), PreprocessConfig(512, 852)).padded == (512, 512)
    assert plan(np.zeros((300, 451, 3), np.uint8), PreprocessConfig(512, 852)).resized == (512, 770)


@pytest.mark.parametrize(
    ("image_size", "input_size", "resized"),
    [
        ((192, 288), (96, 160), (96, 144)),
        ((288, 192), (96, 160), (96, 64)),
        ((100, 1000), (64, 160), (16, 160)),
        ((1, 3000), (64, 128), (1, 128)),
    ],
)
def test_plan_fixed_size_scales_the_image_to_fit(image_size, input_size, resized):
    config = PreprocessConfig(short_side=96, long_side=160)
    geometry = plan_fixed_size(np.zeros((*image_size, 3)), input_size, config)
    assert geometry == Geometry(image_size, resized, input_size)


def test_plan_fixed_size_equals_plan_if_the_padded_size_is_equal():
    config, image = PreprocessConfig(short_side=96, long_side=160), np.zeros((80, 120, 3))
    geometry = plan(image, config)
    assert plan_fixed_size(image, geometry.padded, config) == geometry


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_prepare_batch_equals_single_images(dtype):
    config, device = PreprocessConfig(short_side=96, long_side=160), torch.device("cpu")
    images = [smooth_images(4)[index] for index in (0, 3)]
    geometries = [plan(image, config) for image in images]
    batch = prepare(images, geometries, config, device, dtype)
    assert batch.shape == (2, 3, *geometries[0].padded) and batch.dtype == dtype
    assert batch.is_contiguous(memory_format=torch.channels_last)
    for inputs, image, geometry in zip(batch, images, geometries, strict=True):
        (single,) = prepare([image], [geometry], config, device, dtype)
        assert torch.equal(inputs, single)
        height, width = geometry.resized
        assert not inputs[:, height:].any() and not inputs[:, :, width:].any()
