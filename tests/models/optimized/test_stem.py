"""The fused stem of ResNets equals the separate layers."""

import pytest
import torch
import torch.nn.functional as F
from helpers.kernels import IMPLEMENTATIONS, use_implementation
from helpers.nested_tensors import assert_close_outputs, random_maps
from torch import nn

from solo_infer.models.optimized.stem import FusedStem


@pytest.fixture(params=IMPLEMENTATIONS, autouse=True)
def implementation(request, monkeypatch):
    use_implementation(request.param, monkeypatch)
    return request.param


def layers(stem, x):
    return F.max_pool2d(F.relu(stem.conv(x)), 3, 2, 1)


def random_stem():
    torch.manual_seed(1)
    return FusedStem(nn.Conv2d(3, 64, 7, 2, 3))


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 0.02)])
@torch.no_grad()
def test_equals_the_separate_layers(dtype, tolerance, implementation):
    stem = random_stem().to(dtype)
    for size in ((1, 1), (33, 46), (64, 96)):
        x = random_maps((3, *size), count=2, dtype=dtype)
        assert_close_outputs(stem(x), layers(stem, x), tolerance)
    assert (stem._packed is None) == (implementation == "torch" or dtype == torch.bfloat16)


def test_gradients_use_separate_layers():
    stem, gradients = random_stem(), []
    for function in (stem, lambda x: layers(stem, x)):
        x = random_maps((3, 20, 24)).requires_grad_(True)
        function(x).square().sum().backward()
        gradients.append(x.grad)
    torch.testing.assert_close(*gradients)


@torch.no_grad()
def test_exported_stem():
    stem, x = random_stem(), random_maps((3, 32, 40))
    exported = torch.export.export(stem, (x,)).module()
    assert_close_outputs(exported(x), layers(stem, x), 1e-5)
