"""The Triton kernels beside their PyTorch implementations, in Triton's interpreter.

``test_kernels.py`` runs this file in a separate process, because the interpreter must be selected before
Triton is imported. The kernels are imported and called directly, without ``ops.dispatch``.
"""

import numpy as np
import pytest
import torch
from helpers.models import HEADS, small_config, small_network, variant_of

from solo_infer.errors import ConfigError
from solo_infer.models.optimized.static_masks import static_masks
from solo_infer.ops import dispatch, packed_masks
from solo_infer.ops.group_norm_relu import group_norm_relu as group_norm_relu_op
from solo_infer.ops.matrix_nms import decay_factors, same_label_intersections
from solo_infer.ops.paste_masks import paste_masks as paste_masks_op
from solo_infer.ops.preprocess import preprocess as preprocess_op
from solo_infer.ops.triton import group_norm_relu, mask_statistics, matrix_nms, paste_masks, preprocess

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


def random_masks(images, count, height, width, seed=0):
    """Return rectangles (N, P, H, W), some of them equal or empty."""
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
    result = matrix_nms.decay_factors(packed, areas, labels, kernel, 2.0)
    expected = decay_factors.reference(packed, areas, labels, kernel, 2.0)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-5)
    assert count < 33 or (expected < 0.9).any()


def test_intersections_are_exact_over_several_segments():
    masks = torch.rand(1, 5, 30000, generator=torch.Generator().manual_seed(2)) < 0.6
    labels = torch.tensor([[0, 1, 0, 0, 1]])
    packed = packed_masks.pack(masks)
    assert packed.shape[2] > 3 * matrix_nms._SEGMENT
    result = matrix_nms.pairwise_intersections(packed, labels)[0]
    expected = same_label_intersections(packed[0], labels[0])
    assert torch.equal(result, expected.triu(1))


def test_matrix_nms_rejects_unknown_kernel():
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
        ((1, 256, 96, 88), 32, torch.float32, 1e-5),  # of large tiles
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
    result = group_norm_relu.group_norm_relu(x, groups, weight, bias, 1e-5)
    expected = group_norm_relu_op.reference(x.double(), groups, weight.double(), bias.double(), 1e-5).float()
    assert result.dtype == dtype and result.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(result.float(), expected, rtol=tolerance, atol=tolerance)


def test_group_norm_of_a_mean_far_from_zero():
    x = torch.randn(1, 32, 40, 30, generator=torch.Generator().manual_seed(4)) + 3000
    result = group_norm_relu.group_norm_relu(x, 32, torch.ones(32), torch.zeros(32), 1e-5)
    expected = torch.nn.functional.group_norm(x.double(), 32).relu().float()
    torch.testing.assert_close(result, expected, rtol=0, atol=2e-3)  # float32 steps of the input


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
def test_paste_masks(map_size, padded, resized, original):
    threshold = 0.4
    soft = torch.rand(3, *map_size, generator=torch.Generator().manual_seed(5))
    soft[1] = 0.0
    packed, boxes = paste_masks.paste_masks(soft, padded, resized, original, threshold)
    expected, expected_boxes = paste_masks_op.reference(soft, padded, resized, original, threshold)
    assert packed.shape == expected.shape and packed.dtype == torch.uint8
    # Bits may differ only where the score lies within 1e-5 of the threshold.
    lower = paste_masks_op.reference(soft, padded, resized, original, threshold + 1e-5)[0]
    upper = paste_masks_op.reference(soft, padded, resized, original, threshold - 1e-5)[0]
    assert not (lower & ~packed).any()
    assert not (packed & ~upper).any()
    if torch.equal(packed, expected):
        assert torch.equal(boxes, expected_boxes)
    assert boxes[1].tolist() == [0, 0, 0, 0]


def test_pasting_no_masks():
    packed, boxes = paste_masks.paste_masks(torch.zeros(0, 4, 4), (16, 16), (16, 16), (10, 11), 0.5)
    assert packed.shape == (0, 10, 2) and boxes.shape == (0, 4)


@pytest.mark.parametrize("head", [head for head in HEADS if head != "solov2"])  # its masks are one product
@torch.no_grad()
def test_mask_statistics_of_heads(head, monkeypatch):
    network = small_network(variant_of(small_config(head), {"backbone": "resnet18"}))
    levels = network.features(torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(7)))
    table = network.mask_head.cells
    masks = static_masks(network.mask_head, levels)
    cells = torch.randint(len(table.level), (2, 9), generator=torch.Generator().manual_seed(8))
    cells[0, :5] = torch.tensor([0, 150, 170, 210, 224])  # one of each level
    assert table.level[cells[0, :5]].tolist() == [0, 1, 2, 3, 4]
    expected_areas, expected_sums, _ = masks.statistics(cells, 0.5)
    lower, upper = (masks.statistics(cells, 0.5 + offset).packed for offset in (1e-5, -1e-5))
    monkeypatch.setattr(dispatch, "triton_allowed", lambda device: True)
    name = "cell_mask_statistics" if head == "solo" else "axis_mask_statistics"
    kernel, calls = getattr(mask_statistics, name), []
    monkeypatch.setattr(mask_statistics, name, lambda *args: calls.append(1) or kernel(*args))
    areas, sums, packed = masks.statistics(cells, 0.5)
    assert len(calls) == 1 and dispatch.failures() == {}
    assert not (lower & ~packed).any() and not (packed & ~upper).any()
    assert (areas - expected_areas).abs().max() <= 1 and 0 < expected_areas.sum()
    torch.testing.assert_close(sums, expected_sums, rtol=0, atol=0.5 + 1e-3)
    same = areas == expected_areas
    torch.testing.assert_close(sums[same], expected_sums[same], rtol=1e-5, atol=1e-5)
    assert same.float().mean() > 0.8


@pytest.mark.parametrize("size", [(20, 31), (48, 64), (96, 128), (17, 200), (1, 1)])
def test_preprocess_gives_equal_bits(size):
    dtype = torch.bfloat16 if size in ((20, 31), (17, 200)) else torch.float32
    rng = np.random.default_rng(6)
    images = [torch.from_numpy(rng.integers(0, 256, (*size, 3), dtype=np.uint8)) for _ in range(2)]
    resized = {(20, 31): (41, 64), (17, 200): (5, 64), (1, 1): (48, 48)}.get(size, (48, 64))
    padded = tuple(-(-side // 32) * 32 for side in resized)
    arguments = images, [resized] * 2, padded, MEAN, STD, True, torch.device("cpu"), dtype
    inputs = preprocess.preprocess(*arguments)
    assert torch.equal(inputs, preprocess_op.reference(*arguments))
    assert inputs.is_contiguous(memory_format=torch.channels_last)
