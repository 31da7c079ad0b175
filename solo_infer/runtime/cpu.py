"""The processor: name, units, and the CPUs that this process may use. Does not import torch."""

from __future__ import annotations

import math
import os
import platform
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

_PROC_CPUINFO = Path("/proc/cpuinfo")
# Flags of x86 and ARM processors that multiply bfloat16 matrices or vectors.
_BFLOAT16_FLAGS = {"amx_bf16", "avx512_bf16", "avx10_2", "bf16", "svebf16", "smebf16"}
_MATRIX_FLAGS = {"amx_bf16", "smebf16"}  # those that multiply matrices, many times as fast as float32 vectors


def cpu_name() -> str:
    """Return the model name of the CPU on Linux, elsewhere its architecture."""
    names = [value for key, value in _cpu_entries() if key == "model name"]
    return names[0] if names else platform.processor() or platform.machine()


def has_bfloat16_units() -> bool | None:
    """Return whether the CPU multiplies bfloat16 numbers itself, None where the system does not list that."""
    flags = _cpu_flags()
    return None if flags is None else bool(flags & _BFLOAT16_FLAGS)


def has_bfloat16_matrix_units() -> bool | None:
    """Return whether the CPU multiplies bfloat16 matrices itself; None as in ``has_bfloat16_units``."""
    flags = _cpu_flags()
    return None if flags is None else bool(flags & _MATRIX_FLAGS)


def _cpu_flags() -> set[str] | None:
    flags = (set(value.split()) for key, value in _cpu_entries() if key in ("flags", "Features"))
    return next(flags, None)


def _cpu_entries() -> Iterator[tuple[str, str]]:
    """Yield the keys and values of /proc/cpuinfo, none on systems without it."""
    try:
        lines = _PROC_CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return
    for line in lines:
        key, _, value = line.partition(":")
        yield key.strip(), value.strip()


def usable_cores(root: Path = Path("/")) -> int:
    """Return the number of cores that this process may run on; threads of one core count once.

    Args:
        root: Root of the file system.
    """
    if not hasattr(os, "sched_getaffinity"):  # only Linux has it
        return os.cpu_count() or 1
    cores = set()
    for cpu in os.sched_getaffinity(0):
        siblings = root / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"
        try:
            cores.add(siblings.read_text().strip())
        except OSError:  # a container or sandbox without the list
            cores.add(f"{cpu}")
    return len(cores)


def cpu_quota(root: Path = Path("/")) -> float | None:
    """Return the CPU time per time that control groups of Linux allow, e.g. 1.5 CPUs; None without a limit.

    Containers limit the CPU time of a process rather than its CPUs. The limit of a group holds for the groups
    in it, so the smallest one counts.

    Args:
        root: Root of the file system.
    """
    quotas = [
        quota for directory in _cpu_groups(root) for quota in _quotas_of_group(directory) if quota is not None
    ]
    return min(quotas, default=None)


def quota_threads(root: Path = Path("/")) -> int | None:
    """Return the number of threads for the CPU quota, None if the quota does not limit the usable cores."""
    quota = cpu_quota(root)
    if quota is None or math.ceil(quota) >= usable_cores(root):
        return None
    return max(math.ceil(quota), 1)


def openmp_settings(environment: Mapping[str, str], root: Path = Path("/")) -> dict[str, str]:
    """Return the environment variables that a program of its own sets before it imports torch.

    They fit the number of threads to the CPU quota. Variables that the user has set are left alone.

    Args:
        environment: Environment variables of the process.
        root: Root of the file system.
    """
    threads = quota_threads(root)
    if threads is None or {"OMP_NUM_THREADS", "MKL_NUM_THREADS"} & environment.keys():
        return {}
    return {"OMP_NUM_THREADS": str(threads)}


def _cpu_groups(root: Path) -> Iterator[Path]:
    """Yield the directories of the control groups of this process that may limit its CPU time."""
    mounts = list(_group_mounts(root))
    for line in _lines(root / "proc/self/cgroup"):
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        is_v2 = number == "0" and not controllers
        if not is_v2 and "cpu" not in controllers.split(","):
            continue
        for mount_is_v2, mount_root, mount in mounts:
            if mount_is_v2 == is_v2:
                yield from _with_parents(root / mount.lstrip("/"), _inside(path, mount_root))


def _group_mounts(root: Path) -> Iterator[tuple[bool, str, str]]:
    """Yield whether it is of version 2, root and mount point of each mount of control groups for the CPU."""
    for line in _lines(root / "proc/self/mountinfo"):
        before, _, after = line.partition(" - ")
        fields, kind = before.split(), after.split()
        if len(fields) < 5 or len(kind) < 3:
            continue
        if kind[0] == "cgroup2" or (kind[0] == "cgroup" and "cpu" in kind[2].split(",")):
            yield kind[0] == "cgroup2", _unescaped(fields[3]), _unescaped(fields[4])


def _unescaped(path: str) -> str:
    """Return a path of mountinfo with its octal escapes, such as those of spaces, replaced."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), path)


def _inside(path: str, mount_root: str) -> list[str]:
    """Return the names that lead from the root of a mount to a group; none for groups outside of it."""
    names, top = path.strip("/").split("/"), mount_root.strip("/").split("/")
    if top != [""]:
        if names[: len(top)] != top:
            return []
        names = names[len(top) :]
    return [] if ".." in names else [name for name in names if name]


def _with_parents(directory: Path, names: list[str]) -> Iterator[Path]:
    yield directory
    for name in names:
        directory = directory / name
        yield directory


def _quotas_of_group(directory: Path) -> Iterator[float | None]:
    """Yield the quotas of one control group: of version 2 "max 100000", of version 1 in two files."""
    for line in _lines(directory / "cpu.max")[:1]:
        yield _quota(*(line.split() + ["", ""])[:2])
    quota, period = (_lines(directory / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
    if quota and period:
        yield _quota(quota[0], period[0])


def _quota(quota: str, period: str) -> float | None:
    """Return quota / period, None for "max", -1 and values that no kernel writes."""
    if not (quota.strip().isdecimal() and period.strip().isdecimal()):
        return None
    return int(quota) / int(period) if int(quota) and int(period) else None


def _lines(path: Path) -> list[str]:
    """Return the lines of a file of the system, none if it is missing or may not be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
