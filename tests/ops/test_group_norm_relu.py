"""GroupNorm and ReLU beside PyTorch's modules."""

import pytest
import torch
import torch.nn.functional as F
from helpers.kernels import IMPLEMENTATIONS, use_implementation

from solo_infer.ops.group_norm_relu import group_norm_relu, group_norm_relu_


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


def random_map(*shape, mean=0.5, memory_format=torch.channels_last):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1)) + mean
    return x.contiguous(memory_format=memory_format)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(
    ("shape", "groups"),
    [
        ((2, 256, 40, 41), 32),
        ((1, 32, 1, 2), 32),
        ((3, 70, 9, 30), 7),
        ((1, 24, 17, 16), 1),
        ((1, 5, 3, 3), 5),
    ],
)
@torch.no_grad()
def test_in_place_variant(implementation, shape, groups, monkeypatch):
    use_implementation(implementation, monkeypatch)
    generator = torch.Generator().manual_seed(2)
    weight, bias = torch.randn(2, shape[1], generator=generator)
    for mean in (0.5, 20.0):  # much larger than the deviations
        x = random_map(*shape, mean=mean)
        expected = F.group_norm(x.double(), groups, weight.double(), bias.double(), 1e-5).relu()
        result = group_norm_relu_(x, groups, weight, bias, 1e-5)
        assert result.is_contiguous(memory_format=torch.channels_last)
        assert (result.data_ptr() == x.data_ptr()) == (implementation != "torch")
        limit = 5e-3 if implementation == "torch" and mean > 1 else 1e-4 if mean > 1 else 1e-5
        torch.testing.assert_close(result.double(), expected, rtol=0, atol=limit)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@torch.no_grad()
def test_other_inputs_are_not_overwritten(implementation, monkeypatch):
    use_implementation(implementation, monkeypatch)
    weight, bias = torch.ones(16), torch.zeros(16)
    for x in (
        random_map(1, 16, 9, 8, memory_format=torch.contiguous_format),
        random_map(1, 16, 4, 4).half(),
    ):
        arguments = 4, weight.to(x.dtype), bias.to(x.dtype), 1e-5
        before = x.clone()
        assert torch.equal(group_norm_relu_(x, *arguments), group_norm_relu(before, *arguments))
        assert torch.equal(x, before)


def test_gradients_pass_the_in_place_variant():
    x = random_map(1, 16, 4, 4).requires_grad_(True)
    group_norm_relu_(x * 2, 4, torch.ones(16), torch.zeros(16), 1e-5).square().sum().backward()
    assert x.grad.abs().sum() > 0


@pytest.mark.parametrize("instructions", ["avx2", "avx512"])
@torch.no_grad()
def test_threads_do_not_change_the_kernel(instructions, monkeypatch):
    use_implementation(instructions, monkeypatch)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            arguments = 8, torch.ones(64), torch.zeros(64), 1e-5
            results.append(group_norm_relu_(random_map(2, 64, 50, 40), *arguments))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@torch.no_grad()
def test_values_that_are_not_finite(implementation, monkeypatch):
    use_implementation(implementation, monkeypatch)
    x = random_map(1, 8, 6, 6)
    x[0, 0, 2, 3] = torch.nan
    result = group_norm_relu_(x, 4, torch.ones(8), torch.zeros(8), 1e-5)
    assert result[:, :2].isnan().all() and result[:, 2:].isfinite().all()
    constant = group_norm_relu_(
        torch.ones(1, 8, 6, 6).contiguous(memory_format=torch.channels_last),
        4,
        torch.ones(8),
        torch.full((8,), 0.5),
        1e-5,
    )
    torch.testing.assert_close(constant, torch.full_like(constant, 0.5))


@pytest.mark.parametrize("instructions", ["avx2", "avx512"])
@pytest.mark.parametrize("shape, groups", [((2, 256, 20, 21), 32), ((1, 70, 9, 30), 7), ((1, 5, 3, 3), 5)])
@torch.no_grad()
def test_bfloat16_is_rounded_once(instructions, shape, groups, monkeypatch):
    use_implementation(instructions, monkeypatch)
    weight, bias = torch.randn(2, shape[1], generator=torch.Generator().manual_seed(2)).bfloat16()
    x = random_map(*shape, mean=3.0).bfloat16()
    expected = F.group_norm(x.double(), groups, weight.double(), bias.double(), 1e-5).relu()
    result = group_norm_relu_(x, groups, weight, bias, 1e-5)
    assert result.dtype == torch.bfloat16 and result.data_ptr() == x.data_ptr()
    assert bool(((result.double() - expected).abs() <= expected * 2**-8 + 1e-5).all())
