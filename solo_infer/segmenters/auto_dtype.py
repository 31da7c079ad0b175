"""The dtype "auto": bfloat16 or float16 where it makes networks faster, float32 elsewhere."""

from __future__ import annotations

import json
import logging
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from solo_infer.ops.dtype_speed import DtypeSpeed, measure_speeds
from solo_infer.ops.native.library import kernel_library
from solo_infer.runtime import environment
from solo_infer.runtime.atomic_files import write_text
from solo_infer.runtime.cpu import cpu_name, has_bfloat16_units
from solo_infer.runtime.device import DTYPES, fast_paths, is_corex_card, probe, resolve_dtype

AUTO = "auto"
MIN_SPEEDUP = 1.3  # speed relative to float32 from which bfloat16 pays on the CPU
_CACHE_NAME = "dtype_speed.json"
_MAX_CACHE_BYTES, _MAX_CACHE_ENTRIES = 1 << 16, 32
_LOGGER = logging.getLogger(__name__)
_LOCK = threading.Lock()
_measured: dict[str, float] = {}  # speedups of bfloat16 that this process has measured or read


@dataclass(frozen=True)
class DtypeChoice:
    """Dtype of the networks on a device.

    Attributes:
        dtype: float32, float16 or bfloat16.
        reason: Clause that gives the reason.
    """

    dtype: torch.dtype
    reason: str

    @property
    def name(self) -> str:
        """Name of the dtype, e.g. "bfloat16"."""
        return str(self.dtype).removeprefix("torch.")

    def __str__(self) -> str:
        return f"{self.name} ({self.reason})"


def resolve_network_dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    """Return the dtype of a network on a device, from a dtype, its name or "auto".

    Raises:
        DeviceError: It is not float32, float16, bfloat16 or "auto".
    """
    if not (isinstance(dtype, str) and dtype == AUTO):
        return resolve_dtype(dtype, (*DTYPES, AUTO))
    choice = choose_dtype(device)
    _LOGGER.info('dtype="auto" on %s: %s.', device, choice)
    return choice.dtype


def choose_dtype(device: torch.device) -> DtypeChoice:
    """Return the dtype that "auto" stands for on a device.

    On the CPU it is bfloat16 if the processor has units for it and a measurement of less than a second, which
    is cached, shows that networks are faster. On CUDA it is float16 or bfloat16, if the card has units for it
    and computes a convolution correctly; float32 on Iluvatar cards and other devices.
    """
    if device.type == "cuda":
        return _choose_on_cuda(device)
    if device.type != "cpu":
        return DtypeChoice(torch.float32, f"other dtypes are not tested on {device.type}")
    if has_bfloat16_units() is False:
        return DtypeChoice(torch.float32, "the processor has no bfloat16 units")
    if (state := probe(device, torch.bfloat16)) != "ok":
        return DtypeChoice(torch.float32, f"bfloat16 {state}")
    return choice_of_speedup(_cached_speedup())


def choice_of_speedup(speedup: float) -> DtypeChoice:
    """Return the choice on a CPU with bfloat16 units, by the speed of bfloat16 relative to float32."""
    dtype = torch.bfloat16 if speedup >= MIN_SPEEDUP else torch.float32
    return DtypeChoice(dtype, f"measured: bfloat16 is {speedup:.1f} times as fast as float32")


def speedup_of_bfloat16(speeds: dict[torch.dtype, DtypeSpeed]) -> float:
    """Return the speed of bfloat16 relative to float32."""
    return speeds[torch.float32].seconds / speeds[torch.bfloat16].seconds


def remember(speeds: dict[torch.dtype, DtypeSpeed]) -> None:
    """Cache measured speeds of float32 and bfloat16 for this processor, version of torch and thread count.

    A measurement that other processes have disturbed is kept for this process only.
    """
    key, speedup = _cache_key(), speedup_of_bfloat16(speeds)
    _measured[key] = speedup
    if not all(speeds[dtype].is_steady for dtype in (torch.float32, torch.bfloat16)):
        return
    entries = {name: value for name, value in _read_cache().items() if name != key}
    kept = list(entries.items())[-_MAX_CACHE_ENTRIES + 1 :]
    try:
        path = _cache_path()
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps({**dict(kept), key: round(speedup, 3)}, indent=2) + "\n")
    except OSError as error:
        _LOGGER.info("The measured speed of the dtypes is not cached: %s", error)


def _choose_on_cuda(device: torch.device) -> DtypeChoice:
    index = torch.cuda.current_device() if device.index is None else device.index
    if is_corex_card(index):
        return DtypeChoice(torch.float32, "other dtypes are not measured on Iluvatar cards")
    if fast_paths(device).dtype == torch.float32:
        return DtypeChoice(torch.float32, "the card has no units for other dtypes")
    candidates = [torch.float16]
    if torch.cuda.get_device_capability(index) >= (8, 0):
        candidates.append(torch.bfloat16)
    for dtype in candidates:
        if probe(device, dtype) == "ok":
            return DtypeChoice(dtype, "the card has units for it")
    return DtypeChoice(torch.float32, "other dtypes do not work on this device")


def _cached_speedup() -> float:
    """Return the speedup of bfloat16 from the process, the cache file or a measurement."""
    with _LOCK:  # concurrent measurements would disturb each other
        key = _cache_key()
        if key not in _measured:
            cached = _read_cache().get(key)
            if cached is None:
                remember(measure_speeds((torch.float32, torch.bfloat16)))
            else:
                _measured[key] = cached
        return _measured[key]


def _cache_key() -> str:
    library = kernel_library()
    kernels = library.instructions if library is not None else "no"
    threads = torch.get_num_threads()
    return f"{cpu_name()}, torch {torch.__version__}, {kernels} kernels, {threads} threads"


def _cache_path() -> Path:
    return environment.cache_home() / _CACHE_NAME


def _read_cache() -> dict[str, float]:
    """Return the valid entries of the cache file, none if it is missing or was not written by this module."""
    try:
        with _cache_path().open("rb") as file:
            content: Any = json.loads(file.read(_MAX_CACHE_BYTES))
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(content, dict):
        return {}
    return {name: value for name, value in content.items() if _is_speedup(value)}


def _is_speedup(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0.0 < value < 1e3
