"""Branches run block by block over all levels equal branches run level by level."""

import pytest
import torch
from helpers.kernels import IMPLEMENTATIONS, use_implementation
from helpers.nested_tensors import assert_close_outputs, random_maps
from torch import nn

from solo_infer.models.layers.conv_branch import ConvBranch
from solo_infer.models.optimized.conv_branch import LevelwiseConvBranch
from solo_infer.models.optimized.optimize import optimize_for_inference
from solo_infer.models.optimized.winograd_conv import WinogradConv2d

SIZES = [(12, 20), (12, 20), (7, 9), (3, 5), (1, 1)]


def random_branch(channels, **options):
    torch.manual_seed(3)
    branch = ConvBranch(channels, channels, 3, **options).requires_grad_(False)
    for block in branch:
        nn.init.normal_(block.gn.weight)
        nn.init.normal_(block.gn.bias)
    return branch


def optimize_branch(branch):
    return optimize_for_inference(nn.ModuleDict({"branch": branch}))["branch"]


@pytest.mark.parametrize("axes", ["", "x", "y", "xy"])
@pytest.mark.parametrize("channels", [32, 256])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@torch.no_grad()
def test_levelwise_branch_equals_the_plain_branch(implementation, channels, axes, monkeypatch):
    use_implementation(implementation, monkeypatch)
    branch = random_branch(channels, axes=axes)
    maps = [random_maps((channels, *size), count=2, seed=level) for level, size in enumerate(SIZES)]
    inputs = [x.clone() for x in maps]
    optimized = optimize_branch(branch)
    assert isinstance(optimized, LevelwiseConvBranch)
    winograd = [isinstance(block.get_submodule("conv"), WinogradConv2d) for block in optimized.blocks]
    assert winograd == [channels == 256 or implementation != "torch"] * 3
    for candidate in (LevelwiseConvBranch(branch), optimized):
        assert_close_outputs(candidate(maps), branch(maps), 1e-4)
        assert_close_outputs(candidate(maps[3:]), branch(maps[3:]), 1e-4)
        assert candidate([]) == branch([]) == []
    assert all(torch.equal(x, before) for x, before in zip(maps, inputs, strict=True))


@pytest.mark.parametrize("options", [{"bias": True}, {"deformable": "last"}, {"axes": "xy", "bias": True}])
@torch.no_grad()
def test_levelwise_branch_with_options(options):
    branch = random_branch(64, **options)
    maps = [random_maps((64, *size), seed=level) for level, size in enumerate(SIZES)]
    assert_close_outputs(optimize_branch(branch)(maps), branch(maps), 1e-4)


@pytest.mark.parametrize("channels", [64, 256])
@torch.no_grad()
def test_levelwise_branch_in_bfloat16(channels):
    branch = random_branch(channels, axes="xy").to(torch.bfloat16)
    maps = [random_maps((channels, *size), dtype=torch.bfloat16) for size in SIZES]
    assert_close_outputs(optimize_branch(branch)(maps), branch(maps), 0.03)
