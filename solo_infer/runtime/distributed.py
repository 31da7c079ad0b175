"""Processes of ``torch.distributed``, started by torchrun."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
from torch import distributed

from solo_infer.errors import DeviceError
from solo_infer.runtime.device import resolve_device

_LONGEST_WAIT = timedelta(days=30)  # of a process for the others


@contextmanager
def process_group(device: str | torch.device | None) -> Iterator[torch.device]:
    """Initialize the process group in processes that torchrun started, and yield the device of this one.

    A single process gets its device and no process group.

    Args:
        device: Device, as in ``SOLO.from_pretrained``. Among several processes any CUDA device stands for
            the one with the index of the process.

    Raises:
        DeviceError: The device is not available, or there are fewer CUDA devices than processes.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield resolve_device(device)
        return
    own_device = local_device(device)
    if own_device.type == "cuda":
        torch.cuda.set_device(own_device)
    distributed.init_process_group(backend(own_device))
    try:
        yield own_device
    finally:
        distributed.destroy_process_group()


@contextmanager
def ending_together() -> Iterator[None]:
    """Wait at the end of the block until all processes of torchrun are there.

    torchrun stops all processes as soon as one of them ends with an error code. An error in the block is
    raised without waiting.
    """
    distributed.init_process_group("gloo", timeout=_LONGEST_WAIT)
    try:
        yield
        distributed.barrier()
    finally:
        distributed.destroy_process_group()


def backend(device: torch.device) -> str:
    """Return the process-group backend: "nccl" for CUDA devices if available (also on CoreX), else "gloo"."""
    return "nccl" if device.type == "cuda" and distributed.is_nccl_available() else "gloo"


def local_device(device: str | torch.device | None) -> torch.device:
    """Return the device of this process without initializing the devices of the others."""
    name = str(device or "auto")
    if name.partition(":")[0] in ("auto", "cuda"):
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        if count and local_rank >= count:
            raise DeviceError(
                f"Process {local_rank} of this machine has no CUDA device: torchrun started more processes "
                f"than the {count} device(s) of this machine. Lower --nproc-per-node."
            )
        name = f"cuda:{local_rank}" if count else name
    return resolve_device(name)


def is_distributed() -> bool:
    """Return whether the process group is initialized."""
    return distributed.is_available() and distributed.is_initialized()


def rank_and_world_size() -> tuple[int, int]:
    """Return the rank of this process and the number of processes; (0, 1) without a process group."""
    return (distributed.get_rank(), distributed.get_world_size()) if is_distributed() else (0, 1)


def is_main_process() -> bool:
    """Return whether this process has rank 0 in the process group, or there is no process group."""
    return rank_and_world_size()[0] == 0


def is_main_process_env() -> bool:
    """Return whether this process has rank 0; usable before the process group exists."""
    return os.environ.get("RANK", "0") == "0"


def sum_over_processes(count: float, device: torch.device) -> tuple[float, float]:
    """Return the sum of a number over all processes, and the fraction of the batch that one process has.

    Args:
        count: Number of this process.
        device: Device that the processes communicate through.
    """
    if not is_distributed():
        return float(count), 1.0
    total = torch.tensor(float(count), dtype=torch.float32, device=device)
    distributed.all_reduce(total)
    return float(total), 1.0 / distributed.get_world_size()
