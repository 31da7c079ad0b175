"""What this machine's devices can do; the only place that asks."""

from __future__ import annotations

import functools
import importlib.util
import platform
import time
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from solo_infer.errors import DeviceError

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
SLOW_RATIO = 4.0  # of times, from which a half dtype is called slow


def resolve_device(device: str | torch.device | None = None) -> torch.device:
    """Return a usable device: the one asked for, or CUDA where there is one, else the CPU.

    Raises:
        DeviceError: The device is unknown or not available here; the message says why.
    """
    if device is None or device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise DeviceError(f"device={device!r}: expected 'auto', 'cpu', 'cuda' or 'cuda:N'.") from error
    if found.type == "meta":
        raise DeviceError("device='meta' holds no numbers: expected 'auto', 'cpu', 'cuda' or 'cuda:N'.")
    if found.type == "cuda":
        _require_cuda(found)
    try:
        torch.zeros(1, device=found)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise DeviceError(f"device={str(device)!r} does not work here: {_first_line(error)}") from error
    return found


def _require_cuda(device: torch.device) -> None:
    if not torch.cuda.is_available():
        raise DeviceError(f"device='{device}' is not available: {cuda_problem()}. Use device='cpu'.")
    count = torch.cuda.device_count()
    if device.index is not None and device.index >= count:
        raise DeviceError(f"device='{device}': this machine has {count} CUDA device(s), cuda:0 first.")


def resolve_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """Return a torch dtype from itself or its name.

    Raises:
        DeviceError: It is none of float32, float16 and bfloat16.
    """
    found = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if found is None or found not in DTYPES.values():
        raise DeviceError(f"dtype={dtype!r}: expected one of {', '.join(DTYPES)}.")
    return found


def cuda_problem() -> str:
    """Say in a few words why CUDA cannot be used, or "" if it can."""
    if torch.cuda.is_available():
        return ""
    if torch.version.cuda is None and getattr(torch.version, "hip", None) is None and not is_corex():
        return f"torch {torch.__version__} is a CPU-only build"
    if torch.cuda.device_count() > 0:
        return f"torch sees a card but cannot use it: driver and SDK versions differ ({_cuda_refusal()})"
    return f"torch {torch.__version__} finds no card or no driver ({_cuda_refusal()})"


def _cuda_refusal() -> str:
    """Return torch's own words for why it cannot start CUDA."""
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        return _first_line(error)
    return "torch gives no reason"


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def is_corex() -> bool:
    """Return whether this is Iluvatar's build of torch (CoreX), which shows its cards as CUDA."""
    if getattr(torch, "corex", False) or "+corex" in torch.__version__:
        return True
    try:
        return "+corex" in metadata.version("torch")
    except metadata.PackageNotFoundError:
        return False


@dataclass(frozen=True)
class FastPaths:
    """Which fast paths may be taken on a device; the plain PyTorch path works everywhere.

    Attributes:
        triton: Kernels written in Triton.
        graphs: CUDA graphs.
        compile: ``torch.compile``.
        dtype: What the network computes in fastest there, of what is known to work.
    """

    triton: bool
    graphs: bool
    compile: bool
    dtype: torch.dtype


# What has been reported of Iluvatar's BI-V100: no Triton, no graphs, no compiler, bfloat16 unproven,
# float16 now and then slower than float32.
NO_FAST_PATHS = FastPaths(triton=False, graphs=False, compile=False, dtype=torch.float32)


def fast_paths(device: torch.device) -> FastPaths:
    """Return what may be used on a device. It is looked up once; ask as often as you like.

    Cards are told by their maker, never by their compute capability: CoreX reports (7, 0) for cards that
    have little of what a V100 has.
    """
    index = torch.cuda.current_device() if device.type == "cuda" and device.index is None else device.index
    return _fast_paths(device.type, index)


def triton_allowed(device: torch.device) -> bool:
    """Return whether Triton kernels may run on a device."""
    return fast_paths(device).triton


def graphs_allowed(device: torch.device) -> bool:
    """Return whether CUDA graphs may be captured on a device."""
    return fast_paths(device).graphs


def compile_allowed(device: torch.device) -> bool:
    """Return whether ``torch.compile`` may be used on a device."""
    return fast_paths(device).compile


def require_compile(device: torch.device) -> None:
    """Refuse to compile for a device that cannot run what ``torch.compile`` makes.

    Raises:
        DeviceError: ``compile_allowed`` says so.
    """
    if compile_allowed(device):
        return
    if device.type == "cuda" and not is_corex_card(device.index):
        why = "it needs Triton (pip install triton) and a card of compute capability 7.0 or newer"
    else:
        why = "it is known to work on CPUs and on NVIDIA cards only"
    raise DeviceError(f"torch.compile on {device}: {why}. Use the model as it is, without compile().")


def preferred_dtype(device: torch.device) -> torch.dtype:
    """Return the dtype to start with on a device: the fastest that is known to work on all of its kind."""
    return fast_paths(device).dtype


@functools.cache
def _fast_paths(kind: str, index: int | None) -> FastPaths:
    if kind == "cpu":
        return FastPaths(triton=False, graphs=False, compile=not is_corex(), dtype=torch.float32)
    if kind != "cuda" or torch.version.cuda is None or is_corex_card(index):
        return NO_FAST_PATHS
    # Tensor cores, and what Triton can make code for.
    modern = torch.cuda.get_device_capability(index) >= (7, 0)
    triton = modern and importlib.util.find_spec("triton") is not None
    dtype = torch.float16 if modern else torch.float32
    return FastPaths(triton=triton, graphs=True, compile=triton, dtype=dtype)


def is_corex_card(index: int | None = None) -> bool:
    """Return whether a CUDA device, the current one if not given, is an Iluvatar card."""
    return is_corex() or "iluvatar" in torch.cuda.get_device_name(index).lower()


def describe_devices() -> list[dict[str, Any]]:
    """Return what ``solo-infer doctor`` shows of each device, as JSON-ready values."""
    devices = [_describe_cpu()]
    if torch.cuda.is_available():
        devices += [_describe_cuda(index) for index in range(torch.cuda.device_count())]
    return devices


def _describe_cpu() -> dict[str, Any]:
    capability = getattr(torch.backends.cpu, "get_cpu_capability", lambda: "unknown")()
    return {
        "device": "cpu",
        "name": _cpu_name(),
        "capability": capability,
        "threads": torch.get_num_threads(),
        "works": {name: probe_cpu(dtype) for name, dtype in DTYPES.items()},
        **_describe_abilities(torch.device("cpu")),
    }


def _cpu_name() -> str:
    """Return the processor's name as Linux tells it, else its kind."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    facts = (line.partition(":") for line in lines)
    names = [value.strip() for key, _, value in facts if key.strip() == "model name"]
    return names[0] if names else platform.processor() or platform.machine()


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
        **_describe_abilities(device),
    }


def _describe_abilities(device: torch.device) -> dict[str, Any]:
    """Return what a device computes rightly, and which fast paths it may take."""
    from solo_infer.diagnostics.device_checks import (
        probe_operations,  # which uses the operations that ask this module
    )

    paths = asdict(fast_paths(device))
    return {
        "operations": probe_operations(device),
        "fast_paths": {**paths, "dtype": str(paths["dtype"]).removeprefix("torch.")},
    }


def require_dtype(device: torch.device, dtype: torch.dtype) -> None:
    """Refuse a half dtype that this version of torch cannot compute in on a device.

    Raises:
        DeviceError: A convolution fails (float16 on the CPU before torch 2.2, for one).
    """
    if dtype == torch.float32:
        return
    state = probe(device, dtype)
    if state.startswith("fails"):
        raise DeviceError(f"{dtype} on {device} {state}. Use dtype float32 there.")


def probe(device: torch.device, dtype: torch.dtype) -> str:
    """Run a small convolution and compare it with float32 on the CPU: "ok", or what is wrong."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 32, 16, 16, generator=generator)
    weight = torch.randn(32, 32, 3, 3, generator=generator) / 17
    expected = torch.nn.functional.conv2d(x, weight, padding=1)
    try:
        found = torch.nn.functional.conv2d(x.to(device, dtype), weight.to(device, dtype), padding=1)
        difference = float((found.float().cpu() - expected).abs().max())
    except RuntimeError as error:
        return f"fails: {_first_line(error)}"
    limit = 0.1 if dtype != torch.float32 else 0.01  # TF32 may round to 10 bits
    return "ok" if difference < limit else f"wrong by {difference:.3g}"


def probe_cpu(dtype: torch.dtype) -> str:
    """Return what ``probe`` does, or how much slower than float32 a dtype without instructions is."""
    state = probe(torch.device("cpu"), dtype)
    if state != "ok" or dtype == torch.float32:
        return state
    ratio = _convolution_seconds(dtype) / _convolution_seconds(torch.float32)
    return "ok" if ratio < SLOW_RATIO else f"slow: {ratio:.0f} times the time of float32"


def _convolution_seconds(dtype: torch.dtype) -> float:
    x, weight = torch.ones(1, 256, 16, 16, dtype=dtype), torch.ones(256, 256, 3, 3, dtype=dtype)
    best = float("inf")
    for _ in range(2):  # the first one also prepares the kernel
        start = time.perf_counter()
        torch.nn.functional.conv2d(x, weight, padding=1)
        best = min(best, time.perf_counter() - start)
    return best
