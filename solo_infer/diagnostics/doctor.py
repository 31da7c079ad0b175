"""Diagnostic report on this machine, for its user and for maintainers.

Torch is imported inside functions, so that a report is possible where torch cannot be imported.
"""

from __future__ import annotations

import http.client
import os
import platform
import re
import shutil
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from solo_infer._version import __version__
from solo_infer.diagnostics.packages import PACKAGES, describe_imports, installed_version, try_import
from solo_infer.diagnostics.problems import find_problems
from solo_infer.runtime import cpu, environment
from solo_infer.runtime.messages import describe_error
from solo_infer.runtime.urls import origin, redact_credentials
from solo_infer.weights.manifest import Source, load_manifest

_REPORTED_VARIABLES = re.compile(
    r"SOLO_INFER_\w+|HF_HOME|HF_HUB_CACHE|HF_HUB_OFFLINE|HF_ENDPOINT|TRANSFORMERS_OFFLINE|XDG_CACHE_HOME"
    r"|CUDA_VISIBLE_DEVICES|PYTORCH_(CUDA_)?ALLOC_CONF|(OMP|MKL)_NUM_THREADS|(?i:https?_proxy|all_proxy|no_proxy)"
)
_TIMEOUT_SECONDS = 3.0
_NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")
_PCI_DEVICES = Path("/sys/bus/pci/devices")
_NVIDIA, _DISPLAY_CLASS = "0x10de", "0x03"  # vendor and class of graphics cards on the PCI bus


def collect_report() -> dict[str, Any]:
    """Return versions, devices, cache, sources and problems with their fixes, as JSON-ready values.

    Each host of the manifest gets one request with a timeout of three seconds, none in offline mode.
    Credentials in addresses are redacted. A section whose collection fails is empty, and its error is in
    "errors".
    """
    errors: dict[str, str] = {}

    def section(name: str, collect: Callable[[], Any], default: Any) -> Any:
        try:
            return collect()
        except Exception as error:  # broken packages raise errors of any type
            errors[name] = describe_error(error)
            return default

    imports = describe_imports()
    has_torch = imports["torch"] == "ok"
    report: dict[str, Any] = {
        "solo_infer": __version__,
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "packages": {name: installed_version(name) for name in PACKAGES},
        "imports": imports,
        "torch": section("torch", describe_torch, None) if has_torch else None,
        "devices": section("devices", _describe_devices, []) if has_torch else [],
        "cache": describe_cache(),
        "cpus": section("cpus", describe_cpus, None),
        "offline": environment.is_offline(),
        "mirror": redact_credentials(environment.mirror() or "") or None,
        "sources": describe_sources(),
        "environment": {
            name: redact_credentials(value)
            for name, value in sorted(os.environ.items())
            if _REPORTED_VARIABLES.fullmatch(name)
        },
    }
    report["errors"] = errors
    report["problems"] = find_problems(report)
    return report


def describe_torch() -> dict[str, Any]:
    """Return the build and the CUDA state of torch."""
    import torch

    from solo_infer.runtime.device import cuda_problem, is_corex

    is_available = torch.cuda.is_available()
    return {
        "cuda_build": torch.version.cuda,
        "cuda_available": is_available,
        "cuda_problem": cuda_problem(),
        "cuda_devices_seen": torch.cuda.device_count(),
        "nvidia_driver": _NVIDIA_DRIVER.exists() or shutil.which("nvidia-smi") is not None,
        "nvidia_card": _has_nvidia_card(),
        "triton": try_import("triton") if is_available and installed_version("triton") else None,
        "corex": is_corex(),
        "threads": torch.get_num_threads(),
        "mkldnn": torch.backends.mkldnn.is_available(),
    }


def describe_cpus() -> dict[str, Any]:
    """Return the CPUs that this process may use: cores, CPU quota, and the threads for it."""
    return {"cores": cpu.usable_cores(), "quota": cpu.cpu_quota(), "quota_threads": cpu.quota_threads()}


def _has_nvidia_card() -> bool:
    """Return whether Linux lists an NVIDIA graphics card on the PCI bus, with or without a driver."""
    try:
        return any(
            (device / "vendor").read_text().strip() == _NVIDIA
            and (device / "class").read_text().startswith(_DISPLAY_CLASS)
            for device in _PCI_DEVICES.iterdir()
        )
    except OSError:  # another system, or a container without the list
        return False


def _describe_devices() -> list[dict[str, Any]]:
    import torch

    from solo_infer.diagnostics.device_checks import describe_devices
    from solo_infer.diagnostics.kernel_checks import describe_paths

    return [
        {**device, "paths": describe_paths(torch.device(device["device"]))} for device in describe_devices()
    ]


def describe_cache() -> dict[str, Any]:
    """Return the path of the cache, whether it is writable, its free space and its models.

    Only an unnamed temporary file is created there.
    """
    home = environment.cache_home()
    existing = home.absolute()
    while not os.path.exists(existing) and existing != existing.parent:
        existing = existing.parent
    try:
        with tempfile.TemporaryFile(dir=existing):
            obstacle = ""
        free = shutil.disk_usage(existing).free
    except OSError as error:
        obstacle, free = str(error.strerror or error), 0
    return {
        "path": str(home),
        "writable": not obstacle,
        "obstacle": obstacle,
        "free_bytes": free,
        **_cached_models(),
    }


def _cached_models() -> dict[str, Any]:
    """Return the published models in the cache, and the hosts of each model that is missing there."""
    published = [entry for entry in load_manifest().values() if not entry.folder]
    try:
        from solo_infer.weights import fetch

        cached = [entry.name for entry in published if fetch.is_cached(entry)]
    except Exception:  # the report shows the reason, under the cache and the imports
        cached = []
    missing = {
        entry.name: [origin(_address(source)) for source in entry.sources]
        for entry in published
        if entry.name not in cached
    }
    return {"models": cached, "missing": missing}


def describe_sources() -> dict[str, str]:
    """Return the state of each host of the manifest and of the mirror.

    A state is "reachable", "unreachable: ..." with the reason, or "not tested (offline)".
    """
    origins = list(dict.fromkeys(filter(None, map(origin, _addresses()))))
    if environment.is_offline():
        states = dict.fromkeys(origins, "not tested (offline)")
    else:
        with ThreadPoolExecutor(max_workers=8) as pool:
            states = dict(zip(origins, pool.map(_request_state, origins), strict=True))
    mirror = environment.mirror()
    if mirror and not origin(mirror):
        states[mirror] = _state_of_directory(environment.mirror_directory(mirror))
    return {redact_credentials(address): state for address, state in states.items()}


def _state_of_directory(directory: Path | None) -> str:
    if directory is None:
        return "unreachable: expected an http:// or https:// address, or a directory"
    return "reachable" if directory.is_dir() else "unreachable: the directory does not exist"


def _addresses() -> Iterator[str]:
    for entry in load_manifest().values():
        for source in entry.sources:
            yield _address(source)
    if mirror := environment.mirror():
        yield mirror


def _address(source: Source) -> str:
    return _hub_endpoint() if source.kind == "hub" else source.address


def _hub_endpoint() -> str:
    try:
        from huggingface_hub import constants

        return constants.ENDPOINT
    except Exception:  # reported under the imports
        return os.environ.get("HF_ENDPOINT", "https://huggingface.co")


def _request_state(host: str) -> str:
    """Request the root page of a host with the proxy and certificates that downloads use."""
    headers = {"User-Agent": environment.USER_AGENT}
    try:
        request = urllib.request.Request(f"{host}/", method="HEAD", headers=headers)
        with urllib.request.build_opener().open(request, timeout=_TIMEOUT_SECONDS):
            return "reachable"
    except urllib.error.HTTPError as error:
        error.close()
        is_reachable = error.code < 500 and error.code != 407  # 407: the proxy requires a password
        return "reachable" if is_reachable else f"unreachable: HTTP {error.code} {error.reason}"
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", None) or str(error) or type(error).__name__
        return f"unreachable: {reason}"


def format_report(report: dict[str, Any]) -> str:
    """Return a report as text."""
    lines = [f"solo_infer {report['solo_infer']}, Python {report['python']}, {report['platform']}", ""]
    lines += ["Packages: " + ", ".join(f"{name} {v}" for name, v in report["packages"].items() if v)]
    missing = [name for name, version in report["packages"].items() if version is None]
    lines += [f"Not installed: {', '.join(missing)}"] if missing else []
    lines += _cpu_lines(report)
    lines += ["", "Devices", f"  CUDA: {_cuda_line(report['torch'])}"]
    for device in report["devices"]:
        works = ", ".join(f"{dtype} {state}" for dtype, state in device["works"].items())
        memory = f", {device['memory_gib']} GiB" if "memory_gib" in device else ""
        lines.append(f"  {device['device']}: {device['name']} ({device['capability']}{memory}); {works}")
        for path, operations in _group_by_path(device["paths"]).items():
            lines.append(f"    {path}: {', '.join(operations)}")
        lines += _feature_lines(device)
    cache = report["cache"]
    writable = "writable" if cache["writable"] else "NOT writable"
    lines += ["", f"Cache: {cache['path']} ({writable}, {cache['free_bytes'] / 2**30:.1f} GiB free)"]
    lines += [f"  models: {', '.join(cache['models']) or 'none'}"]
    lines += ["", f"Sources (offline mode {'on' if report['offline'] else 'off'})"]
    lines += [f"  {address}: {state}" for address, state in report["sources"].items()]
    if report["environment"]:
        lines += ["", "Environment"] + [f"  {name}={value}" for name, value in report["environment"].items()]
    lines += ["", f"Problems: {len(report['problems']) or 'none'}"]
    for item in report["problems"]:
        lines += [f"  - {item['problem']}", f"    Fix: {item['fix']}"]
    return "\n".join(lines)


def _cpu_lines(report: dict[str, Any]) -> list[str]:
    """Return the lines on the CPUs, with advice for programs if a quota limits them."""
    cpus = report["cpus"]
    if cpus is None:
        return []
    cores = f"{cpus['cores']} core{'' if cpus['cores'] == 1 else 's'}"
    quota = "no CPU quota" if cpus["quota"] is None else f"CPU quota {cpus['quota']:g}"
    threads = f", torch uses {report['torch']['threads']} threads" if report["torch"] else ""
    lines = [f"CPUs: {cores}, {quota}{threads}"]
    if advised := cpus["quota_threads"]:
        lines.append(
            f"  The command line uses {advised} for the quota, unless OMP_NUM_THREADS is set; in programs, "
            f"set OMP_NUM_THREADS={advised} or call torch.set_num_threads({advised})"
        )
    return lines


def _group_by_path(paths: dict[str, str]) -> dict[str, list[str]]:
    """Return the operations of each path."""
    operations: dict[str, list[str]] = {}
    for operation, path in paths.items():
        operations.setdefault(path, []).append(operation)
    return operations


def _feature_lines(device: dict[str, Any]) -> list[str]:
    """Return the lines on the operations and fast paths of a device."""
    states, paths = device["operations"], device["fast_paths"]
    failed = [name for name, state in states.items() if state != "ok"]
    suffix = f"; different: {', '.join(failed)}" if failed else ""
    names = [name for name in ("triton", "graphs", "compile") if paths[name]]
    lines = [
        f"    operations: {len(states) - len(failed)} of {len(states)} as on the CPU{suffix}",
        f"    fast paths: {', '.join(names) or 'none'}; recommended dtype {paths['dtype']}"
        + (f" ({device['dtype_reason']})" if "dtype_reason" in device else ""),
    ]
    if kernels := device.get("kernels"):
        lines.append(f"    kernels for photos, convolutions and masks: {kernels}")
    if rates := device.get("rates"):
        measured = ", ".join(f"{dtype} {rate:.0f}" for dtype, rate in rates.items())
        products = ", ".join(f"{dtype} {rate:.0f}" for dtype, rate in device["product_rates"].items())
        lines.append(f"    GFLOP/s of 3x3 convolutions: {measured}; of matrix products: {products}")
    return lines


def _cuda_line(torch_facts: dict[str, Any] | None) -> str:
    if torch_facts is None:
        return "unknown, because torch does not work"
    build = torch_facts["cuda_build"] or "none"
    return f"build {build}, {torch_facts['cuda_problem'] or 'available'}"
