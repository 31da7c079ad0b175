"""Triton kernel or torch twin: the one place that chooses.

A kernel runs where ``device.triton_allowed`` says so. One that cannot be compiled or launched is left alone
from then on, which is logged once; its torch twin computes the same.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import nullcontext
from typing import TypeVar

import torch

from solo_infer.runtime.device import triton_allowed

_LOGGER = logging.getLogger(__name__)
_LOCK = threading.Lock()
_failed: dict[str, str] = {}  # name of a kernel -> why

_Found = TypeVar("_Found")


def run(name: str, device: torch.device, fused: Callable[[], _Found], plain: Callable[[], _Found]) -> _Found:
    """Return what a fused kernel gives, or its torch twin where it cannot run.

    Args:
        name: Of the kernel, for the log and ``failures``.
        device: Where its inputs lie.
        fused: Imports and launches the kernel.
        plain: The twin.
    """
    if name in _failed or not triton_allowed(device):
        return plain()
    # Triton launches on the current device, wherever its tensors lie.
    here = torch.cuda.device(device) if device.type == "cuda" else nullcontext()
    try:
        with here:
            return fused()
    except torch.cuda.OutOfMemoryError:
        raise
    except Exception as error:  # compilers, linkers and drivers raise almost anything
        _give_up(name, error)
        return plain()


def failures() -> dict[str, str]:
    """Return the kernels that failed in this process, and why."""
    return dict(_failed)


def _give_up(name: str, error: Exception) -> None:
    reason = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
    with _LOCK:
        if name in _failed:
            return
        _failed[name] = reason
    _LOGGER.warning("The Triton kernel %r does not run here, PyTorch does its work: %s", name, reason)
