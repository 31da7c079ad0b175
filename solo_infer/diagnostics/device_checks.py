"""Does a device compute what the CPU computes? Tiny operations of all kinds that this library uses, compared.

What a card can do is asked of the card: its compute capability and CUDA version say little on CoreX.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from solo_infer.ops import packed_masks

Inputs = tuple[Tensor, ...]


@dataclass(frozen=True)
class Operation:
    """One kind of operation.

    Attributes:
        run: Computes it.
        inputs: Made on the CPU.
        tolerance: Greatest difference that is rounding; 0 for whole numbers.
        needed: Whether the library can do nothing on a device without it.
        dtypes: What its inputs are cast to, one after the other; they stay as they are if not given.
    """

    run: Callable[..., Tensor]
    inputs: Callable[[], Inputs]
    tolerance: float = 0.0
    needed: bool = True
    dtypes: tuple[torch.dtype, ...] = ()


def probe_operations(device: torch.device) -> dict[str, str]:
    """Compare a device with the CPU, operation by operation.

    Returns:
        By the name of the operation, "ok", "wrong by 0.12", "fails: ..." with the first line of the error, or
        for float64 also "becomes zeros".
    """
    states = {}
    for name, operation in OPERATIONS.items():
        if not operation.dtypes:
            states[name] = _compare(operation, device, None)
        for dtype in operation.dtypes:
            states[f"{name} {str(dtype).removeprefix('torch.')}"] = _compare(operation, device, dtype)
    return states


def is_needed(name: str) -> bool:
    """Return whether the library needs an operation, by its name in ``probe_operations``."""
    kind, _, dtype = name.rpartition(" ")
    operation = OPERATIONS.get(name) or OPERATIONS[kind]
    return operation.needed and dtype not in ("float16", "bfloat16")


def _compare(operation: Operation, device: torch.device, dtype: torch.dtype | None) -> str:
    inputs = operation.inputs()
    try:
        expected = operation.run(*inputs)
        moved = tuple(part.to(device) if dtype is None else part.to(dtype).to(device) for part in inputs)
        found = operation.run(*moved).cpu()
    except RuntimeError as error:
        return f"fails: {next(iter(str(error).splitlines()), type(error).__name__)}"
    if found.shape != expected.shape:
        return f"wrong: shape {tuple(found.shape)} instead of {tuple(expected.shape)}"
    if found.dtype == torch.float64 and not found.any():
        return "becomes zeros"
    difference = float((found.double() - expected.double()).abs().max())
    coarse = dtype in (torch.float16, torch.bfloat16)
    limit = max(operation.tolerance, 0.1 if coarse else 0.0)
    return "ok" if difference <= limit else f"wrong by {difference:.3g}"


def _noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def _convolve_channels_last(x: Tensor, weight: Tensor) -> Tensor:
    x, weight = (part.contiguous(memory_format=torch.channels_last) for part in (x, weight))
    return F.conv2d(x, weight, padding=1)


def _resize(x: Tensor) -> Tensor:
    return F.interpolate(x, size=(23, 9), mode="bilinear", align_corners=False)


def _bits(masks: Tensor) -> Tensor:
    return packed_masks.unpack(packed_masks.pack(masks), masks.shape[-1]).int()


def _counts(masks: Tensor) -> Tensor:
    """Common pixels of masks: whole numbers that float32 holds exactly."""
    flat = masks.flatten(1).float()
    return flat @ flat.T


def _stable_order(scores: Tensor) -> Tensor:
    return scores.argsort(descending=True, stable=True)


def _positions(masks: Tensor) -> Tensor:
    return torch.stack(torch.nonzero(masks, as_tuple=True))


def _distinct(numbers: Tensor) -> Tensor:
    values, places = numbers.unique(return_inverse=True)
    return torch.cat([values, places, numbers.unique_consecutive()])


_ALL = (torch.float32, torch.float16, torch.bfloat16)
_FLOAT32 = (torch.float32,)

OPERATIONS = {
    # TF32 may round to 10 bits.
    "convolution": Operation(
        lambda x, w: F.conv2d(x, w, padding=1),
        lambda: (_noise(1, 32, 16, 16), _noise(32, 32, 3, 3) / 17),
        0.01,
        dtypes=_ALL,
    ),
    "convolution, channels last": Operation(
        _convolve_channels_last,
        lambda: (_noise(1, 32, 16, 16), _noise(32, 32, 3, 3) / 17),
        0.01,
        dtypes=_ALL,
    ),
    "group norm": Operation(lambda x: F.group_norm(x, 8), lambda: (_noise(2, 32, 9, 7),), 1e-4, dtypes=_ALL),
    "bilinear resize": Operation(_resize, lambda: (_noise(1, 4, 11, 18),), 1e-4, dtypes=_ALL),
    "sigmoid": Operation(torch.sigmoid, lambda: (_noise(99) * 9,), 1e-5, dtypes=_FLOAT32),
    "mask counts": Operation(_counts, lambda: (_noise(6, 50, 60) > 0,)),
    "stable order": Operation(_stable_order, lambda: ((_noise(3000) * 4).round(),)),
    "top k": Operation(lambda x: x.topk(9).values, lambda: (_noise(500),)),
    "positions": Operation(_positions, lambda: (_noise(40, 30) > 1,)),
    "distinct": Operation(_distinct, lambda: ((_noise(500) * 4).long(),)),
    "bits": Operation(_bits, lambda: (_noise(4, 5, 13) > 0,)),
    # Not used on a device, but worth to know for whoever looks at a report from one.
    "integer matmul": Operation(
        lambda x: x @ x.T, lambda: ((_noise(9, 30) * 9).round().int(),), needed=False
    ),
    "float64 copy": Operation(lambda x: x, lambda: (_noise(8).double() / 3,), needed=False),
    "float64 matmul": Operation(lambda x: x @ x.T, lambda: (_noise(8, 8).double(),), 1e-9, needed=False),
}
