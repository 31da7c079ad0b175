"""State of torch and of the process that training needs, without a trace in the process of the caller."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any

import torch

_PARALLEL_ELEMENTS = 1 << 20  # enough for torch to use all of its threads


@contextlib.contextmanager
def neutral_torch_state() -> Iterator[None]:
    """Use torch's initial settings: gradients, no autocast, float32 and the CPU as defaults.

    At the end the settings of the caller are restored.
    """
    dtype = torch.get_default_dtype()
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(torch.autocast("cpu", enabled=False))
        if torch.is_autocast_enabled():  # without CUDA, its context warns
            stack.enter_context(torch.autocast("cuda", enabled=False))
        if _has_default_device():
            stack.enter_context(torch.device("cpu"))
        stack.callback(torch.set_default_dtype, dtype)
        torch.set_default_dtype(torch.float32)
        yield


def _has_default_device() -> bool:
    """Return whether tensors are created elsewhere than on the CPU by default."""
    try:
        return torch.empty(0).device.type != "cpu"
    except (RuntimeError, AssertionError):  # a default device that this machine lacks
        return True


@contextlib.contextmanager
def flushed_denormals() -> Iterator[None]:
    """Treat denormal numbers as zero in this thread, and restore the setting of the caller at the end.

    Vanishing gradients are full of denormal numbers, which slow CPUs down many times.
    """
    # The threads of torch start with the setting of the thread that creates them, and keep it.
    torch.zeros(_PARALLEL_ELEMENTS, dtype=torch.float32, device="cpu").add_(1.0)
    smallest = torch.full((1,), 1e-40, dtype=torch.float32, device="cpu")
    is_flushed = float((smallest * 1.0).count_nonzero()) == 0
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(is_flushed)


@contextlib.contextmanager
def deferred_interrupt() -> Iterator[None]:
    """Delay Ctrl-C until the end of the block; a second one interrupts at once.

    Other threads than the main one never receive it.
    """
    previous = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(previous):
        yield
        return
    received: list[tuple[Any, ...]] = []

    def handle(*arguments: Any) -> None:
        if received:
            previous(*arguments)
        received.append(arguments)

    signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
        if len(received) == 1:
            previous(*received[0])


def is_out_of_memory(error: Exception) -> bool:
    """Return whether torch or Python could not allocate memory."""
    return isinstance(error, MemoryError) or "allocate memory" in str(error) or "out of memory" in str(error)
