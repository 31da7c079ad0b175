"""Weights for compiled kernels."""

import pytest
import torch
from helpers.kernels import use_implementation

from solo_infer.ops import packed_weight
from solo_infer.ops.packed_weight import pack_weight


def test_none_without_kernels(monkeypatch):
    use_implementation("torch", monkeypatch)
    assert pack_weight(torch.zeros(8, 3, 7, 7), None) is None


@pytest.mark.parametrize("instructions", ["avx2", "avx512"])
def test_values(instructions, monkeypatch):
    use_implementation(instructions, monkeypatch)
    weight, bias = torch.arange(5 * 4 * 9.0).view(5, 4, 3, 3), torch.arange(5.0)
    packed = pack_weight(weight, bias.double())
    columns = packed.library.block_columns
    assert packed.values.shape == (1, 1, 9 * 4, columns) and packed.bias.shape == (columns,)
    assert torch.equal(packed.values[0, 0, :, :5].T.reshape(5, 3, 3, 4), weight.permute(0, 2, 3, 1))
    assert torch.equal(packed.bias[:5], bias) and not packed.bias[5:].any()
    assert not packed.values[..., 5:].any()
    assert (packed.channels, packed.out_channels, packed.instructions) == (4, 5, instructions)


def test_kernels_that_are_gone(monkeypatch):
    use_implementation("avx2", monkeypatch)
    packed = pack_weight(torch.zeros(8, 3, 1, 1), None)
    monkeypatch.setattr(packed_weight, "load_kernels", lambda _: None)
    with pytest.raises(RuntimeError, match="the kernels for avx2 are gone"):
        _ = packed.library
