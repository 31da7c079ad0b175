"""Outputs that kernels write past the caches (``stream`` of ``vectors.h``)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

# Bytes of outputs from which on it is faster not to read them into the caches, which they would fill
# (benchmarks/NOTES.md).
_MIN_SIZE = 2**22
_ALIGNMENT, _CHANNELS = 64, 32  # of the widest vectors in bytes, and of two of them in values


def can_stream(outputs: Sequence[Tensor]) -> bool:
    """Return whether outputs (N, H, W, K) are large, and aligned as vectors are."""
    is_aligned = all(y.data_ptr() % _ALIGNMENT == 0 and y.shape[3] % _CHANNELS == 0 for y in outputs)
    return is_aligned and sum(y.nbytes for y in outputs) >= _MIN_SIZE
