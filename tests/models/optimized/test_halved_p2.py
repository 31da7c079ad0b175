"""The neck that computes P2 at half its size equals the plain neck."""

import pytest
import torch
import torch.nn.functional as F
from helpers.nested_tensors import assert_close_outputs, random_maps
from torch import nn

from solo_infer.models.optimized.halved_p2 import HalvedConv2d, HalvedP2Neck
from solo_infer.models.optimized.module_swaps import halve_p2
from solo_infer.models.optimized.optimize import optimize_for_inference
from solo_infer.models.solo.neck import SOLONeck

# (height, width) of C2: small, odd, and more rows than one or two bands.
SIZES = [(8, 8), (16, 24), (10, 14), (33, 18), (18, 33), (35, 31), (84, 40), (78, 36)]
CHANNELS = (8, 12, 16, 20)  # of C2 to C5


def random_neck(out_channels, extra_conv=False):
    torch.manual_seed(4)
    neck = SOLONeck(CHANNELS, out_channels, extra_conv).requires_grad_(False)
    for name, parameter in neck.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter)
    return neck


def random_pyramid(size, dtype=torch.float32):
    """Return random C2 to C5, each half the size of the one before, rounded up."""
    maps = []
    for level, channels in enumerate(CHANNELS):
        height, width = (-(-side // 2**level) for side in size)
        maps.append(random_maps((channels, height, width), count=2, dtype=dtype, seed=level))
    return maps


@pytest.mark.parametrize("size", [(2, 2), (4, 6), (2, 30), (20, 18), (82, 10)])
@pytest.mark.parametrize("channels", [32, 256])  # 256 channels use Winograd's method
@torch.no_grad()
def test_halved_convolution_equals_convolution_and_halving(channels, size):
    torch.manual_seed(1)
    conv = nn.Conv2d(channels, channels, 3, padding=1)
    halved = HalvedConv2d(conv)
    x = random_maps((channels, *size), count=2)
    assert halved.uses_winograd(x) == (channels == 256)
    expected = F.interpolate(conv(x), scale_factor=0.5, mode="bilinear", align_corners=False)
    for _ in range(2):  # the second time with the cached weights
        assert_close_outputs(halved(x), expected, 1e-5)


@pytest.mark.parametrize("channels", [32, 256])
@torch.no_grad()
def test_bands_of_rows_equal_the_whole_map(channels):
    torch.manual_seed(1)
    halved = HalvedConv2d(nn.Conv2d(channels, channels, 3, padding=1))
    x = random_maps((channels, 16, 10))
    bands = [halved(x[:, :, :9], above=1, below=0), halved(x[:, :, 7:], above=0, below=1)]
    assert_close_outputs(torch.cat(bands, dim=2), halved(x), 2e-5)


@pytest.mark.parametrize("extra_conv", [False, True])
@pytest.mark.parametrize("out_channels", [32, 256])
@torch.no_grad()
def test_halved_neck_equals_the_plain_neck(out_channels, extra_conv):
    neck = random_neck(out_channels, extra_conv)
    halved = HalvedP2Neck(neck)
    for size in SIZES:
        maps = random_pyramid(size)
        assert_close_outputs(halved(maps), neck(maps), 1e-5)


@torch.no_grad()
def test_halved_neck_with_winograd_convolutions():
    neck = random_neck(256)
    optimized = optimize_for_inference(nn.ModuleDict({"neck": neck}))["neck"]
    assert isinstance(optimized, HalvedP2Neck)
    for size in SIZES:
        maps = random_pyramid(size)
        assert_close_outputs(optimized(maps), neck(maps), 1e-4)


@pytest.mark.parametrize("out_channels", [32, 256])
@torch.no_grad()
def test_halved_neck_in_bfloat16(out_channels):
    neck = random_neck(out_channels).to(torch.bfloat16)
    for size in SIZES[:6]:
        maps = random_pyramid(size, torch.bfloat16)
        assert_close_outputs(HalvedP2Neck(neck)(maps), neck(maps), 0.02)


def test_gradients_of_the_halved_neck():
    neck = random_neck(256)
    gradients = []
    for candidate in (HalvedP2Neck(neck), neck):
        maps = [x.requires_grad_(True) for x in random_pyramid((16, 24))]
        sum(level.square().sum() for level in candidate(maps)).backward()
        gradients.append([x.grad for x in maps])
    assert_close_outputs(*gradients, 1e-4)


def test_only_necks_of_solo_are_replaced():
    network = nn.ModuleDict({"neck": random_neck(32), "other": nn.Conv2d(3, 3, 1)})
    other = network["other"]
    assert halve_p2(network) is network
    assert isinstance(network["neck"], HalvedP2Neck) and network["other"] is other
