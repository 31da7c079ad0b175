"""Branches of the heads and their coordinate channels."""

import pytest
import torch

from solo_infer.models.layers.conv_branch import ConvBranch, append_coordinates, coordinates
from solo_infer.models.layers.deform_conv import DeformableConv


def test_coordinates_run_from_minus_one_to_one_over_the_padded_map():
    maps = coordinates(torch.zeros(2, 5, 3, 4), "xy")
    assert maps.shape == (1, 2, 3, 4)
    torch.testing.assert_close(maps[0, 0, 2], torch.linspace(-1, 1, 4))
    torch.testing.assert_close(maps[0, 1, :, 1], torch.linspace(-1, 1, 3))
    assert coordinates(torch.zeros(1, 1, 1, 1), "xy").flatten().tolist() == [-1, -1]


@pytest.mark.parametrize("axes", ["x", "y", "xy"])
def test_coordinates_are_appended_to_every_image(axes):
    feature = torch.randn(2, 5, 3, 4, generator=torch.Generator().manual_seed(0))
    out = append_coordinates(feature, axes)
    assert torch.equal(out[:, :5], feature)
    for image in range(2):
        assert torch.equal(out[image, 5:], coordinates(feature, axes)[0])
    assert coordinates(feature.bfloat16(), axes).dtype == torch.bfloat16


def test_no_axes_append_nothing():
    feature = torch.zeros(2, 5, 3, 4)
    assert append_coordinates(feature, "") is feature


@pytest.mark.parametrize("axes", ["", "x", "xy"])
@torch.no_grad()
def test_branch_is_convolution_group_norm_and_relu_of_each_level(axes):
    torch.manual_seed(1)
    branch = ConvBranch(8, 32, 2, axes=axes)
    maps = [torch.randn(2, 8, 6, 7), torch.randn(2, 8, 3, 2)]
    outputs = branch(maps)
    for feature, output in zip(maps, outputs, strict=True):
        x = append_coordinates(feature, axes)
        for block in branch:
            x = torch.nn.functional.conv2d(x, block.conv.weight, padding=1)
            x = torch.nn.functional.group_norm(x, 32, block.gn.weight, block.gn.bias).relu()
        torch.testing.assert_close(output, x)


def test_options_of_a_branch():
    branch = ConvBranch(8, 32, 3, axes="xy", bias=True, deformable="last")
    assert [block.conv.in_channels for block in branch] == [10, 32, 32]
    assert [isinstance(block.conv, DeformableConv) for block in branch] == [False, False, True]
    assert all(block.conv.bias is not None for block in branch)
    assert all(block.conv.bias is None for block in ConvBranch(8, 32, 3))
