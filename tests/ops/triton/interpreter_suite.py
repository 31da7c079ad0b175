"""The Triton kernels beside their torch twins, in Triton's interpreter; run by ``test_triton.py``.

The interpreter must be chosen before Triton is imported, so this file has a process of its own.
"""

import numpy as np
import pytest
import torch
from helpers.models import HEADS, small_config, small_network

from solo_infer.config import PreprocessConfig
from solo_infer.errors import ConfigError
from solo_infer.inference.preprocess import _prepare_each, _prepare_fused, plan
from solo_infer.inference.solo_static import measure_torch
from solo_infer.models.optimized.static_masks import CellTable, slot_maps
from solo_infer.ops import packed_masks
from solo_infer.ops.batched_nms import decay_factors_torch
from solo_infer.ops.group_norm_relu import group_norm_relu_torch
from solo_infer.ops.matrix_nms import same_label_intersections
from solo_infer.ops.paste_masks import enlarge_torch
from solo_infer.ops.triton import group_norm_relu, matrix_nms, paste_masks


def random_masks(images, count, height, width, seed=0):
    """Return rectangles (N, P, H, W), of which some repeat and some are empty."""
    rng = np.random.default_rng(seed)
    masks = np.zeros((images, count, height, width), dtype=bool)
    for image in range(images):
        for index in range(count):
            top, left = rng.integers(0, height), rng.integers(0, width)
            masks[image, index, top : top + height // 2, left : left + width // 2] = True
            if index % 7 == 3:
                masks[image, index] = masks[image, index - 1]
            if index % 11 == 5:
                masks[image, index] = False
    return torch.from_numpy(masks)


@pytest.mark.parametrize("kernel", ["gaussian", "linear"])
@pytest.mark.parametrize(
    "images, count, height, width, classes",
    [(1, 1, 3, 5, 1), (2, 33, 9, 13, 3), (1, 70, 17, 23, 1), (1, 32, 8, 8, 40), (2, 0, 4, 4, 1)],
)
def test_matrix_nms(images, count, height, width, classes, kernel):
    masks = random_masks(images, count, height, width)
    labels = torch.randint(classes, (images, count), generator=torch.Generator().manual_seed(1))
    packed, areas = packed_masks.pack(masks.flatten(2)), masks.flatten(2).sum(2).float()
    found = matrix_nms.decay_factors(packed, areas, labels, kernel, 2.0)
    expected = decay_factors_torch(packed, areas, labels, kernel, 2.0)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert count < 33 or (expected < 0.9).any()


def test_common_pixels_are_exact_over_several_parts():
    masks = torch.rand(1, 5, 30000, generator=torch.Generator().manual_seed(2)) < 0.6
    labels = torch.tensor([[0, 1, 0, 0, 1]])
    packed = packed_masks.pack(masks)
    assert packed.shape[2] > 3 * matrix_nms._PART
    found = matrix_nms.pairwise_intersections(packed, labels)[0]
    expected = same_label_intersections(packed[0], torch.arange(5), labels[0])
    assert torch.equal(found, expected.triu(1))


def test_unknown_decay():
    with pytest.raises(ConfigError, match="kernel='box'"):
        matrix_nms.decay_factors(
            torch.zeros(1, 1, 1, dtype=torch.uint8), torch.zeros(1, 1), torch.zeros(1, 1).long(), "box", 2.0
        )


@pytest.mark.parametrize(
    "shape, groups, dtype, tolerance",
    [
        ((1, 32, 1, 2), 32, torch.float32, 1e-5),
        ((2, 96, 5, 7), 32, torch.float32, 1e-5),
        ((1, 256, 9, 8), 32, torch.float32, 1e-5),
        ((1, 6, 3, 1), 2, torch.float32, 1e-5),
        ((1, 64, 80, 70), 32, torch.float32, 1e-5),
        ((0, 64, 2, 2), 32, torch.float32, 1e-5),
        ((2, 128, 12, 12), 32, torch.float16, 2e-3),
        ((2, 96, 5, 7), 32, torch.bfloat16, 2e-2),
    ],
)
def test_group_norm_relu(shape, groups, dtype, tolerance):
    generator = torch.Generator().manual_seed(3)
    x = (torch.randn(shape, generator=generator) * 2 + 5).to(dtype)
    x = x.contiguous(memory_format=torch.channels_last)
    weight, bias = torch.randn(2, shape[1], generator=generator).to(dtype)
    found = group_norm_relu.group_norm_relu(x, groups, weight, bias, 1e-5)
    expected = group_norm_relu_torch(x.double(), groups, weight.double(), bias.double(), 1e-5).float()
    assert found.dtype == dtype and found.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found.float(), expected, rtol=tolerance, atol=tolerance)


def test_group_norm_of_a_mean_far_from_zero():
    x = torch.randn(1, 32, 40, 30, generator=torch.Generator().manual_seed(4)) + 3000
    found = group_norm_relu.group_norm_relu(x, 32, torch.ones(32), torch.zeros(32), 1e-5)
    expected = torch.nn.functional.group_norm(x.double(), 32).relu().float()
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-3)  # of the input's own float32 steps


@pytest.mark.parametrize(
    "map_size, padded, resized, original",
    [
        ((8, 12), (32, 48), (32, 48), (32, 48)),
        ((8, 8), (32, 32), (27, 31), (45, 52)),
        ((5, 7), (20, 28), (19, 28), (9, 13)),
        ((2, 3), (8, 12), (1, 1), (1, 1)),
        ((4, 4), (17, 15), (16, 15), (33, 131)),
    ],
)
def test_enlarging(map_size, padded, resized, original):
    threshold = 0.4
    soft = torch.rand(3, *map_size, generator=torch.Generator().manual_seed(5))
    soft[1] = 0.0
    packed, boxes = paste_masks.enlarge(soft, padded, resized, original, threshold)
    expected, expected_boxes = enlarge_torch(soft, padded, resized, original, threshold)
    assert packed.shape == expected.shape and packed.dtype == torch.uint8
    # Bits may differ only where the score lies within 1e-5 of the threshold.
    sure_inside = enlarge_torch(soft, padded, resized, original, threshold + 1e-5)[0]
    maybe_inside = enlarge_torch(soft, padded, resized, original, threshold - 1e-5)[0]
    assert not (sure_inside & ~packed).any()
    assert not (packed & ~maybe_inside).any()
    if torch.equal(packed, expected):
        assert torch.equal(boxes, expected_boxes)
    assert boxes[1].tolist() == [0, 0, 0, 0]


def test_enlarging_nothing():
    packed, boxes = paste_masks.enlarge(torch.zeros(0, 4, 4), (16, 16), (16, 16), (10, 11), 0.5)
    assert packed.shape == (0, 10, 2) and boxes.shape == (0, 4)


@pytest.mark.parametrize("head", HEADS)
@torch.no_grad()
def test_measuring(head):
    config = small_config(head)
    network = small_network(config)
    levels = network.features(torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(7)))
    table = CellTable.of(config.architecture, torch.device("cpu"))
    maps = slot_maps(network, levels, table)
    cells = torch.randint(len(table.level), (2, 9), generator=torch.Generator().manual_seed(8))
    cells[0, :5] = torch.tensor([0, 150, 170, 210, 224])  # one of each level
    assert table.level[cells[0, :5]].tolist() == [0, 1, 2, 3, 4]
    areas, sums, packed = maps.measure_fused(cells, 0.5)
    expected_areas, expected_sums, _ = measure_torch(maps, cells, 0.5)
    surely, maybe = (measure_torch(maps, cells, 0.5 + by)[2] for by in (1e-5, -1e-5))
    assert not (surely & ~packed).any() and not (packed & ~maybe).any()
    assert (areas - expected_areas).abs().max() <= 1 and 0 < expected_areas.sum()
    torch.testing.assert_close(sums, expected_sums, rtol=0, atol=0.5 + 1e-3)
    same = areas == expected_areas
    torch.testing.assert_close(sums[same], expected_sums[same], rtol=1e-5, atol=1e-5)
    assert same.float().mean() > 0.8


@pytest.mark.parametrize("size", [(20, 31), (48, 64), (96, 128), (17, 200), (1, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_preprocessing_to_the_last_bit(size, dtype):
    config = PreprocessConfig(short_side=48, long_side=64)
    rng = np.random.default_rng(6)
    images = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for _ in range(2)]
    geometries = [plan(image, config) for image in images]
    arguments = images, geometries, config, torch.device("cpu"), dtype
    found, expected = _prepare_fused(*arguments), _prepare_each(*arguments)
    assert torch.equal(found, expected)
    assert found.is_contiguous(memory_format=torch.channels_last)
