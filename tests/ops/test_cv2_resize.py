"""The bilinear resize beside OpenCV's arithmetic in plain loops, and beside OpenCV."""

import random

import numpy as np
import pytest
import torch

from solo_infer.ops.cv2_resize import resize_bilinear_uint8, tables


def reference_resize(image, height, width):
    """Resize (H, W) uint8 by OpenCV's fixed-point arithmetic, pixel by pixel."""
    old_height, old_width = image.shape
    scale_y, scale_x = 1.0 / (height / old_height), 1.0 / (width / old_width)
    out = np.zeros((height, width), np.uint8)

    def weights(fraction):
        return int(np.rint((np.float32(1) - fraction) * 2048)), int(np.rint(fraction * 2048))

    def row_sum(y, x, fraction):
        left, right = weights(fraction)
        return int(image[y, x]) * left + int(image[y, min(x + 1, old_width - 1)]) * right

    for row in range(height):
        fy = np.float32((row + 0.5) * scale_y - 0.5)
        y = int(np.floor(fy))
        top, bottom = weights(fy - np.float32(y))
        for column in range(width):
            fx = np.float32((column + 0.5) * scale_x - 0.5)
            x = int(np.floor(fx))
            fraction = fx - np.float32(x)
            if x < 0 or x >= old_width - 1:
                x, fraction = min(max(x, 0), old_width - 1), np.float32(0)
            upper = row_sum(min(max(y, 0), old_height - 1), x, fraction)
            lower = row_sum(min(max(y + 1, 0), old_height - 1), x, fraction)
            out[row, column] = (((upper >> 4) * top >> 16) + ((lower >> 4) * bottom >> 16) + 2) >> 2
    return out


def random_image(rng, height, width):
    return torch.from_numpy(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).permute(2, 0, 1)


@pytest.mark.parametrize("old", [(1, 1), (1, 9), (9, 1), (7, 5), (12, 31), (40, 23)])
@pytest.mark.parametrize("new", [(1, 1), (5, 7), (13, 4), (33, 29)])
def test_resize_equals_opencv_arithmetic(old, new):
    image = random_image(np.random.default_rng(old[0] * new[1]), *old)
    resized = resize_bilinear_uint8(image, *new)
    for channel in range(3):
        np.testing.assert_array_equal(
            resized[channel].numpy(), reference_resize(image[channel].numpy(), *new)
        )


def test_half_size_is_rounded_mean_of_four_pixels():
    image = torch.tensor([[0, 1, 10, 20], [1, 0, 30, 43]], dtype=torch.uint8)[None]
    assert resize_bilinear_uint8(image, 1, 2).tolist() == [[[1, 26]]]


def test_resize_to_equal_size_returns_the_image():
    image = random_image(np.random.default_rng(0), 5, 6)
    assert torch.equal(resize_bilinear_uint8(image, 5, 6), image)


def test_resize_equals_opencv():
    cv2 = pytest.importorskip("cv2", reason="OpenCV is not installed; its arithmetic is tested above")
    rng, sizes = np.random.default_rng(1), random.Random(1)
    for case in range(200):
        old = sizes.randint(1, 120), sizes.randint(1, 120)
        new = sizes.randint(1, 160), sizes.randint(1, 160)
        if case % 10 == 0:
            old = new[0] * 2, new[1] * 2
        image = random_image(rng, *old)
        expected = cv2.resize(image.permute(1, 2, 0).contiguous().numpy(), (new[1], new[0]))
        resized = resize_bilinear_uint8(image, *new).permute(1, 2, 0).numpy()
        np.testing.assert_array_equal(resized, expected, err_msg=f"{old} -> {new}")


@pytest.mark.parametrize("old, new", [((7, 5), (13, 4)), ((8, 6), (4, 3)), ((5, 9), (5, 9))])
def test_tables_reproduce_the_resize(old, new):
    image = random_image(np.random.default_rng(3), *old).int()
    (left, right, left_weight, right_weight), (top, bottom, top_weight, bottom_weight) = tables(old, new)
    sums = (image[:, :, left] * left_weight + image[:, :, right] * right_weight) >> 4
    upper = (sums[:, top] * top_weight[:, None]) >> 16
    lower = (sums[:, bottom] * bottom_weight[:, None]) >> 16
    expected = resize_bilinear_uint8(image.to(torch.uint8), *new)
    assert torch.equal((upper + lower + 2) >> 2, expected.int())
