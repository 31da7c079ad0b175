"""Comparison of basic operations on a device with the CPU, and descriptions of the devices.

Results are measured on the device: compute capability and CUDA version say little about CoreX cards.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from solo_infer.ops import packed_masks
from solo_infer.ops.dtype_speed import measure_speeds
from solo_infer.ops.native.library import kernel_library
from solo_infer.runtime.cpu import cpu_name, has_bfloat16_units
from solo_infer.runtime.device import DTYPES, fast_paths, is_corex_card, probe
from solo_infer.runtime.messages import first_line
from solo_infer.runtime.native_library import instruction_sets
from solo_infer.segmenters.auto_dtype import (
    DtypeChoice,
    choice_of_speedup,
    choose_dtype,
    remember,
    speedup_of_bfloat16,
)

SLOW_RATIO = 4.0  # time relative to float32 from which a half dtype is reported as slow
HALF_TOLERANCE = 0.1  # accepted difference of operations in float16 and bfloat16


def describe_devices() -> list[dict[str, Any]]:
    """Return the properties of each device that ``solo-infer doctor`` shows, as JSON-ready values."""
    devices = [_describe_cpu()]
    if torch.cuda.is_available():
        devices += [_describe_cuda(index) for index in range(torch.cuda.device_count())]
    return devices


def _describe_cpu() -> dict[str, Any]:
    return {
        "device": "cpu",
        "name": cpu_name(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "kernels": _kernels(),
        **_describe_dtypes_of_cpu(),
    }


def _kernels() -> str:
    """Return which implementation computes photos, 3x3 convolutions and masks on the CPU."""
    library = kernel_library()
    if library is not None:
        return f"compiled for {library.instructions}"
    if not instruction_sets():
        return "torch (there are none for this CPU)"
    return "torch (not installed or not usable: install solo_infer where there is a C++ compiler)"


def _describe_dtypes_of_cpu() -> dict[str, Any]:
    """Return states and measured rates of the dtypes on the CPU, its features and the recommended dtype."""
    cpu = torch.device("cpu")
    works = {name: probe(cpu, dtype) for name, dtype in DTYPES.items()}
    fast = [dtype for name, dtype in DTYPES.items() if works[name] == "ok" and dtype != torch.float16]
    speeds = measure_speeds(fast)
    if works["float16"] == "ok":  # not with the others, whose measurement would end early
        speeds.update(measure_speeds([torch.float16]))
    for name, dtype in DTYPES.items():
        if dtype in speeds and torch.float32 in speeds:
            ratio = speeds[dtype].seconds / speeds[torch.float32].seconds
            if ratio >= SLOW_RATIO:
                works[name] = f"slow: {ratio:.0f} times the time of float32"
    if has_bfloat16_units() is not False and len(fast) == 2:
        remember(speeds)
        choice = choice_of_speedup(speedup_of_bfloat16(speeds))
    else:
        choice = choose_dtype(cpu)
    rates = {name: speeds[dtype] for name, dtype in DTYPES.items() if dtype in speeds}
    return {
        "works": works,
        "rates": {name: round(speed.convolution, 1) for name, speed in rates.items()},
        "product_rates": {name: round(speed.product, 1) for name, speed in rates.items()},
        **_describe_features(cpu, choice),
    }


def _describe_cuda(index: int) -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(index)
    device = torch.device("cuda", index)
    return {
        "device": str(device),
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "multiprocessors": properties.multi_processor_count,
        "corex": is_corex_card(index),
        "warp_size": getattr(properties, "warp_size", None),
        "works": {name: probe(device, dtype) for name, dtype in DTYPES.items()},
        **_describe_features(device, choose_dtype(device)),
    }


def _describe_features(device: torch.device, choice: DtypeChoice) -> dict[str, Any]:
    """Return the states of the operations and the fast paths of a device."""
    return {
        "operations": probe_operations(device),
        "fast_paths": {**asdict(fast_paths(device)), "dtype": choice.name},
        "dtype_reason": choice.reason,
    }


@dataclass(frozen=True)
class Operation:
    """Operation that is compared between a device and the CPU.

    Attributes:
        run: Function that computes it.
        inputs: Function that makes its inputs on the CPU.
        tolerance: Greatest accepted difference. Defaults to 0, for integer results.
        needed: Whether the library requires the operation on a device.
        dtypes: Dtypes that the inputs are cast to, one after another. Defaults to no cast.
    """

    run: Callable[..., Tensor]
    inputs: Callable[[], tuple[Tensor, ...]]
    tolerance: float = 0.0
    needed: bool = True
    dtypes: tuple[torch.dtype, ...] = ()


def probe_operations(device: torch.device) -> dict[str, str]:
    """Compare a device with the CPU, operation by operation.

    Returns:
        State of each operation by name: "ok", "wrong by 0.12", "fails: ..." with the first line of the
        error, or for float64 also "becomes zeros".
    """
    states = {}
    for name, operation in OPERATIONS.items():
        if not operation.dtypes:
            states[name] = _compare(operation, device, None)
        for dtype in operation.dtypes:
            states[f"{name} {str(dtype).removeprefix('torch.')}"] = _compare(operation, device, dtype)
    return states


def is_needed(name: str) -> bool:
    """Return whether the library requires an operation, by its name in ``probe_operations``."""
    base_name, _, dtype = name.rpartition(" ")
    operation = OPERATIONS.get(name) or OPERATIONS[base_name]
    return operation.needed and dtype not in ("float16", "bfloat16")


def _compare(operation: Operation, device: torch.device, dtype: torch.dtype | None) -> str:
    inputs = operation.inputs()
    try:
        expected = operation.run(*inputs)
        moved = tuple(x.to(device) if dtype is None else x.to(dtype).to(device) for x in inputs)
        output = operation.run(*moved).cpu()
    except RuntimeError as error:
        return f"fails: {first_line(error)}"
    if output.shape != expected.shape:
        return f"wrong: shape {tuple(output.shape)} instead of {tuple(expected.shape)}"
    if output.dtype == torch.float64 and not output.any():
        return "becomes zeros"
    difference = float((output.double() - expected.double()).abs().max())
    is_half = dtype in (torch.float16, torch.bfloat16)
    limit = max(operation.tolerance, HALF_TOLERANCE if is_half else 0.0)
    return "ok" if difference <= limit else f"wrong by {difference:.3g}"


def _noise(*shape: int) -> Tensor:
    generator = torch.Generator("cpu").manual_seed(0)
    return torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu")


def _convolve_channels_last(x: Tensor, weight: Tensor) -> Tensor:
    x, weight = (tensor.contiguous(memory_format=torch.channels_last) for tensor in (x, weight))
    return F.conv2d(x, weight, padding=1)


def _resize(x: Tensor) -> Tensor:
    return F.interpolate(x, size=(23, 9), mode="bilinear", align_corners=False)


def _pack_and_unpack(masks: Tensor) -> Tensor:
    return packed_masks.unpack(packed_masks.pack(masks), masks.shape[-1]).int()


def _intersections(masks: Tensor) -> Tensor:
    """Return the common pixels of each pair of masks: integers that float32 represents exactly."""
    flat = masks.flatten(1).float()
    return flat @ flat.T


def _stable_sort(scores: Tensor) -> Tensor:
    return scores.argsort(descending=True, stable=True)


def _nonzero(masks: Tensor) -> Tensor:
    return torch.stack(torch.nonzero(masks, as_tuple=True))


def _unique(numbers: Tensor) -> Tensor:
    values, indices = numbers.unique(return_inverse=True)
    return torch.cat([values, indices, numbers.unique_consecutive()])


def _deformable_convolution(x: Tensor, weight: Tensor, offsets: Tensor, factors: Tensor) -> Tensor:
    try:
        from torchvision.ops import deform_conv2d
    except ImportError as error:  # the report must not depend on a working torchvision
        raise RuntimeError(f"torchvision cannot be imported: {error}") from error
    return deform_conv2d(x, offsets, weight, padding=(1, 1), mask=factors.sigmoid())


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
    "mask intersections": Operation(_intersections, lambda: (_noise(6, 50, 60) > 0,)),
    "stable sort": Operation(_stable_sort, lambda: ((_noise(3000) * 4).round(),)),
    "top k": Operation(lambda x: x.topk(9).values, lambda: (_noise(500),)),
    "nonzero": Operation(_nonzero, lambda: (_noise(40, 30) > 1,)),
    "unique": Operation(_unique, lambda: ((_noise(500) * 4).long(),)),
    "packed masks": Operation(_pack_and_unpack, lambda: (_noise(4, 5, 13) > 0,)),
    # Needed only by models with deformable convolutions.
    "deformable convolution": Operation(
        _deformable_convolution,
        lambda: (_noise(1, 8, 9, 11), _noise(8, 8, 3, 3) / 9, _noise(1, 18, 9, 11), _noise(1, 9, 9, 11)),
        1e-3,
        needed=False,
        dtypes=_FLOAT32,
    ),
    # Not used on a device; for maintainers who read a report.
    "integer matmul": Operation(
        lambda x: x @ x.T, lambda: ((_noise(9, 30) * 9).round().int(),), needed=False
    ),
    "float64 copy": Operation(lambda x: x, lambda: (_noise(8).double() / 3,), needed=False),
    "float64 matmul": Operation(lambda x: x @ x.T, lambda: (_noise(8, 8).double(),), 1e-9, needed=False),
}
