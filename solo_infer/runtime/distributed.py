"""The processes that torchrun started, one for each card: who they are, and how they talk to each other."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import distributed

from solo_infer.errors import DeviceError
from solo_infer.runtime.device import resolve_device


@contextmanager
def joined(device: str | torch.device | None) -> Iterator[torch.device]:
    """Join the processes that torchrun started, if it did, and yield this one's device.

    Args:
        device: As in ``SOLO.from_pretrained``; with several processes any card is each one's own.

    Raises:
        DeviceError: The device is not available, or there are fewer cards than processes.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield resolve_device(device)
        return
    where = _own_device(device)
    if where.type == "cuda":
        torch.cuda.set_device(where)
    distributed.init_process_group(backend(where))
    try:
        yield where
    finally:
        distributed.destroy_process_group()


def backend(device: torch.device) -> str:
    """Return what carries tensors between processes: "nccl" for cards (CoreX has its own), else "gloo"."""
    return "nccl" if device.type == "cuda" and distributed.is_nccl_available() else "gloo"


def _own_device(device: str | torch.device | None) -> torch.device:
    """Return this process's device, without touching another one's card."""
    name = str(device or "auto")
    if name.partition(":")[0] in ("auto", "cuda"):
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        rank = int(os.environ.get("LOCAL_RANK", "0"))
        if count and rank >= count:
            raise DeviceError(
                f"Process {rank} of this machine has no card: torchrun started more processes than the "
                f"{count} card(s) that there are. Lower --nproc-per-node."
            )
        name = f"cuda:{rank}" if count else name
    return resolve_device(name)


def is_distributed() -> bool:
    """Return whether this process is one of several."""
    return distributed.is_available() and distributed.is_initialized()


def is_main_process() -> bool:
    """Return whether this process is the one that writes, of those that have joined."""
    return not is_distributed() or distributed.get_rank() == 0


def is_main_process_env() -> bool:
    """Return whether this process will be the one that writes, also before any has joined."""
    return os.environ.get("RANK", "0") == "0"


def sum_over_processes(count: int, device: torch.device) -> tuple[float, float]:
    """Return a number summed over all processes, and the fraction of the batch that one process has.

    Args:
        count: Number of this process.
        device: Device that the processes communicate through.
    """
    if not is_distributed():
        return float(count), 1.0
    total = torch.tensor(float(count), device=device)
    distributed.all_reduce(total)
    return float(total), 1.0 / distributed.get_world_size()
