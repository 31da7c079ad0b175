"""Winograd's convolutions equal torch's."""

import pytest
import torch
from helpers.nested_tensors import assert_close_outputs, random_maps
from torch import nn

from solo_infer.models.layers.conv_branch import append_channels
from solo_infer.models.optimized.winograd_conv import WinogradConv2d, can_use_winograd, is_wide
from solo_infer.ops.dispatch import is_compiling

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
    assert {tile: weight.shape for tile, weight in winograd._transformed.items()} == {4: (36, 256, 256)}


@torch.no_grad()
def test_large_maps_have_large_tiles():
    conv = random_conv(256)
    winograd = WinogradConv2d(conv)
    for size in ((80, 90), (12, 12), (80, 90)):
        x = random_maps((256, *size))
        assert_close_outputs(winograd(x), conv(x), 1e-4)
    shapes = {tile: weight.shape for tile, weight in winograd._transformed.items()}
    assert shapes == {6: (64, 256, 256), 4: (36, 256, 256)}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@torch.no_grad()
def test_other_dtypes_use_the_plain_convolution(dtype):
    conv = random_conv(256).to(dtype)
    winograd = WinogradConv2d(conv)
    for size in SIZES:
        x = random_maps((256, *size), dtype=dtype)
        assert torch.equal(winograd(x), conv(x))
    assert not winograd._transformed


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
def test_half_precision_reads_an_even_number_of_channels(monkeypatch):
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


def test_wide_convolutions():
    assert is_wide(random_conv(256)) and is_wide(random_conv(258))
    assert not is_wide(random_conv(255)) and not is_wide(random_conv(256, 255))
    for options in ({"stride": 2}, {"dilation": 2}, {"groups": 2}, {"padding": 0}):
        assert not is_wide(nn.Conv2d(512, 512, 3, **{"padding": 1, **options}))
    assert not is_wide(nn.Conv2d(256, 256, 1))


def test_ordinary_call_is_not_compiling():
    assert not is_compiling()
