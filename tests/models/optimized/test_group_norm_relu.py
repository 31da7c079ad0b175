"""GroupNorm and ReLU as one module."""

import pytest
import torch
from helpers.nested_tensors import assert_close_outputs, random_maps
from torch import nn

from solo_infer.models.optimized.group_norm_relu import GroupNormReLU


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (5, 3), (16, 24)])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-6), (torch.bfloat16, 0.01)])
@torch.no_grad()
def test_equals_the_two_modules(dtype, tolerance, size):
    torch.manual_seed(3)
    norm = nn.GroupNorm(32, 64)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    norm.to(dtype)
    fused = GroupNormReLU(norm)
    assert fused.weight is norm.weight and fused.bias is norm.bias
    x = random_maps((64, *size), count=2, dtype=dtype)
    expected = norm(x).relu()
    assert_close_outputs(fused(x), expected, tolerance)
