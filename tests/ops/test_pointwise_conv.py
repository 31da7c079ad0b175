"""Compiled 1x1 convolutions beside torch's."""

import pytest
import torch
import torch.nn.functional as F
from helpers.kernels import IMPLEMENTATIONS, use_implementation

from solo_infer.ops.native import streams
from solo_infer.ops.packed_weight import pack_weight
from solo_infer.ops.pointwise_conv import pointwise_conv


@pytest.fixture(params=IMPLEMENTATIONS[1:], autouse=True)
def implementation(request, monkeypatch):
    use_implementation(request.param, monkeypatch)


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("slope", [0, 0.1, 1])
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize(
    "count, channels, outputs, size",
    [(1, 64, 256, (40, 50)), (2, 5, 3, (7, 9)), (1, 300, 64, (1, 1)), (3, 128, 40, (11, 13))],
)
@pytest.mark.parametrize("streams_all", [False, True])
def test_equals_torch(count, channels, outputs, size, has_bias, slope, streams_all, monkeypatch):
    if streams_all:
        monkeypatch.setattr(streams, "_MIN_SIZE", 0)
    x, weight = noise(count, channels, *size), noise(outputs, channels, 1, 1, seed=1) / channels**0.5
    bias = noise(outputs, seed=2) if has_bias else None
    expected = F.conv2d(x.double(), weight.double(), None if bias is None else bias.double())
    expected = F.leaky_relu(expected, slope)
    for layout in (torch.contiguous_format, torch.channels_last):
        result = pointwise_conv(x.contiguous(memory_format=layout), pack_weight(weight, bias), slope)
        assert result.shape == expected.shape and result.dtype == torch.float32
        assert (result - expected).abs().max() < 1e-5


def test_numbers_of_threads_do_not_change_results():
    x, packed = noise(2, 48, 60, 60), pack_weight(noise(64, 48, 1, 1), noise(64))
    threads = torch.get_num_threads()
    try:
        results = []
        for number in (1, 2, 5):
            torch.set_num_threads(number)
            results.append(pointwise_conv(x, packed))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(result, results[0]) for result in results)


@pytest.mark.parametrize("shape", [(1, 4, 8, 8), (0, 3, 8, 8), (3, 8, 8)])
def test_inputs_that_do_not_fit(shape):
    with pytest.raises(ValueError, match="expected maps of 3 channels"):
        pointwise_conv(torch.zeros(shape), pack_weight(torch.zeros(8, 3, 1, 1), None))


def test_outputs_that_can_be_streamed():
    large = torch.empty(1, 200, 200, 64)
    assert streams.can_stream([large]) and streams.can_stream([large[:, :80], large[:, 100:]])
    assert not streams.can_stream([large[:, :50]])  # small
    unaligned = torch.empty(large.numel() + 1)[1:].view(large.shape)
    assert not streams.can_stream([unaligned]) and not streams.can_stream([large, unaligned])
    assert not streams.can_stream([torch.empty(1, 300, 300, 48)])
