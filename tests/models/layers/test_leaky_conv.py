"""Convolutions with LeakyReLU."""

import pytest
import torch
from helpers.nested_tensors import random_maps
from torch import nn
from torch.nn.functional import conv2d

from solo_infer.models.layers.leaky_conv import LeakyConv2d, conv3x3, depthwise, pointwise


@pytest.mark.parametrize("leaky", [False, True])
@pytest.mark.parametrize(
    "make, padding, stride, groups",
    [
        (lambda leaky: pointwise(4, 6, leaky=leaky), 0, 1, 1),
        (lambda leaky: depthwise(4, 5, stride=2, leaky=leaky), 2, 2, 4),
        (lambda leaky: depthwise(4, 3, leaky=leaky), 1, 1, 4),
        (lambda leaky: conv3x3(4, 6, stride=2, leaky=leaky), 1, 2, 1),
    ],
)
@torch.no_grad()
def test_values(make, padding, stride, groups, leaky):
    conv = make(leaky)
    assert type(conv) is (LeakyConv2d if leaky else nn.Conv2d)
    x = random_maps((4, 7, 9), count=2)
    expected = conv2d(x, conv.weight, conv.bias, stride, padding, groups=groups)
    assert (expected < 0).any() and (expected > 0).any()
    if leaky:
        expected = torch.where(expected > 0, expected, 0.1 * expected)
    torch.testing.assert_close(conv(x), expected)
