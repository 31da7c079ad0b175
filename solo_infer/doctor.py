"""A report on this machine, for its owner and for a maintainer who has no such machine."""

from __future__ import annotations

import os
import platform
import shutil
import socket
import sys
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch

from solo_infer import _environment
from solo_infer._version import __version__
from solo_infer.device import cuda_problem, describe_devices, is_corex
from solo_infer.weights import sources
from solo_infer.weights.manifest import load_manifest

PACKAGES = (
    "torch",
    "torchvision",
    "numpy",
    "pillow",
    "huggingface-hub",
    "safetensors",
    "pycocotools",
    "tqdm",
    "filelock",
    "triton",
)
_NEEDED_BYTES = 1 << 30  # room for a few checkpoints of 150 to 250 MB
_PROBE_SECONDS = 3.0


def examine() -> dict[str, Any]:
    """Return versions, devices, cache, sources and problems with their cure, as JSON-ready values.

    In offline mode no socket is touched; else each host of the manifest is tried for three seconds.
    """
    report: dict[str, Any] = {
        "solo_infer": __version__,
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES},
        "torch": describe_torch(),
        "devices": describe_devices(),
        "cache": describe_cache(),
        "offline": _environment.is_offline(),
        "mirror": _environment.mirror(),
        "sources": describe_sources(),
        "environment": {
            name: value
            for name, value in sorted(os.environ.items())
            if name.startswith(("SOLO_INFER_", "HF_HOME", "HF_HUB_OFFLINE", "HF_ENDPOINT", "CUDA_VISIBLE"))
        },
    }
    report["problems"] = find_problems(report)
    return report


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def describe_torch() -> dict[str, Any]:
    """Return how torch was built."""
    return {
        "cuda_build": torch.version.cuda,
        "cuda_available": torch.cuda.is_available(),
        "cuda_problem": cuda_problem(),
        "corex": is_corex(),
        "threads": torch.get_num_threads(),
        "mkldnn": torch.backends.mkldnn.is_available(),
    }


def describe_cache() -> dict[str, Any]:
    """Return where the cache is, whether it can be written, its free space and what it holds."""
    home = _environment.cache_home()
    nearest = home
    while not nearest.exists() and nearest != nearest.parent:
        nearest = nearest.parent
    return {
        "path": str(home),
        "writable": nearest.is_dir() and os.access(nearest, os.W_OK),
        "free_bytes": shutil.disk_usage(nearest).free,
        "models": [entry.name for entry in load_manifest().values() if sources.is_cached(entry)],
    }


def describe_sources() -> dict[str, str]:
    """Return for each host of the manifest "reachable", the cause why not, or "not asked (offline)"."""
    addresses = [source.address for entry in load_manifest().values() for source in entry.sources]
    if mirror := _environment.mirror():
        addresses.append(mirror)
    states: dict[str, str] = {}
    for address in addresses:
        parts = urlsplit(address)
        if parts.scheme in ("http", "https") and parts.hostname:
            port = parts.port or (443 if parts.scheme == "https" else 80)
            states.setdefault(f"{parts.hostname}:{port}", "")
        elif address == mirror:
            states[address] = "reachable" if Path(parts.path or address).is_dir() else "no such directory"
    for place, state in states.items():
        if not state:
            states[place] = "not asked (offline)" if _environment.is_offline() else _reach(place)
    return states


def _reach(place: str) -> str:
    host, _, port = place.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=_PROBE_SECONDS):
            return "reachable"
    except OSError as error:
        return f"unreachable: {error}"


def find_problems(report: dict[str, Any]) -> list[dict[str, str]]:
    """Return what is wrong with the machine of a report, each with its cure."""
    found = []

    def add(problem: str, cure: str) -> None:
        found.append({"problem": problem, "cure": cure})

    torch_facts, cache = report["torch"], report["cache"]
    if torch_facts["cuda_problem"] and torch_facts["cuda_build"]:
        add(
            f"CUDA cannot be used: {torch_facts['cuda_problem']}.",
            "On a machine with a card, install its driver; else nothing: the CPU is used.",
        )
    for device in report["devices"]:
        for dtype, state in device["works"].items():
            if state != "ok":
                add(f"{dtype} on {device['device']}: {state}.", "Use dtype float32 there.")
    if not cache["writable"]:
        add(
            f"The cache {cache['path']} cannot be written.",
            f"Set {_environment.HOME} to a directory that can.",
        )
    elif cache["free_bytes"] < _NEEDED_BYTES:
        add(
            f"The cache has only {cache['free_bytes'] >> 20} MiB free.",
            f"Free some, or set {_environment.HOME}.",
        )
    unreachable = [place for place, state in report["sources"].items() if state.startswith("unreachable")]
    for place in unreachable:
        add(
            f"{place} cannot be reached, so its checkpoints cannot be downloaded.",
            f"Check network and proxy, set {_environment.MIRROR}, or bring a bundle made by "
            "'solo-infer download NAME --output DIR' on another machine.",
        )
    return found


def format_report(report: dict[str, Any]) -> str:
    """Return a report as text for people."""
    lines = [f"solo_infer {report['solo_infer']}, Python {report['python']}, {report['platform']}", ""]
    lines += ["Packages: " + ", ".join(f"{name} {v}" for name, v in report["packages"].items() if v)]
    missing = [name for name, version in report["packages"].items() if version is None]
    lines += [f"Not installed: {', '.join(missing)}"] if missing else []
    lines += ["", "Devices"]
    for device in report["devices"]:
        works = ", ".join(f"{dtype} {state}" for dtype, state in device["works"].items())
        lines.append(f"  {device['device']}: {device['name']} ({device['capability']}); {works}")
    cache = report["cache"]
    writable = "writable" if cache["writable"] else "NOT writable"
    lines += ["", f"Cache: {cache['path']} ({writable}, {cache['free_bytes'] / 2**30:.1f} GiB free)"]
    lines += [f"  models: {', '.join(cache['models']) or 'none'}"]
    lines += ["", f"Sources (offline mode {'on' if report['offline'] else 'off'})"]
    lines += [f"  {place}: {state}" for place, state in report["sources"].items()]
    lines += ["", f"Problems: {len(report['problems']) or 'none'}"]
    for item in report["problems"]:
        lines += [f"  - {item['problem']}", f"    Cure: {item['cure']}"]
    return "\n".join(lines)
