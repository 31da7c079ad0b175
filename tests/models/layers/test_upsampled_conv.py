"""Plain convolutions of up-sampled maps."""

import pytest
import torch
import torch.nn.functional as F

from solo_infer.models.layers.resize import resize, upsample
from solo_infer.models.layers.upsampled_conv import UpsampledConv2d


@pytest.mark.parametrize("size", [(1, 1), (2, 9), (7, 5)])
@pytest.mark.parametrize("kernel_size", [1, 3])
@torch.no_grad()
def test_convolution_of_an_up_sampled_map(kernel_size, size):
    torch.manual_seed(1)
    conv = UpsampledConv2d(6, 10, kernel_size)
    x = torch.randn(2, 6, *size)
    upsampled = F.interpolate(x, size=[2 * side for side in size], mode="bilinear", align_corners=False)
    expected = F.conv2d(upsampled, conv.weight, conv.bias, padding=kernel_size // 2)
    torch.testing.assert_close(conv(x), expected)
    channels = torch.tensor([1, 4, 9])
    torch.testing.assert_close(conv.select(x, channels), expected[:, channels])
    selected = conv.bfloat16().select(x.bfloat16(), channels)
    assert selected.dtype == torch.float32 and selected.shape == (2, 3, *(2 * side for side in size))


def test_resize_returns_maps_of_that_size_unchanged():
    maps = torch.randn(1, 2, 3, 4, generator=torch.Generator().manual_seed(0))
    assert resize(maps, (3, 4)) is maps
    expected = F.interpolate(maps, size=(6, 8), mode="bilinear", align_corners=False)
    assert torch.equal(resize(maps, (6, 8)), expected)
    torch.testing.assert_close(upsample(maps), expected)
