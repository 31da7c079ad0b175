"""Speed of the dtypes on the CPU, measured on operations that take most of the time of the networks."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from solo_infer.ops import winograd
from solo_infer.runtime.neutral_state import neutral_state

_CHANNELS, _HEIGHT, _WIDTH = 256, 40, 56  # about the level of stride 16
_CONVOLUTION_FLOPS = 2 * _HEIGHT * _WIDTH * _CHANNELS * _CHANNELS * 9
_PRODUCT_FLOPS = _CONVOLUTION_FLOPS * 4 // 9
_ROUNDS = 5
_BUDGET_SECONDS = 0.7  # no further round starts after this time
_STEADY = 1.25  # ratio of a typical to the shortest time up to which a measurement is steady


@dataclass(frozen=True)
class DtypeSpeed:
    """Speed of one dtype.

    Attributes:
        convolution: GFLOP/s of a 3x3 convolution as the networks compute it, counted as a direct one.
        product: GFLOP/s of a matrix product, which is a 1x1 convolution.
        is_steady: Whether repeated runs took about the same time.
    """

    convolution: float
    product: float
    is_steady: bool = True

    @property
    def seconds(self) -> float:
        """Time of both operations, which take about the same part of the time of a network."""
        return (_CONVOLUTION_FLOPS / self.convolution + _PRODUCT_FLOPS / self.product) / 1e9


@neutral_state()
def measure_speeds(dtypes: Sequence[torch.dtype]) -> dict[torch.dtype, DtypeSpeed]:
    """Measure dtypes on the CPU in turn, with the threads of the calling thread, in about a second.

    Args:
        dtypes: Dtypes that convolutions support.
    """
    operations = {dtype: _operations(dtype) for dtype in dtypes}
    times: dict[torch.dtype, list[tuple[float, float]]] = {dtype: [] for dtype in dtypes}
    start = time.perf_counter()
    # The first round also prepares the kernels. It counts only where there is no time for another one.
    for _ in range(_ROUNDS + 1):
        for dtype, (convolve, multiply) in operations.items():
            times[dtype].append((_seconds(convolve), _seconds(multiply)))
        if time.perf_counter() - start > _BUDGET_SECONDS:
            break
    return {dtype: _speed(rounds[1:] or rounds) for dtype, rounds in times.items()}


def _operations(dtype: torch.dtype) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
    x, weight = (
        torch.ones(shape, dtype=dtype, device="cpu").contiguous(memory_format=torch.channels_last)
        for shape in ((1, _CHANNELS, _HEIGHT, _WIDTH), (_CHANNELS, _CHANNELS, 3, 3))
    )
    wide = torch.ones((4 * _CHANNELS, _CHANNELS, 1, 1), dtype=dtype, device="cpu")
    transformed = winograd.transform_weight(weight)

    def convolve() -> Tensor:
        if winograd.is_faster(dtype):
            return winograd.convolve([x], transformed)[0]
        return F.conv2d(x, weight, padding=1)

    return convolve, lambda: F.conv2d(x, wide)  # as the networks compute 1x1 convolutions


def _seconds(operation: Callable[[], Tensor]) -> float:
    start = time.perf_counter()
    operation()
    return time.perf_counter() - start


def _speed(rounds: Sequence[tuple[float, float]]) -> DtypeSpeed:
    convolution, product = map(min, zip(*rounds, strict=True))
    typical = statistics.median(map(sum, rounds))
    return DtypeSpeed(
        convolution=_CONVOLUTION_FLOPS / convolution / 1e9,
        product=_PRODUCT_FLOPS / product / 1e9,
        is_steady=len(rounds) > 1 and typical <= _STEADY * (convolution + product),
    )
