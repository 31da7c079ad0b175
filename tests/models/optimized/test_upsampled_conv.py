"""A convolution of a doubled map is a convolution of the map."""

import pytest
import torch
import torch.nn.functional as F

from solo_infer.models.optimized.upsampled_conv import upsampled_convolution


@pytest.mark.parametrize("size", [(1, 1), (2, 9), (3, 4), (4, 4), (5, 12), (13, 30)])
@pytest.mark.parametrize("outputs", [1, 3, 17])  # 17 outputs go Winograd's way
@torch.no_grad()
def test_equals_doubling_first(size, outputs):
    generator = torch.Generator().manual_seed(outputs)
    x = torch.randn(2, 12, *size, generator=generator)
    weight = torch.randn(outputs, 12, 3, 3, generator=generator) / 10
    bias = torch.randn(outputs, generator=generator)
    doubled = F.interpolate(x.double(), scale_factor=2, mode="bilinear", align_corners=False)
    expected = F.conv2d(doubled, weight.double(), bias.double(), padding=1)
    for layout in (torch.contiguous_format, torch.channels_last):
        found = upsampled_convolution(x.contiguous(memory_format=layout), weight, bias)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, expected.float(), rtol=0, atol=1e-5)


def test_learns_like_doubling_first():
    x = torch.randn(1, 4, 6, 7, generator=torch.Generator().manual_seed(0), requires_grad=True)
    weight = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(1), requires_grad=True)
    upsampled_convolution(x, weight, torch.zeros(2)).square().sum().backward()
    found, x.grad = x.grad, None
    doubled = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
    F.conv2d(doubled, weight, padding=1).square().sum().backward()
    torch.testing.assert_close(found, x.grad)
