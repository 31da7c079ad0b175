"""Loads of a machine during a measurement: busy processes, and a CPU quota (Linux)."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

_GROUPS = Path("/sys/fs/cgroup")


@contextlib.contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """Run processes that never wait."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


@contextlib.contextmanager
def quota_of_one_cpu() -> Iterator[None]:
    """Move this process to a control group that may use one CPU, of version 2 or 1."""
    parent = _GROUPS / "cpu" if (_GROUPS / "cpu/cpu.cfs_quota_us").exists() else _GROUPS
    group = parent / f"busy_machine_{os.getpid()}"
    group.mkdir()
    try:
        if (group / "cpu.max").exists():
            (group / "cpu.max").write_text("100000 100000")
        else:
            (group / "cpu.cfs_quota_us").write_text("100000")
        (group / "cgroup.procs").write_text(f"{os.getpid()}")
        yield
    finally:
        (parent / "cgroup.procs").write_text(f"{os.getpid()}")
        group.rmdir()


LOADS: dict[str, Callable[[], contextlib.AbstractContextManager[None]]] = {
    "0": lambda: busy_processes(0),
    "1": lambda: busy_processes(1),
    "2": lambda: busy_processes(2),
    "quota": quota_of_one_cpu,
}
