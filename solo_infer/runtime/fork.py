"""Processes that are forked after torch has computed with several threads.

The threads of OpenMP do not exist in the child, which would wait for them forever. It therefore computes with
one thread.
"""

from __future__ import annotations

import os

import torch

from solo_infer.errors import DeviceError


def _use_one_thread() -> None:
    if torch.get_num_threads() > 1:
        torch.set_num_threads(1)


if hasattr(os, "register_at_fork"):  # not on Windows, which cannot fork
    os.register_at_fork(after_in_child=_use_one_thread)


def require_own_cuda(device: torch.device) -> None:
    """Check that a CUDA device was not set up by the process that this one was forked from.

    Raises:
        DeviceError: It was, and CUDA cannot be used in the child.
    """
    if device.type == "cuda" and getattr(torch.cuda, "_is_in_bad_fork", lambda: False)():
        raise DeviceError(
            f"{device} was set up before this process was forked, and cannot be used after it: load the "
            "model in the child only, or start processes with the method 'spawn' or 'forkserver'."
        )
