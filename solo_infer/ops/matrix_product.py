"""Products with matrices that are stored by columns; on the CPU by oneDNN, torch's convolution library."""

from __future__ import annotations

import logging
from functools import cache

import torch
from torch import Tensor

from solo_infer.ops.dispatch import is_compiling
from solo_infer.runtime.neutral_state import neutral_state

_LOGGER = logging.getLogger(__name__)


def matrix_product(a: Tensor, b: Tensor) -> Tensor:
    """Return ``a @ b``, (M, N).

    In float32 without gradients, if the columns of ``b`` are contiguous, oneDNN computes it, which torch
    itself asks for half precision only: it is up to 1.8 times as fast as MKL on processors of AMD
    (benchmarks/NOTES.md).

    Args:
        a: (M, K).
        b: (K, N) of the same dtype and device.
    """
    is_suitable = (
        a.dtype == torch.float32 and a.device.type == "cpu" and b.T.is_contiguous() and a.numel() > 0
    )
    if is_suitable and not torch.is_grad_enabled() and not is_compiling() and _operator_works():
        return _onednn_product(a, b)
    return a @ b


def _onednn_product(a: Tensor, b: Tensor) -> Tensor:
    # The operator that torch offers to its own compiler: a layer with the weight b.T.
    return torch.ops.mkldnn._linear_pointwise(a.contiguous(), b.T, None, "none", [], "")


@cache
@neutral_state()
def _operator_works() -> bool:
    if not torch.backends.mkldnn.is_available():
        return False
    generator = torch.Generator().manual_seed(0)
    a, b = (
        torch.randn(size, generator=generator, dtype=torch.float32, device="cpu") for size in ((5, 7), (9, 7))
    )
    try:
        with torch.no_grad():
            product = _onednn_product(a, b.T)
    except (AttributeError, RuntimeError, NotImplementedError, TypeError) as error:
        _LOGGER.info("Products are not computed by oneDNN: %s", error)
        return False
    return torch.allclose(product, a @ b.T, rtol=1e-5, atol=1e-5)
