"""Layers whose outputs take kept memory: results are those of the plain layers."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from solo_infer.models.optimized import fused_operators
from solo_infer.models.optimized.fused_operators import KeptConv2d, convolution_relu, is_plain
from solo_infer.models.optimized.pyramid import enlarge
from solo_infer.models.optimized.stem import pool_and_relu
from solo_infer.runtime import kept_memory

DTYPES = [torch.float32, torch.bfloat16]


@pytest.fixture(autouse=True)
def taken(monkeypatch):
    """Let all outputs count as large, and return the shapes of those in kept memory, (N, H, W, C)."""
    shapes, empty = [], kept_memory.empty

    def record(shape, dtype=torch.float32):
        shapes.append(tuple(shape))
        return empty(shape, dtype).fill_(float("nan") if dtype.is_floating_point else -1)

    monkeypatch.setattr(kept_memory, "empty", record)
    monkeypatch.setattr(fused_operators, "MAX_SIZE_OF_MALLOC", 0)
    return shapes


def maps(*shape, dtype=torch.float32):
    values = torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))
    return values.to(dtype).contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("taps, stride", [(1, 1), (1, 2), (3, 2), (7, 2)])
@torch.no_grad()
def test_convolution(taps, stride, bias, dtype, taken):
    conv = nn.Conv2d(24, 40, taps, stride, taps // 2, bias=bias).to(dtype)
    conv = conv.to(memory_format=torch.channels_last)
    kept = KeptConv2d(conv)
    assert is_plain(kept) and kept.weight is conv.weight
    for size in ((17, 22), (7, 7), (64, 33)):
        x = maps(2, 24, *size, dtype=dtype)
        expected = conv(x)
        taken.clear()
        limit = 1e-5 if dtype == torch.float32 else 0.01
        torch.testing.assert_close(kept(x), expected, rtol=limit, atol=limit)
        torch.testing.assert_close(convolution_relu(kept, x), F.relu(expected), rtol=limit, atol=limit)
        assert taken == [(2, *expected.shape[2:], 40)] * 2


@torch.no_grad()
def test_small_outputs_take_no_kept_memory(monkeypatch, taken):
    monkeypatch.setattr(fused_operators, "MAX_SIZE_OF_MALLOC", 2**25)
    conv = nn.Conv2d(8, 8, 1)
    x = maps(1, 8, 9, 9)
    assert torch.equal(KeptConv2d(conv)(x), conv(x)) and not taken


def test_gradients_take_no_kept_memory(taken):
    conv, x = nn.Conv2d(8, 8, 1), maps(1, 8, 9, 9).requires_grad_(True)
    KeptConv2d(conv)(x).sum().backward()
    pool_and_relu(x).sum().backward()
    assert not taken and bool(x.grad.any())


@pytest.mark.parametrize("module", [nn.Conv2d(8, 8, 3, dilation=2), nn.Conv2d(8, 8, 3, groups=2), nn.ReLU()])
def test_other_modules_are_not_plain(module):
    assert not is_plain(module)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [(8, 12), (9, 13), (1, 1)])
@torch.no_grad()
def test_pool_of_the_stem(size, dtype, taken):
    x = maps(2, 16, *size, dtype=dtype)
    assert torch.equal(pool_and_relu(x), F.relu(F.max_pool2d(x, 3, 2, 1)))
    assert len(taken) == 2  # with the positions of the maxima


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [(10, 14), (9, 13), (5, 7), (11, 27)])
@torch.no_grad()
def test_enlarged_maps(size, dtype, taken):
    x = maps(2, 16, 5, 7, dtype=dtype)
    assert torch.equal(enlarge(x, size), F.interpolate(x, size=size, mode="nearest"))
    assert taken == [(2, *size, 16)]
