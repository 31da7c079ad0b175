"""Statistics of SOLOv2's masks beside those of their scores."""

import pytest
import torch
from helpers.kernels import IMPLEMENTATIONS, use_implementation

from solo_infer.ops import packed_masks
from solo_infer.ops.kernel_mask_statistics import kernel_mask_statistics


@pytest.fixture(autouse=True, params=IMPLEMENTATIONS)
def implementation(request, monkeypatch):
    use_implementation(request.param, monkeypatch)
    return request.param


def operands(count, channels, pixels, scale=1.0):
    generator = torch.Generator().manual_seed(count + pixels)
    kernels = torch.randn(count, channels, generator=generator) * scale / channels**0.5
    return kernels, torch.randn(pixels, channels, generator=generator).T


@pytest.mark.parametrize("count", [1, 16, 33, 100])
@pytest.mark.parametrize("channels, pixels", [(8, 4000), (256, 1345), (129, 63), (3, 7), (1, 1)])
@pytest.mark.parametrize("threshold", [0.5, 0.2, 0.93])
def test_statistics(count, channels, pixels, threshold):
    kernels, features = operands(count, channels, pixels, 3.0)
    scores = (kernels.double() @ features.double()).sigmoid()
    areas, sums, packed = kernel_mask_statistics(kernels, features, threshold)
    assert areas.dtype == sums.dtype == torch.float32 and packed.dtype == torch.uint8
    assert packed.shape == (count, -(-pixels // 8))
    assert not (packed_masks.pack(scores > threshold + 1e-5) & ~packed).any()
    assert not (packed & ~packed_masks.pack(scores > threshold - 1e-5)).any()
    inside = packed_masks.unpack(packed, pixels)
    assert torch.equal(areas, inside.sum(dim=1).float())
    torch.testing.assert_close(sums.double(), (scores * inside).sum(dim=1), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("threshold, is_inside", [(0.0, True), (1.0, False)])
def test_extreme_thresholds(threshold, is_inside):
    kernels, features = operands(20, 16, 500, 2.0)
    areas, sums, packed = kernel_mask_statistics(kernels, features, threshold)
    assert bool((areas == (500 if is_inside else 0)).all()) and bool(packed.any()) is is_inside
    assert bool((sums > 0).all()) is is_inside


def test_scores_far_from_the_threshold():
    kernels = torch.tensor([[1e4], [-1e4], [0.0], [60.0], [-60.0]])
    features = torch.ones(1, 100)
    areas, sums, _ = kernel_mask_statistics(kernels, features, 0.5)
    assert areas.tolist() == [100, 0, 0, 100, 0] and sums.tolist() == [100, 0, 0, 100, 0]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_kernels_that_are_not_finite_do_not_change_other_masks(value):
    kernels, features = operands(40, 8, 300)
    expected = kernel_mask_statistics(kernels, features, 0.5)
    kernels[7] = value
    result = kernel_mask_statistics(kernels, features, 0.5)
    others = torch.arange(40) != 7
    assert all(torch.equal(a[others], b[others]) for a, b in zip(result, expected, strict=True))


def test_result_does_not_depend_on_the_number_of_threads(implementation):
    if implementation == "torch":
        pytest.skip("oneDNN may sum up in another order")
    kernels, features = operands(50, 64, 9000)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(kernel_mask_statistics(kernels, features, 0.5))
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        assert all(map(torch.equal, result, results[0]))


def test_rows_of_features_need_not_be_adjacent():
    kernels, features = operands(9, 12, 700)
    expected = kernel_mask_statistics(kernels, features, 0.5)
    result = kernel_mask_statistics(kernels, features.contiguous(), 0.5)
    assert torch.equal(result.packed, expected.packed) and torch.equal(result.areas, expected.areas)
    torch.testing.assert_close(result.sums, expected.sums)


def test_no_masks():
    areas, sums, packed = kernel_mask_statistics(torch.zeros(0, 8), torch.zeros(8, 20), 0.5)
    assert areas.shape == sums.shape == (0,) and packed.shape == (0, 3)


def test_half_precision():
    kernels, features = (tensor.bfloat16() for tensor in operands(9, 12, 700))
    areas, _, packed = kernel_mask_statistics(kernels, features, 0.5)
    assert torch.equal(areas, packed_masks.popcount(packed).float()) and bool(areas.any())
