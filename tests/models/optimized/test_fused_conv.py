"""Convolutions whose LeakyReLU oneDNN applies, and optimized networks of Tiny."""

import copy

import pytest
import torch
from helpers.models import small_tiny_config, small_tiny_network
from helpers.nested_tensors import assert_close_outputs, flatten_tensors, random_maps
from torch import nn

from solo_infer.models.layers.leaky_conv import LeakyConv2d, conv3x3, depthwise, pointwise
from solo_infer.models.optimized import fused_conv
from solo_infer.models.optimized.fused_conv import FusedConv2d, can_fuse
from solo_infer.models.optimized.optimize import optimize_for_inference

CPU = torch.device("cpu")
needs_fusion = pytest.mark.skipif(
    not can_fuse(CPU, torch.float32), reason="this build of torch has no such operator of oneDNN"
)


@needs_fusion
@pytest.mark.parametrize("leaky", [False, True])
@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
@torch.no_grad()
def test_values(leaky, memory_format):
    x = random_maps((16, 7, 9), count=2).contiguous(memory_format=memory_format)
    for conv in (
        pointwise(16, 24, leaky=leaky),
        depthwise(16, 5, stride=2, leaky=leaky),
        depthwise(16, 3, leaky=leaky),
        conv3x3(16, 8, stride=2, leaky=leaky),
        nn.Conv2d(16, 8, 1, bias=False),
    ):
        output, expected = FusedConv2d(conv)(x), conv(x)
        torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)
        assert output.is_contiguous(memory_format=torch.channels_last)


@needs_fusion
@pytest.mark.parametrize("channels, size", [(32, (20, 30)), (33, (20, 30)), (64, (10, 16)), (64, (10, 17))])
@pytest.mark.parametrize("leaky", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_small_pointwise_convolutions(channels, size, leaky, dtype):
    """Those of few channels or pixels are matrix products."""
    if not can_fuse(CPU, dtype):
        pytest.skip("this processor has no convolutions in this dtype")
    conv = pointwise(channels, 24, leaky=leaky).to(dtype)
    x = random_maps((channels, *size), dtype=dtype)
    output = FusedConv2d(conv)(x)
    expected = copy.deepcopy(conv).float()(x.float())
    limit = 1e-5 if dtype == torch.float32 else 0.02
    torch.testing.assert_close(output.float(), expected, rtol=limit, atol=limit)
    assert output.is_contiguous(memory_format=torch.channels_last)


@needs_fusion
def test_gradients_flow_through_the_plain_convolution():
    conv = LeakyConv2d(4, 6, 1)
    x = random_maps((4, 3, 3)).requires_grad_(True)
    output = FusedConv2d(conv)(x)
    assert torch.equal(output, conv(x))
    output.sum().backward()
    assert x.grad.any() and conv.weight.grad.any()


@pytest.mark.parametrize("size", [(64, 96), (96, 160)])
@pytest.mark.parametrize("backbone", ["shufflenet_1x", "shufflenet_1.5x"])
@torch.no_grad()
def test_optimized_network_equals_the_plain_network(backbone, size):
    network = small_tiny_network(small_tiny_config(backbone))
    optimized = optimize_for_inference(network)
    images = random_maps((3, *size), count=2)
    output, expected = optimized(images), network(images)
    assert type(output) is type(expected)
    assert_close_outputs(output, expected, 1e-4)


@needs_fusion
def test_every_convolution_is_replaced_and_shares_its_weights():
    network = small_tiny_network(small_tiny_config())
    modules = list(network.modules())
    optimized = optimize_for_inference(network)
    assert list(network.modules()) == modules
    count = sum(isinstance(module, nn.Conv2d) for module in modules)
    assert sum(isinstance(module, FusedConv2d) for module in optimized.modules()) == count > 100
    pointers = {parameter.data_ptr() for parameter in network.parameters()}
    assert {parameter.data_ptr() for parameter in optimized.parameters()} == pointers


@torch.no_grad()
def test_networks_work_without_the_operators(monkeypatch):
    monkeypatch.setattr(fused_conv, "can_fuse", lambda device, dtype: False)
    network = small_tiny_network(small_tiny_config())
    optimized = optimize_for_inference(network)
    assert not any(isinstance(module, FusedConv2d) for module in optimized.modules())
    images = random_maps((3, 64, 64))
    for values, expected in zip(
        flatten_tensors(optimized(images)), flatten_tensors(network(images)), strict=True
    ):
        assert torch.equal(values, expected)


def fail(self, x):
    raise RuntimeError("the operator is not built")


@pytest.mark.parametrize("forward", [fail, lambda self, x: 1.01 * self.conv(x)])
def test_broken_operators_are_not_used(forward, monkeypatch):
    monkeypatch.setattr(FusedConv2d, "forward", forward)
    fused_conv._fused_operators_work.cache_clear()
    assert not can_fuse(CPU, torch.float32)
    fused_conv._fused_operators_work.cache_clear()


def test_other_devices_use_plain_convolutions():
    assert not can_fuse(torch.device("meta"), torch.float32)


@torch.no_grad()
def test_optimized_network_in_bfloat16():
    """Each output has the errors of the plain network. One image has few pixels on the coarse levels."""
    network = small_tiny_network(small_tiny_config())
    half = copy.deepcopy(network).to(torch.bfloat16)
    optimized = optimize_for_inference(half)
    errors, plain_errors, maxima = [], [], []
    for seed in range(16):
        images = random_maps((3, 64, 96), seed=seed)
        outputs = network(images), half(images.bfloat16()), optimized(images.bfloat16())
        exact, plain, fast = (flatten_tensors((output.cells, output.features)) for output in outputs)
        assert {values.dtype for values in fast} == {torch.bfloat16}
        errors.append([(a.float() - b).abs().mean() for a, b in zip(fast, exact, strict=True)])
        plain_errors.append([(a.float() - b).abs().mean() for a, b in zip(plain, exact, strict=True)])
        maxima.append([values.abs().max() for values in exact])
    error, plain_error, maximum = (torch.tensor(values).mean(0) for values in (errors, plain_errors, maxima))
    assert (error < 1.2 * plain_error).all() and (1.5 * plain_error < 0.1 * maximum).all()
