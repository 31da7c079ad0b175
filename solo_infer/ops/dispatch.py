"""Choice between a PyTorch function and its Triton kernel.

``triton_kernel`` decorates the PyTorch function. A call of the decorated function runs the kernel on devices
that allow Triton and the PyTorch function elsewhere. A kernel that cannot be compiled or launched is logged
once and replaced by the PyTorch function for the rest of the process.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import logging
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, ParamSpec, Protocol, TypeVar, cast

import torch

from solo_infer.errors import SoloInferError
from solo_infer.runtime.device import triton_allowed
from solo_infer.runtime.messages import describe_error

_LOGGER = logging.getLogger(__name__)
_LOCK = threading.Lock()
_thread = threading.local()
_failed: dict[str, str] = {}  # name of a kernel -> reason

P = ParamSpec("P")
R = TypeVar("R")


class DispatchedFunction(Protocol[P, R]):
    """A function with a Triton kernel.

    Attributes:
        reference: The PyTorch function.
    """

    reference: Callable[P, R]

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the kernel or the PyTorch function."""


def triton_kernel(
    name: str, implementation: str, *, supports: Callable[..., bool] | None = None
) -> Callable[[Callable[P, R]], DispatchedFunction[P, R]]:
    """Return a decorator that gives a PyTorch function a Triton kernel.

    The device is the argument ``device`` if the function has one, otherwise the device of the first tensor
    argument. While ``torch.compile`` or ``torch.export`` traces, the PyTorch function runs.

    Args:
        name: Name of the kernel in the log and in ``failures``.
        implementation: "module:function" that launches the kernel, with the parameters of the decorated
            function. The module is imported at the first call that runs the kernel.
        supports: Function of the same arguments that returns whether the kernel can process them. Defaults
            to any arguments.
    """

    def decorate(reference: Callable[P, R]) -> DispatchedFunction[P, R]:
        parameters = list(inspect.signature(reference).parameters)
        device_position = parameters.index("device") if "device" in parameters else None

        @functools.wraps(reference)
        def dispatched(*args: P.args, **kwargs: P.kwargs) -> R:
            if is_compiling() or name in _failed:
                return reference(*args, **kwargs)
            device = _device_of(args, kwargs, device_position)
            if device is None or not triton_allowed(device):
                return reference(*args, **kwargs)
            if supports is not None and not supports(*args, **kwargs):
                return reference(*args, **kwargs)
            # Triton launches on the current device, which may not be the one of the tensors.
            current_device = torch.cuda.device(device) if device.type == "cuda" else nullcontext()
            try:
                with current_device:
                    return cast(R, _load(implementation)(*args, **kwargs))
            except Exception as error:
                if not _is_kernel_failure(error):
                    raise
                _record_failure(name, error)
            return reference(*args, **kwargs)

        function = cast("DispatchedFunction[P, R]", dispatched)
        function.reference = reference
        return function

    return decorate


def failures() -> dict[str, str]:
    """Return the names of the kernels that failed in this process, with the reasons."""
    return dict(_failed)


@contextmanager
def tracing() -> Iterator[None]:
    """Let this thread use operators of torch only, because its operators are recorded."""
    before = getattr(_thread, "is_tracing", False)
    _thread.is_tracing = True
    try:
        yield
    finally:
        _thread.is_tracing = before


def is_compiling() -> bool:
    """Return whether operators are recorded: by ``torch.compile``, ``torch.export`` or within ``tracing()``.

    The tensors of the first two have no values.
    """
    if getattr(_thread, "is_tracing", False):
        return True
    if hasattr(torch.compiler, "is_compiling"):  # torch 2.3 or newer
        return torch.compiler.is_compiling()
    # Importing the compiler takes seconds; what has not been imported is not tracing.
    return "torch._dynamo" in sys.modules and torch._dynamo.is_compiling()


def _device_of(
    args: tuple[Any, ...], kwargs: dict[str, Any], device_position: int | None
) -> torch.device | None:
    if device_position is not None:
        device = args[device_position] if device_position < len(args) else kwargs.get("device")
        return device if isinstance(device, torch.device) else None
    for value in (*args, *kwargs.values()):
        if isinstance(value, torch.Tensor):
            return value.device
    return None


def _load(implementation: str) -> Callable[..., Any]:
    module, _, function = implementation.partition(":")
    return getattr(importlib.import_module(module), function)


def _is_kernel_failure(error: Exception) -> bool:
    """Return whether the compiler or the device failed, in contrast to invalid arguments."""
    if isinstance(error, torch.cuda.OutOfMemoryError | SoloInferError):
        return False
    if isinstance(error, ImportError | OSError | subprocess.SubprocessError | RuntimeError):
        return True
    return any(base.__module__.partition(".")[0] == "triton" for base in type(error).__mro__)


def _record_failure(name: str, error: Exception) -> None:
    reason = describe_error(error)
    with _LOCK:
        if name in _failed:
            return
        _failed[name] = reason
    _LOGGER.warning("The Triton kernel %r failed, its PyTorch implementation is used: %s", name, reason)
