"""The compiled stem of ResNets beside torch's operations."""

import pytest
import torch
import torch.nn.functional as F
from helpers.kernels import IMPLEMENTATIONS, use_implementation

from solo_infer.ops.packed_weight import pack_weight
from solo_infer.ops.resnet_stem import resnet_stem
from solo_infer.runtime import kept_memory


@pytest.fixture(params=IMPLEMENTATIONS[1:], autouse=True)
def implementation(request, monkeypatch):
    use_implementation(request.param, monkeypatch)


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def expected_stem(x, weight, bias):
    y = F.conv2d(x.double(), weight.double(), None if bias is None else bias.double(), 2, 3)
    return F.relu(F.max_pool2d(y, 3, 2, 1))


@pytest.mark.parametrize(
    "size", [(1, 1), (1, 2), (2, 3), (3, 5), (4, 4), (31, 58), (64, 96), (65, 97), (130, 7), (9, 300)]
)
@pytest.mark.parametrize("count, channels, outputs", [(1, 3, 64), (3, 3, 5), (2, 4, 40)])
@pytest.mark.parametrize("has_bias", [False, True])
def test_equals_separate_operations(size, count, channels, outputs, has_bias):
    x, weight = noise(count, channels, *size), noise(outputs, channels, 7, 7, seed=1) / 12
    bias = noise(outputs, seed=2) if has_bias else None
    packed = pack_weight(weight, bias)
    expected = expected_stem(x, weight, bias)
    for layout in (torch.contiguous_format, torch.channels_last):
        result = resnet_stem(x.contiguous(memory_format=layout), packed)
        assert result.is_contiguous(memory_format=torch.channels_last)
        assert result.shape == expected.shape and result.dtype == torch.float32
        assert (result - expected).abs().max() < 1e-5


@pytest.mark.parametrize("count, height", [(1, 200), (2, 64), (5, 9)])
def test_numbers_of_threads_do_not_change_results(count, height):
    x, packed = noise(count, 3, height, 50), pack_weight(noise(64, 3, 7, 7), noise(64))
    threads = torch.get_num_threads()
    try:
        results = []
        for number in (1, 2, 3, 7):
            torch.set_num_threads(number)
            results.append(resnet_stem(x, packed))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(result, results[0]) for result in results)


def test_views_and_weights_in_half_precision():
    image = noise(1, 80, 90, 4)
    x = image[:, 5:70, 7:75, 1:].permute(0, 3, 1, 2)
    weight = (noise(64, 3, 7, 7) / 12).bfloat16()
    result = resnet_stem(x, pack_weight(weight, None))
    assert (result - expected_stem(x, weight, None)).abs().max() < 1e-5


def test_values_of_borrowed_memory_do_not_matter(monkeypatch):
    x, packed = noise(2, 3, 37, 41), pack_weight(noise(24, 3, 7, 7), None)
    expected, empty = resnet_stem(x, packed), kept_memory.empty
    monkeypatch.setattr(
        kept_memory, "empty", lambda shape, dtype=torch.float32: empty(shape, dtype).fill_(float("nan"))
    )
    assert torch.equal(resnet_stem(x, packed), expected)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_not_finite(value):
    x, weight = noise(1, 3, 40, 40).abs(), noise(20, 3, 7, 7).abs()
    x[0, 1, 20, 21] = value
    result = resnet_stem(x, pack_weight(weight, None))
    expected = F.relu(F.max_pool2d(F.conv2d(x, weight, None, 2, 3), 3, 2, 1))
    torch.testing.assert_close(result, expected, equal_nan=True, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "x",
    [
        torch.zeros(1, 4, 8, 8),
        torch.zeros(1, 3, 8, 8, dtype=torch.float64),
        torch.zeros(0, 3, 8, 8),
        torch.zeros(3, 8, 8),
        torch.zeros(1, 3, 8, 8, device="meta"),
    ],
    ids=lambda x: f"{tuple(x.shape)} {x.dtype} {x.device}",
)
def test_inputs_that_do_not_fit(x):
    packed = pack_weight(torch.zeros(8, 3, 7, 7), None)
    with pytest.raises(ValueError, match="expected maps of 3 channels"):
        resnet_stem(x, packed)
