"""Indices of instances: an int, a slice, a boolean mask or a list of ints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from solo_infer.errors import ResultError
from solo_infer.runtime.messages import quoted

MultiIndex = slice | Tensor | np.ndarray | Sequence[int] | Sequence[bool]


def as_indices(index: MultiIndex, count: int) -> np.ndarray:
    """Convert a slice, a boolean mask or a list of ints to indices (K,) int64.

    Args:
        index: Index of a result.
        count: Number of its instances.

    Raises:
        ResultError: A boolean mask does not have one value per instance, an index in a list is out of range,
            or the index is of another type.
    """
    try:
        indices = np.arange(count)[index] if isinstance(index, slice) else _as_array(index)
    except TypeError as error:
        raise ResultError(f"Index {quoted(index)}: {error}.") from error
    if indices.ndim != 1 or indices.dtype.kind not in "biu":
        raise ResultError(
            f"Index of type {type(index).__name__} ({indices.dtype} {indices.shape}): expected an "
            "int, a slice, a boolean mask with one value per instance, or a list of ints. To select "
            "classes, use filter(classes=...)."
        )
    if indices.dtype == np.bool_:
        if len(indices) != count:
            raise ResultError(
                f"Boolean mask of {len(indices)} values for {count} instances: expected one value each."
            )
        indices = np.flatnonzero(indices)
    if not all(-count <= position < count for position in indices.tolist()):
        raise ResultError(f"Indices {indices.tolist()}: expected each in {-count}..{count - 1}.")
    return indices.astype(np.int64)


def _as_array(index: Any) -> np.ndarray:
    """Convert an index to a numpy array; an empty list becomes an empty array of int64."""
    try:
        array = index.detach().cpu().numpy() if isinstance(index, Tensor) else np.asarray(index)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise ResultError(f"Index of type {type(index).__name__}: {error}.") from error
    return array.astype(np.int64) if array.dtype.kind == "f" and array.shape == (0,) else array
