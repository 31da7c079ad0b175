"""Matrices of Winograd's method: polynomials at a few points."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Tensor

# The first ones of these points, of small rounding errors (found by trials), and infinity are used.
_POINTS = (0, 1, -1, 2, -0.5)


@cache
def input_matrix(side: int) -> Tensor:
    """Return the matrix (side, side) that evaluates patches of inputs at as many points."""
    points = _finite_points(side)
    rows = [np.append(np.poly(np.delete(points, index))[::-1], 0.0) for index in range(len(points))]
    return _float32(np.vstack([*rows, np.poly(points)[::-1]]))


@cache
def output_matrix(side: int, tile: int) -> Tensor:
    """Return the matrix (tile, side) that interpolates outputs from products at the points."""
    powers = _finite_points(side) ** np.arange(tile)[:, None]
    return _float32(np.hstack([powers, np.eye(tile)[:, -1:]]))


def weight_matrix(side: int, taps: int) -> Tensor:
    """Return the matrix (side * side, taps * taps) that evaluates filters, scaled for the other matrices."""
    points = _finite_points(side)
    scales = [np.prod(point - np.delete(points, index)) for index, point in enumerate(points)]
    values = points[:, None] ** np.arange(taps) / np.array(scales)[:, None]
    matrix = _float32(np.vstack([values, np.eye(taps)[-1:]]))
    return torch.kron(matrix, matrix)


def _finite_points(side: int) -> np.ndarray:
    return np.array(_POINTS[: side - 1], dtype=np.float64)


def _float32(matrix: np.ndarray) -> Tensor:
    return torch.from_numpy(matrix.astype(np.float32))
