import random

import numpy as np
import pytest
import torch

from solo_infer.config import PreprocessConfig
from solo_infer.inference.preprocess import Geometry, plan, prepare
from solo_infer.ops.cv2_resize import resize_bilinear_uint8


def slow_resize(image, height, width):
    """OpenCV's fixed-point arithmetic pixel by pixel; (H, W) uint8."""
    old_height, old_width = image.shape
    scale_y, scale_x = 1.0 / (height / old_height), 1.0 / (width / old_width)
    out = np.zeros((height, width), np.uint8)

    def weights(part):
        return int(np.rint((np.float32(1) - part) * 2048)), int(np.rint(part * 2048))

    def row_sum(y, x, part):
        left, right = weights(part)
        return int(image[y, x]) * left + int(image[y, min(x + 1, old_width - 1)]) * right

    for row in range(height):
        fy = np.float32((row + 0.5) * scale_y - 0.5)
        y = int(np.floor(fy))
        top, bottom = weights(fy - np.float32(y))
        for column in range(width):
            fx = np.float32((column + 0.5) * scale_x - 0.5)
            x = int(np.floor(fx))
            part = fx - np.float32(x)
            if x < 0 or x >= old_width - 1:
                x, part = min(max(x, 0), old_width - 1), np.float32(0)
            upper = row_sum(min(max(y, 0), old_height - 1), x, part)
            lower = row_sum(min(max(y + 1, 0), old_height - 1), x, part)
            out[row, column] = (((upper >> 4) * top >> 16) + ((lower >> 4) * bottom >> 16) + 2) >> 2
    return out


def random_image(rng, height, width):
    return torch.from_numpy(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).permute(2, 0, 1)


@pytest.mark.parametrize("old", [(1, 1), (1, 9), (9, 1), (7, 5), (12, 31), (40, 23)])
@pytest.mark.parametrize("new", [(1, 1), (5, 7), (13, 4), (33, 29)])
def test_equals_opencvs_arithmetic(old, new):
    image = random_image(np.random.default_rng(old[0] * new[1]), *old)
    found = resize_bilinear_uint8(image, *new)
    for channel in range(3):
        np.testing.assert_array_equal(found[channel].numpy(), slow_resize(image[channel].numpy(), *new))


def test_half_size_is_the_rounded_mean_of_four():
    image = torch.tensor([[0, 1, 10, 20], [1, 0, 30, 43]], dtype=torch.uint8)[None]
    assert resize_bilinear_uint8(image, 1, 2).tolist() == [[[1, 26]]]


def test_equal_size_changes_nothing():
    image = random_image(np.random.default_rng(0), 5, 6)
    assert torch.equal(resize_bilinear_uint8(image, 5, 6), image)


def test_equals_opencv_itself():
    cv2 = pytest.importorskip("cv2", reason="OpenCV is not installed: its arithmetic is tested above")
    rng, sizes = np.random.default_rng(1), random.Random(1)
    for round_ in range(200):
        old = sizes.randint(1, 120), sizes.randint(1, 120)
        new = sizes.randint(1, 160), sizes.randint(1, 160)
        if round_ % 10 == 0:
            old = new[0] * 2, new[1] * 2
        image = random_image(rng, *old)
        expected = cv2.resize(image.permute(1, 2, 0).contiguous().numpy(), (new[1], new[0]))
        found = resize_bilinear_uint8(image, *new).permute(1, 2, 0).numpy()
        np.testing.assert_array_equal(found, expected, err_msg=f"{old} -> {new}")


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
def test_sizes_on_the_way(size, resized, padded):
    assert plan(np.zeros((*size, 3), np.uint8), PreprocessConfig()) == Geometry(size, resized, padded)


def test_light_models_round_beyond_their_limit():
    assert plan(np.zeros((512, 512, 3), np.uint8), PreprocessConfig(512, 852)).padded == (512, 512)
    assert plan(np.zeros((300, 451, 3), np.uint8), PreprocessConfig(512, 852)).resized == (512, 770)


def test_padding_is_zero_after_normalization():
    config = PreprocessConfig(short_side=20, long_side=40)
    image = np.full((20, 30, 3), 255, np.uint8)
    found = prepare(image, plan(image, config), config, torch.device("cpu"))
    assert found.shape == (3, 32, 32)
    expected = [(255 - mean) / std for mean, std in zip(config.mean, config.std, strict=True)]
    torch.testing.assert_close(found[:, 5, 5], torch.tensor(expected))
    assert found[:, 20:].abs().max() == found[:, :, 30:].abs().max() == 0
