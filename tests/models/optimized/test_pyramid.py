"""Feature pyramids with fused additions equal the plain ones."""

import pytest
import torch
from helpers.nested_tensors import assert_close_outputs, random_maps
from torch import nn

from solo_infer.models.optimized.module_swaps import swap_modules
from solo_infer.models.optimized.pyramid import FusedPyramidNeck, merge_lateral
from solo_infer.models.solo.neck import PyramidNeck, SOLOv2Neck

CHANNELS = (8, 12, 16, 20)  # of C2 to C5


def random_pyramid(size, dtype):
    sizes = [tuple(-(-side // 2**level) for side in size) for level in range(4)]
    return [
        random_maps((channels, *sizes[level]), count=2, dtype=dtype, seed=level)
        for level, channels in enumerate(CHANNELS)
    ]


@pytest.mark.parametrize("kind", [PyramidNeck, SOLOv2Neck])
@pytest.mark.parametrize("extra_conv", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.05)])
@torch.no_grad()
def test_equals_the_plain_neck(kind, extra_conv, dtype, tolerance):
    torch.manual_seed(0)
    neck = kind(CHANNELS, 32, extra_conv).to(dtype)
    fused = FusedPyramidNeck(neck)
    for size in ((8, 8), (33, 18), (40, 31)):
        maps = random_pyramid(size, dtype)
        copies = [x.clone() for x in maps]
        assert_close_outputs(fused(maps), neck(maps), tolerance)
        assert all(torch.equal(x, copy) for x, copy in zip(maps, copies, strict=True))


def test_gradients_use_separate_operations():
    torch.manual_seed(0)
    neck = PyramidNeck(CHANNELS, 32)
    gradients = []
    for candidate in (neck, FusedPyramidNeck(neck)):
        maps = [x.requires_grad_(True) for x in random_pyramid((16, 24), torch.float32)]
        sum(level.square().sum() for level in candidate(maps)).backward()
        gradients.append([x.grad for x in maps])
    assert_close_outputs(*gradients, 1e-5)


@torch.no_grad()
def test_laterals_that_are_no_plain_convolutions():
    coarse, x = random_maps((4, 3, 3)), random_maps((8, 6, 6))
    conv = nn.Conv2d(8, 4, 1)
    for lateral in (nn.Sequential(conv, nn.ReLU()), nn.Conv2d(8, 4, 1, groups=2), nn.Sequential(conv)):
        expected = lateral(x) + coarse.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
        assert_close_outputs(merge_lateral(lateral, x, coarse), expected, 1e-5)


@torch.no_grad()
def test_swapped_in_networks_with_the_pyramid_of_solov2():
    network = nn.ModuleDict({"neck": SOLOv2Neck(CHANNELS, 32)})
    assert isinstance(swap_modules(network)["neck"], FusedPyramidNeck)
