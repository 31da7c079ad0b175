"""Products of matrices by oneDNN equal those of torch."""

import pytest
import torch

from solo_infer.ops import matrix_product as module
from solo_infer.ops.matrix_product import matrix_product


def matrices(dtype=torch.float32, by_columns=True):
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(6, 40, generator=generator).to(dtype)
    b = torch.randn(40, 50, generator=generator).to(dtype)
    return a, b.T.contiguous().T if by_columns else b


@pytest.mark.parametrize("by_columns", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@torch.no_grad()
def test_values(dtype, by_columns):
    a, b = matrices(dtype, by_columns)
    product = matrix_product(a, b)
    assert product.dtype == dtype
    limit = 0.05 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(product.double(), a.double() @ b.double(), rtol=limit, atol=limit)
    sliced = matrix_product(a[::2], b[:, 8:24])
    torch.testing.assert_close(sliced.double(), a[::2].double() @ b[:, 8:24].double(), rtol=limit, atol=limit)
    assert matrix_product(a[:0], b).shape == (0, 50) and matrix_product(a, b[:, :0]).shape == (6, 0)


def test_gradients():
    a, b = matrices()
    a.requires_grad_(True)
    matrix_product(a, b).sum().backward()
    torch.testing.assert_close(a.grad, b.sum(dim=1).expand(6, -1))


@torch.no_grad()
def test_without_the_operator(monkeypatch, caplog):
    def fail(*args):
        raise RuntimeError("no such operator")

    module._operator_works.cache_clear()
    try:
        with caplog.at_level("INFO", logger=module.__name__), monkeypatch.context() as patch:
            patch.setattr(module, "_onednn_product", fail)
            a, b = matrices()
            assert torch.equal(matrix_product(a, b), a @ b)
        assert "no such operator" in caplog.text
    finally:
        module._operator_works.cache_clear()
