"""Winograd's convolutions equal torch's."""

import pytest
import torch
import torch.nn.functional as F
from helpers.kernels import IMPLEMENTATIONS, use_implementation, use_matrix_units
from helpers.nested_tensors import assert_close_outputs, random_maps
from torch import nn

from solo_infer.models.layers.conv_branch import append_channels
from solo_infer.models.optimized.winograd_conv import WinogradConv2d, can_use_winograd, is_wide
from solo_infer.ops.dispatch import is_compiling


@pytest.fixture(params=IMPLEMENTATIONS, autouse=True)
def implementation(request, monkeypatch):
    use_implementation(request.param, monkeypatch)
    return request.param


SIZES = [(1, 1), (2, 9), (5, 5), (13, 30), (24, 32)]


def random_conv(in_channels, out_channels=256, bias=True):
    torch.manual_seed(2)
    return nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=bias)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("bias", [True, False])
@torch.no_grad()
def test_equals_the_plain_convolution(size, bias):
    conv = random_conv(256, bias=bias)
    winograd = WinogradConv2d(conv)
    x = random_maps((256, *size), count=2)
    for layout in (torch.contiguous_format, torch.channels_last):
        assert_close_outputs(winograd(x.contiguous(memory_format=layout)), conv(x), 1e-4)
    assert winograd._transformed.values.numel() == 36 * 256 * 256


@pytest.mark.parametrize("slope", [1, 0.1])
@torch.no_grad()
def test_activation_and_addend(slope):
    conv = random_conv(40, 48)
    winograd = WinogradConv2d(conv, slope)
    for dtype in (torch.float32, torch.float64):  # which does not use Winograd's method
        x, addend = random_maps((40, 9, 13), dtype=dtype), random_maps((48, 9, 13), dtype=dtype, seed=5)
        conv, winograd = conv.to(dtype), winograd.to(dtype)
        expected = conv(x) + addend
        assert_close_outputs(winograd(x), F.leaky_relu(conv(x), slope), 2e-5)
        assert_close_outputs(winograd(x, addend=addend.clone()), F.leaky_relu(expected, slope), 2e-5)
        assert_close_outputs(winograd(x, addend=addend.clone(), relu=True), F.relu(expected), 2e-5)


@pytest.mark.parametrize("bias", [True, False])
@torch.no_grad()
def test_stride_2(bias, implementation):
    torch.manual_seed(2)
    conv = nn.Conv2d(64, 72, 3, stride=2, padding=1, bias=bias)
    assert is_wide(conv) == (implementation != "torch")
    winograd = WinogradConv2d(conv)
    for size in ((12, 9), (45, 47), (64, 80)):
        x = random_maps((64, *size), count=2)
        assert_close_outputs(winograd(x, relu=True), F.relu(conv(x)), 1e-4)
        # The first one has too few outputs.
        assert (winograd._transformed is None) == (size == (12, 9))
    assert not is_wide(conv.to(torch.bfloat16))
    assert not is_wide(nn.Conv2d(64, 72, 3, stride=(1, 2), padding=1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@torch.no_grad()
def test_other_dtypes_use_the_plain_convolution(dtype, monkeypatch):
    use_matrix_units(True, monkeypatch)
    conv = random_conv(256).to(dtype)
    winograd = WinogradConv2d(conv)
    for size in SIZES:
        x = random_maps((256, *size), dtype=dtype)
        assert torch.equal(winograd(x), conv(x))
    assert winograd._transformed is None


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("slope", [1, 0.1])
@torch.no_grad()
def test_activation_and_addend_of_direct_convolutions(slope, stride, monkeypatch):
    use_matrix_units(True, monkeypatch)
    torch.manual_seed(2)
    conv = nn.Conv2d(256, 264, 3, stride, padding=1).bfloat16()
    winograd, (height, width) = WinogradConv2d(conv, slope), (9, 14)
    out_height, out_width = -(-height // stride), -(-width // stride)
    addend = random_maps((264, out_height, out_width), count=2, dtype=torch.bfloat16, seed=5)
    for layout in (torch.contiguous_format, torch.channels_last):
        x = random_maps((256, height, width), count=2, dtype=torch.bfloat16).contiguous(memory_format=layout)
        values = F.conv2d(x.double(), conv.weight.double(), conv.bias.double(), stride, padding=1)
        total = values + addend.double()
        for result, expected in (
            (winograd(x), F.leaky_relu(values, slope)),
            (winograd(x, relu=True), values.relu()),
            (winograd(x, addend=addend.clone()), F.leaky_relu(total, slope)),
            (winograd(x, addend=addend.clone(), relu=True), total.relu()),
        ):
            assert result.dtype == torch.bfloat16
            torch.testing.assert_close(result.double(), expected, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("coordinates", [1, 2])  # of Decoupled SOLO, of SOLO
@torch.no_grad()
def test_levels_with_extra_channels(dtype, coordinates):
    conv = random_conv(256 + coordinates).to(dtype)
    winograd = WinogradConv2d(conv)
    maps = [random_maps((256, *size), count=2, dtype=dtype) for size in SIZES]
    extra = [random_maps((coordinates, *size), dtype=dtype, seed=4) for size in SIZES]
    expected = [conv(append_channels(x, channels)) for x, channels in zip(maps, extra, strict=True)]
    tolerance = 1e-4 if dtype == torch.float32 else 0.03
    for _ in range(2):  # the second time with the cached transformed weight
        assert_close_outputs(winograd.forward_levels(maps, extra), expected, tolerance)
    assert winograd.forward_levels([]) == []


@torch.no_grad()
def test_matrix_units_read_an_even_number_of_channels(monkeypatch):
    use_matrix_units(True, monkeypatch)
    channels = []

    def convolve(x, weight, *args, **kwargs):
        assert x.shape[1] == weight.shape[1]
        channels.append(x.shape[1])
        return conv2d(x, weight, *args, **kwargs)

    conv2d = torch.nn.functional.conv2d
    monkeypatch.setattr("solo_infer.models.optimized.winograd_conv.F.conv2d", convolve)
    for coordinates in (1, 2):
        winograd = WinogradConv2d(random_conv(256 + coordinates).bfloat16())
        maps = [random_maps((256, 9, 8), dtype=torch.bfloat16)]
        winograd.forward_levels(maps, [random_maps((coordinates, 9, 8), dtype=torch.bfloat16)])
    assert channels == [258, 258]


def test_gradients_use_the_plain_convolution():
    conv = random_conv(256)
    x = random_maps((256, 5, 6)).requires_grad_(True)
    assert not can_use_winograd(x)
    WinogradConv2d(conv)(x).square().sum().backward()
    gradient, x.grad = x.grad, None
    conv(x).square().sum().backward()
    torch.testing.assert_close(gradient, x.grad)


@pytest.mark.parametrize(
    "dtype, has_units, least_compiled",
    [
        (torch.float32, False, 32),
        (torch.float32, True, 32),
        (torch.bfloat16, False, 64),
        (torch.bfloat16, True, 256),
    ],
)
def test_wide_convolutions(implementation, dtype, has_units, least_compiled, monkeypatch):
    use_matrix_units(has_units, monkeypatch)
    least = 256 if implementation == "torch" else least_compiled
    assert is_wide(random_conv(least, least).to(dtype)) and is_wide(random_conv(least + 2, 256).to(dtype))
    assert not is_wide(random_conv(least - 1).to(dtype)) and not is_wide(
        random_conv(256, least - 1).to(dtype)
    )
    for options in ({"stride": 3}, {"dilation": 2}, {"groups": 2}, {"padding": 0}):
        assert not is_wide(nn.Conv2d(512, 512, 3, **{"padding": 1, **options}))
    assert not is_wide(nn.Conv2d(256, 256, 1))


def test_ordinary_call_is_not_compiling():
    assert not is_compiling()
