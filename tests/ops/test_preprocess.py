"""Preprocessing of images to a network input."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.kernels import IMPLEMENTATIONS, use_implementation

from solo_infer.ops.cv2_resize import resize_bilinear_uint8
from solo_infer.ops.preprocess import normalize, preprocess, upload

CPU = torch.device("cpu")
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


@pytest.fixture(autouse=True, params=IMPLEMENTATIONS)
def implementation(request, monkeypatch):
    use_implementation(request.param, monkeypatch)
    return request.param


def random_image(height, width, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_padding_is_zero_after_normalization():
    inputs = preprocess(
        [torch.full((20, 30, 3), 255, dtype=torch.uint8)],
        [(20, 30)],
        (32, 32),
        MEAN,
        STD,
        True,
        CPU,
        torch.float32,
    )
    assert inputs.shape == (1, 3, 32, 32)
    expected = [(255 - mean) / std for mean, std in zip(MEAN, STD, strict=True)]
    torch.testing.assert_close(inputs[0, :, 5, 5], torch.tensor(expected))
    assert inputs[0, :, 20:].abs().max() == inputs[0, :, :, 30:].abs().max() == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("round_to_uint8", [True, False])
def test_batch_equals_the_steps(round_to_uint8, dtype):
    images, sizes = [random_image(13, 31), random_image(40, 24, seed=1)], [(20, 48), (32, 19)]
    inputs = preprocess(images, sizes, (32, 64), MEAN, STD, round_to_uint8, CPU, dtype)
    assert inputs.shape == (2, 3, 32, 64) and inputs.dtype == dtype
    assert inputs.is_contiguous(memory_format=torch.channels_last)
    mean, std = torch.tensor(MEAN)[:, None, None], torch.tensor(STD)[:, None, None]
    for image, (height, width), result in zip(images, sizes, inputs, strict=True):
        planes = image.permute(2, 0, 1)
        if round_to_uint8:
            resized = resize_bilinear_uint8(planes, height, width).float()
        else:
            resized = F.interpolate(planes[None].float(), size=(height, width), mode="bilinear")[0]
        expected = torch.zeros(3, 32, 64)
        expected[:, :height, :width] = (resized - mean) / std
        assert torch.equal(result, expected.to(dtype))


@pytest.mark.parametrize("old", [(1, 1), (2, 3), (37, 53), (64, 96), (300, 11)])
@pytest.mark.parametrize("new", [(1, 1), (37, 53), (32, 48), (101, 7), (75, 131)])
def test_any_sizes(old, new):
    image = random_image(*old, seed=sum(old))
    (result,) = preprocess([image], [new], (128, 160), MEAN, STD, True, CPU, torch.float32)
    resized = resize_bilinear_uint8(image.permute(2, 0, 1), *new).float()
    expected = (resized - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    assert torch.equal(result[:, : new[0], : new[1]], expected)
    assert not result[:, new[0] :].any() and not result[:, :, new[1] :].any()


def test_images_that_are_views():
    image = random_image(40, 60)
    views = [image[3:30, 5:48], image.flip(2), image[::2, ::3]]
    sizes = [(50, 70)] * 3
    results = preprocess(views, sizes, (64, 96), MEAN, STD, True, CPU, torch.float32)
    copies = [view.clone(memory_format=torch.contiguous_format) for view in views]
    assert torch.equal(results, preprocess(copies, sizes, (64, 96), MEAN, STD, True, CPU, torch.float32))


def test_normalize_accepts_float_images():
    pixels = random_image(5, 7)
    normalized = normalize(pixels.float(), MEAN, STD)
    assert normalized.shape == (5, 7, 3) and normalized.dtype == torch.float32
    assert torch.equal(normalized, normalize(pixels, MEAN, STD))
    assert torch.equal(normalized, (pixels - torch.tensor(MEAN)) / torch.tensor(STD))


def test_upload_to_the_cpu_copies_nothing():
    tensor = torch.ones(3)
    assert upload(tensor, CPU) is tensor
