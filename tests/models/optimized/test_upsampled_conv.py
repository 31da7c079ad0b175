"""Convolutions of up-sampled maps, computed without the up-sampled map."""

import pytest
import torch
import torch.nn.functional as F
from helpers.nested_tensors import assert_close_outputs, random_maps

from solo_infer.models.layers.upsampled_conv import UpsampledConv2d
from solo_infer.models.optimized.upsampled_conv import FastUpsampledConv2d, upsampled_convolution

SIZES = [(1, 1), (2, 9), (3, 4), (4, 4), (5, 12), (13, 30)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("outputs", [1, 3, 17])  # 17 outputs use Winograd's method
@torch.no_grad()
def test_equals_up_sampling_before_the_convolution(size, outputs):
    generator = torch.Generator().manual_seed(outputs)
    x = torch.randn(2, 12, *size, generator=generator)
    weight = torch.randn(outputs, 12, 3, 3, generator=generator) / 10
    bias = torch.randn(outputs, generator=generator)
    upsampled = F.interpolate(x.double(), scale_factor=2, mode="bilinear", align_corners=False)
    expected = F.conv2d(upsampled, weight.double(), bias.double(), padding=1)
    for layout in (torch.contiguous_format, torch.channels_last):
        out = upsampled_convolution(x.contiguous(memory_format=layout), weight, bias)
        assert out.dtype == torch.float32
        torch.testing.assert_close(out, expected.float(), rtol=0, atol=1e-5)


def test_gradients_equal_those_of_up_sampling_before_the_convolution():
    x = torch.randn(1, 4, 6, 7, generator=torch.Generator().manual_seed(0), requires_grad=True)
    weight = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(1), requires_grad=True)
    upsampled_convolution(x, weight, torch.zeros(2)).square().sum().backward()
    gradient, x.grad = x.grad, None
    upsampled = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
    F.conv2d(upsampled, weight, padding=1).square().sum().backward()
    torch.testing.assert_close(gradient, x.grad)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 0.03)])
@pytest.mark.parametrize("size", SIZES)
@torch.no_grad()
def test_module_equals_the_plain_module(size, dtype, tolerance):
    torch.manual_seed(6)
    conv = UpsampledConv2d(12, 20, 3).to(dtype)
    fast = FastUpsampledConv2d(conv)
    assert fast.weight is conv.weight and fast.bias is conv.bias
    x = random_maps((12, *size), count=2, dtype=dtype)
    assert torch.equal(fast(x), conv(x))
    for channels in (torch.tensor([3]), torch.tensor([1, 19]), torch.arange(20)):
        selected = fast.select(x, channels)
        assert selected.dtype == torch.float32 and selected.shape[1] == len(channels)
        assert_close_outputs(selected, conv.select(x, channels), tolerance)
        assert_close_outputs(selected, conv(x)[:, channels].float(), tolerance)
