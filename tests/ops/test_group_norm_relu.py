"""GroupNorm and ReLU beside PyTorch's modules."""

import pytest
import torch

from solo_infer.ops.group_norm_relu import group_norm_relu


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_group_norm_relu_equals_modules(memory_format):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 8, 5, 7, generator=generator).contiguous(memory_format=memory_format)
    norm = torch.nn.GroupNorm(4, 8)
    with torch.no_grad():
        norm.weight.copy_(torch.randn(8, generator=generator))
    original = x.clone()
    with torch.no_grad():
        result = group_norm_relu(x, 4, norm.weight, norm.bias, norm.eps)
        assert torch.equal(result, norm(x).relu()) and torch.equal(x, original)
    assert group_norm_relu.reference.__name__ == "group_norm_relu"
