"""Boxes and masks of cells, compared with loops and formulas of single pixels."""

import math

import pytest
import torch

from solo_infer.models.tiny.masks import (
    cell_points,
    coordinate_maps,
    decode_boxes,
    mask_logits,
    pixels_in_boxes,
)

CPU = torch.device("cpu")
BOXES = torch.tensor(
    [
        [10.0, 20.0, 70.0, 60.0],
        [-30.0, -8.0, 130.0, 100.0],  # beyond the image
        [40.0, 30.0, 44.0, 33.0],  # sides below 6 pixels
        [50.0, 50.0, 50.0, 50.0],  # empty
        [12.0, 8.0, 13.0, 60.0],  # narrow
    ]
)


def softplus(value):
    return math.log1p(math.exp(-abs(value))) + max(value, 0.0)


def reference_logit(kernel, box, features, row, column):
    """Return the mask logit of a cell at a pixel of the mask features, in float64."""
    channels = len(features)
    k, (t0, t1, t2, t3, t4, t5) = kernel[:channels], kernel[channels:]
    left, top, right, bottom = box
    x, y = 4 * (column + 0.5), 4 * (row + 0.5)
    u = (x - (left + right) / 2) / max((right - left) / 2, 3.0)
    v = (y - (top + bottom) / 2) / max((bottom - top) / 2, 3.0)
    product = sum(k[channel] * features[channel][row][column] for channel in range(channels))
    shape = 2 + t0 + t1 * u + t2 * v - softplus(2 + t3) * u**2 - softplus(2 + t4) * v**2 + t5 * u * v
    return product + shape


def test_mask_logits_equal_the_formula_at_each_pixel():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(5, 7, 9, generator=generator)
    kernels = torch.randn(len(BOXES), 5 + 6, generator=generator)
    logits = mask_logits(kernels, BOXES, features)
    assert logits.shape == (len(BOXES), 7, 9) and logits.dtype == torch.float32
    values = features.double().tolist()
    for cell, (kernel, box) in enumerate(zip(kernels.double().tolist(), BOXES.tolist(), strict=True)):
        for row in range(7):
            for column in range(9):
                expected = reference_logit(kernel, box, values, row, column)
                assert logits[cell, row, column].item() == pytest.approx(expected, rel=2e-4, abs=2e-3)


def test_kernel_of_zeros_gives_an_ellipse_in_the_box():
    features = torch.randn(3, 16, 20, generator=torch.Generator().manual_seed(1))
    (logits,) = mask_logits(torch.zeros(1, 9), torch.tensor([[8.0, 8.0, 72.0, 56.0]]), features)
    rows, columns = torch.meshgrid(torch.arange(16), torch.arange(20), indexing="ij")
    u, v = (4 * (columns + 0.5) - 40) / 32, (4 * (rows + 0.5) - 32) / 24
    assert torch.equal(logits > 0, u**2 + v**2 < 2 / softplus(2.0))
    # Scores in the center and at the middle of a side.
    assert logits.max().item() == pytest.approx(2.0, abs=0.05)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_mask_logits_of_half_precision_are_computed_in_float32(dtype):
    generator = torch.Generator().manual_seed(2)
    features = torch.randn(5, 7, 9, generator=generator).to(dtype)
    kernels = torch.randn(len(BOXES), 11, generator=generator).to(dtype)
    logits = mask_logits(kernels, BOXES, features)
    assert logits.dtype == torch.float32
    assert torch.equal(logits, mask_logits(kernels.float(), BOXES, features.float()))


def test_no_cells_have_no_masks():
    assert mask_logits(torch.zeros(0, 9), torch.zeros(0, 4), torch.zeros(3, 7, 9)).shape == (0, 7, 9)
    assert pixels_in_boxes(torch.zeros(0, 4), 7, 9).shape == (0, 7, 9)


def test_coordinate_maps():
    maps = coordinate_maps(3, 5, CPU)
    x, y = ((column + 0.5) * 4 / 64 for column in (4, 2))
    assert maps.shape == (6, 3, 5)
    assert maps[:, 2, 4].tolist() == pytest.approx([1.0, x, y, x * x, y * y, x * y])


@pytest.mark.parametrize("sizes", [[(4, 6), (2, 3), (1, 2), (1, 1)], [(12, 20), (6, 10), (3, 5), (2, 3)]])
def test_cell_points(sizes):
    expected = [
        [column * stride, row * stride, stride]
        for (height, width), stride in zip(sizes, (8, 16, 32, 64), strict=True)
        for row in range(height)
        for column in range(width)
    ]
    assert cell_points(sizes, CPU).tolist() == expected


def test_decoded_boxes_equal_a_loop():
    points = cell_points([(4, 6), (2, 3), (1, 2), (1, 1)], CPU)
    logits = 3 * torch.randn(2, len(points), 4 * 5, generator=torch.Generator().manual_seed(3))
    boxes = decode_boxes(logits, points)
    assert boxes.shape == (2, len(points), 4) and boxes.dtype == torch.float32
    for image in range(2):
        for cell, (x, y, stride) in enumerate(points.tolist()):
            distances = []
            for side in range(4):
                weights = [math.exp(value) for value in logits[image, cell, 5 * side : 5 * side + 5].tolist()]
                mean = sum(index * weight for index, weight in enumerate(weights)) / sum(weights)
                distances.append(mean * stride)
            left, top, right, bottom = distances
            expected = [x - left, y - top, x + right, y + bottom]
            assert boxes[image, cell].tolist() == pytest.approx(expected, rel=1e-5, abs=1e-3)


def test_certain_distances_are_decoded_exactly():
    points = torch.tensor([[16.0, 24.0, 8.0]])
    bins = torch.tensor([0, 1, 2, 4])
    logits = torch.full((1, 4, 5), -200.0)
    logits[0, torch.arange(4), bins] = 200.0
    boxes = decode_boxes(logits.flatten(1).to(torch.bfloat16), points)
    assert boxes.tolist() == [[16.0, 16.0, 32.0, 56.0]]


def test_pixels_in_boxes_have_their_center_inside():
    boxes = torch.tensor(
        [[0.0, 0.0, 36.0, 28.0], [1.9, 2.1, 14.1, 13.9], [2.0, 2.0, 6.0, 6.0], [50, 50, 60, 60]]
    )
    inside = pixels_in_boxes(boxes, 7, 9)
    for index, (left, top, right, bottom) in enumerate(boxes.tolist()):
        for row in range(7):
            for column in range(9):
                x, y = 4 * column + 2, 4 * row + 2
                expected = left < x < right and top < y < bottom
                assert inside[index, row, column].item() == expected, (index, row, column)
