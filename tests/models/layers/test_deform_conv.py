"""Deformable convolutions."""

import pytest
import torch
from torch import nn

from solo_infer.models.layers.deform_conv import DeformableConv


def test_zero_offsets_give_an_ordinary_convolution():
    torch.manual_seed(0)
    conv = DeformableConv(6, 5, stride=2, bias=True)
    x = torch.randn(2, 6, 9, 11)
    expected = nn.functional.conv2d(x, conv.weight, conv.bias, stride=2, padding=1)
    torch.testing.assert_close(conv(x), expected)


def test_offsets_are_y_then_x_of_each_tap_with_zeros_outside():
    """Offsets of one pixel down and two to the right give a convolution of the shifted image."""
    torch.manual_seed(0)
    conv = DeformableConv(3, 4)
    with torch.no_grad():
        conv.conv_offset.bias.copy_(torch.tensor([1.0, 2.0]).repeat(9))
    x = torch.randn(1, 3, 8, 9)
    padded = nn.functional.pad(x, (1, 3, 1, 2))  # read two to the right and one down
    expected = nn.functional.conv2d(padded, conv.weight)[..., 1:, 2:]
    torch.testing.assert_close(conv(x), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@torch.no_grad()
def test_deformable_convolutions_in_other_dtypes(dtype):
    torch.manual_seed(0)
    conv = DeformableConv(8, 8, bias=True)
    conv.conv_offset.bias.uniform_(-2, 2)
    x = torch.randn(1, 8, 10, 12)
    expected = conv(x)
    out = conv.to(dtype)(x.to(dtype))
    assert out.dtype == dtype
    torch.testing.assert_close(out.float(), expected, rtol=0, atol=0.1 if dtype.itemsize < 4 else 1e-5)


@pytest.mark.parametrize("stride", [1, 2])
@torch.no_grad()
def test_each_tap_reads_at_its_offset(stride):
    """Compare with ``grid_sample`` of each tap, with zeros outside."""
    torch.manual_seed(0)
    conv = DeformableConv(3, 4, stride=stride)
    conv.conv_offset.weight.normal_()
    x = torch.randn(1, 3, 9, 11)
    offsets = conv.conv_offset(x)[0]  # (18, h, w)
    rows, columns = (torch.arange(side) * stride - 1.0 for side in offsets.shape[1:])
    expected = torch.zeros(1, 4, *offsets.shape[1:])
    for tap in range(9):
        y = rows[:, None] + tap // 3 + offsets[2 * tap]
        x_ = columns[None] + tap % 3 + offsets[2 * tap + 1]
        grid = torch.stack([x_ / (11 - 1), y / (9 - 1)], dim=-1)[None] * 2 - 1
        sampled = nn.functional.grid_sample(x, grid, padding_mode="zeros", align_corners=True)
        expected += nn.functional.conv2d(sampled, conv.weight[:, :, tap // 3, tap % 3, None, None])
    torch.testing.assert_close(conv(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kernel_size, stride, groups", [(3, 1, 1), (3, 2, 4), (1, 1, 1)])
@torch.no_grad()
def test_modulated_taps_have_factors(kernel_size, stride, groups):
    """Compare with ``grid_sample`` of each tap, with zeros outside, times its factor."""
    torch.manual_seed(0)
    conv = DeformableConv(8, 4, kernel_size, stride, groups, modulated=True)
    taps = kernel_size**2
    assert conv.conv_offset.weight.shape == (3 * taps, 8, kernel_size, kernel_size)
    conv.conv_offset.weight.normal_(std=0.3)
    x = torch.randn(1, 8, 9, 11)
    channels = conv.conv_offset(x)[0]
    offsets, factors = channels[: 2 * taps].unflatten(0, (taps, 2)), channels[2 * taps :].sigmoid()
    rows, columns = (torch.arange(side) * stride - kernel_size // 2 for side in channels.shape[1:])
    expected = torch.zeros(1, 4, *channels.shape[1:])
    for tap in range(taps):
        y = rows[:, None] + tap // kernel_size + offsets[tap, 0]
        x_ = columns[None] + tap % kernel_size + offsets[tap, 1]
        grid = torch.stack([x_ / (11 - 1), y / (9 - 1)], dim=-1)[None] * 2 - 1
        sampled = nn.functional.grid_sample(x, grid, padding_mode="zeros", align_corners=True)
        weight = conv.weight[:, :, tap // kernel_size, tap % kernel_size, None, None]
        expected += nn.functional.conv2d(sampled * factors[tap], weight, groups=groups)
    torch.testing.assert_close(conv(x), expected, rtol=1e-4, atol=1e-4)


def test_modulated_convolution_starts_as_half_of_an_ordinary_one():
    torch.manual_seed(0)
    conv = DeformableConv(3, 4, bias=True, modulated=True)
    x = torch.randn(1, 3, 7, 8)
    ordinary = nn.functional.conv2d(x, conv.weight, padding=1) / 2 + conv.bias.view(-1, 1, 1)
    torch.testing.assert_close(conv(x), ordinary)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1e30])
def test_offsets_that_are_not_finite_do_no_harm(value):
    """Torchvision's operator ends the process at offsets of NaN."""
    conv = DeformableConv(3, 4)
    nn.init.constant_(conv.conv_offset.bias, value)
    x = torch.zeros(1, 3, 8, 9, requires_grad=True)
    out = conv(x)
    out.sum().backward()
    assert out.shape == (1, 4, 8, 9) and torch.isfinite(out).all() and torch.isfinite(x.grad).all()
