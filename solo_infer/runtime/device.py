"""Devices: selection, supported dtypes and fast paths."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import metadata

import torch

from solo_infer.errors import DeviceError
from solo_infer.runtime.messages import first_line, quoted

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_EXPECTED_DEVICE = "expected 'auto', 'cpu', 'cuda' or 'cuda:N'"


def resolve_device(device: str | torch.device | None = None) -> torch.device:
    """Return a usable device.

    Args:
        device: "auto", "cpu", "cuda", "cuda:1", ... Defaults to "auto": CUDA if available, else the CPU.

    Raises:
        DeviceError: The device is unknown or not available; the message gives the reason.
    """
    if device is None or (isinstance(device, str) and device == "auto"):
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except (RuntimeError, TypeError, ValueError, OverflowError) as error:
        raise DeviceError(f"device={quoted(device)}: {_EXPECTED_DEVICE}.") from error
    if resolved.type == "meta":
        raise DeviceError(f"device='meta' holds no values: {_EXPECTED_DEVICE}.")
    if resolved.type == "cuda":
        _require_cuda(resolved)
    try:
        torch.zeros(1, dtype=torch.float32, device=resolved)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise DeviceError(f"device={str(device)!r} does not work here: {first_line(error)}") from error
    return resolved


def _require_cuda(device: torch.device) -> None:
    if not torch.cuda.is_available():
        raise DeviceError(f"device='{device}' is not available: {cuda_problem()}. Use device='cpu'.")
    count = torch.cuda.device_count()
    if device.index is not None and device.index >= count:
        raise DeviceError(
            f"device='{device}': this machine has {count} CUDA device(s); their indices start at 0."
        )


@contextlib.contextmanager
def full_float32() -> Iterator[None]:
    """Compute float32 on CUDA without TF32, which rounds the operands of convolutions to 10 bits."""
    cudnn, cublas = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, cublas.allow_tf32
    try:
        cudnn.allow_tf32 = cublas.allow_tf32 = False
        yield
    finally:
        cudnn.allow_tf32, cublas.allow_tf32 = before


def resolve_dtype(dtype: str | torch.dtype, expected: Iterable[str] = tuple(DTYPES)) -> torch.dtype:
    """Return a torch dtype from a dtype or its name.

    Args:
        dtype: float32, float16 or bfloat16.
        expected: Names that the error message lists.

    Raises:
        DeviceError: It is not float32, float16 or bfloat16.
    """
    resolved = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if not isinstance(resolved, torch.dtype) or resolved not in DTYPES.values():
        raise DeviceError(f"dtype={quoted(dtype)}: expected one of {', '.join(expected)}.")
    return resolved


def cuda_problem() -> str:
    """Return the reason why CUDA cannot be used, "" if it can."""
    if torch.cuda.is_available():
        return ""
    if torch.version.cuda is None and getattr(torch.version, "hip", None) is None and not is_corex():
        return f"torch {torch.__version__} is a CPU-only build"
    if torch.cuda.device_count() > 0:
        return f"torch detects a device but cannot use it: driver and SDK versions differ ({_cuda_error()})"
    return f"torch {torch.__version__} finds no CUDA device or no driver ({_cuda_error()})"


def _cuda_error() -> str:
    """Return the error message of torch when it initializes CUDA."""
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        return first_line(error)
    return "torch gives no reason"


def is_corex() -> bool:
    """Return whether torch is Iluvatar's build (CoreX), whose devices appear as CUDA."""
    if getattr(torch, "corex", False) or "+corex" in torch.__version__:
        return True
    try:
        return "+corex" in metadata.version("torch")
    except metadata.PackageNotFoundError:
        return False


def is_corex_card(index: int | None = None) -> bool:
    """Return whether a CUDA device is an Iluvatar card.

    Args:
        index: Index of the device. Defaults to the current one.
    """
    return is_corex() or "iluvatar" in torch.cuda.get_device_name(index).lower()


def is_nvidia_card(index: int | None = None) -> bool:
    """Return whether a CUDA device is an NVIDIA card: neither an Iluvatar nor an AMD one.

    Args:
        index: Index of the device. Defaults to the current one.
    """
    return torch.version.cuda is not None and not is_corex_card(index)


@dataclass(frozen=True)
class FastPaths:
    """Fast paths that a device supports. Plain PyTorch works on every device.

    Attributes:
        triton: Whether Triton kernels may run.
        graphs: Whether CUDA graphs may be captured.
        compile: Whether ``torch.compile`` may be used.
        dtype: Recommended dtype of the network.
    """

    triton: bool
    graphs: bool
    compile: bool
    dtype: torch.dtype


# From public reports on Iluvatar's BI-V100: neither Triton, CUDA graphs nor the compiler work, bfloat16 is
# untested, and float16 can be slower than float32.
NO_FAST_PATHS = FastPaths(triton=False, graphs=False, compile=False, dtype=torch.float32)


def fast_paths(device: torch.device) -> FastPaths:
    """Return the fast paths of a device. The result is cached.

    Iluvatar cards are identified by vendor, not by compute capability: CoreX reports (7, 0) for cards that
    lack most features of a V100.
    """
    index = torch.cuda.current_device() if device.type == "cuda" and device.index is None else device.index
    return _fast_paths(device.type, index)


@functools.cache
def _fast_paths(device_type: str, index: int | None) -> FastPaths:
    if device_type == "cpu":
        return FastPaths(triton=False, graphs=False, compile=not is_corex(), dtype=torch.float32)
    if device_type != "cuda" or not is_nvidia_card(index):
        return NO_FAST_PATHS
    # Tensor cores and Triton's code generator need compute capability 7.0.
    is_modern = torch.cuda.get_device_capability(index) >= (7, 0)
    triton = is_modern and _has_triton()
    dtype = torch.float16 if is_modern else torch.float32
    return FastPaths(triton=triton, graphs=True, compile=triton, dtype=dtype)


def _has_triton() -> bool:
    try:
        return importlib.util.find_spec("triton") is not None
    except (ImportError, ValueError):  # a module without a specification
        return False


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
    """Check that ``torch.compile`` may be used on a device.

    Raises:
        DeviceError: ``compile_allowed`` returns False.
    """
    if compile_allowed(device):
        return
    if device.type == "cuda" and not is_corex_card(device.index):
        reason = "it needs Triton (pip install triton) and a card of compute capability 7.0 or newer"
    else:
        reason = "it is supported on CPUs and on NVIDIA cards only"
    raise DeviceError(f"torch.compile on {device}: {reason}. Use the model as it is, without compile().")


def require_dtype(device: torch.device, dtype: torch.dtype) -> None:
    """Check that torch can run convolutions in a dtype on a device.

    Raises:
        DeviceError: A convolution fails, such as float16 on the CPU before torch 2.2.
    """
    if dtype == torch.float32:
        return
    state = probe(device, dtype)
    if state.startswith("fails"):
        raise DeviceError(f"{dtype} on {device} {state}. Use dtype float32 on this device.")


def probe(device: torch.device, dtype: torch.dtype) -> str:
    """Compare a small convolution with float32 on the CPU.

    Returns:
        "ok", "wrong by 0.12", or "fails: ..." with the first line of the error.
    """
    generator = torch.Generator("cpu").manual_seed(0)
    x, weight = (
        torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu")
        for shape in ((1, 32, 16, 16), (32, 32, 3, 3))
    )
    weight = weight / 17
    expected = torch.nn.functional.conv2d(x, weight, padding=1)
    try:
        output = torch.nn.functional.conv2d(x.to(device, dtype), weight.to(device, dtype), padding=1)
        difference = float((output.float().cpu() - expected).abs().max())
    except RuntimeError as error:
        return f"fails: {first_line(error)}"
    limit = 0.1 if dtype != torch.float32 else 0.01  # TF32 may round to 10 bits
    return "ok" if difference < limit else f"wrong by {difference:.3g}"
