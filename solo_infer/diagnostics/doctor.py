"""A report on this machine, for its owner and for a maintainer who has no such machine.

Torch is imported inside, so that the report also comes where torch cannot be imported.
"""

from __future__ import annotations

import http.client
import importlib
import os
import platform
import re
import shutil
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from solo_infer._version import __version__
from solo_infer.errors import CacheError, ConfigError
from solo_infer.runtime import environment
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
MODULES = {
    "torch": "torch",
    "torchvision": "torchvision",
    "numpy": "numpy",
    "pillow": "PIL.Image",
    "huggingface-hub": "huggingface_hub",
    "safetensors": "safetensors.torch",
    "pycocotools": "pycocotools.mask",
    "tqdm": "tqdm",
    "filelock": "filelock",
}
_SHOWN_VARIABLES = re.compile(
    r"SOLO_INFER_\w+|HF_HOME|HF_HUB_CACHE|HF_HUB_OFFLINE|HF_ENDPOINT|TRANSFORMERS_OFFLINE|XDG_CACHE_HOME"
    r"|CUDA_VISIBLE_DEVICES|PYTORCH_(CUDA_)?ALLOC_CONF|OMP_NUM_THREADS|(?i:https?_proxy|all_proxy|no_proxy)"
)
_NEEDED_BYTES = 1 << 30  # room for a few checkpoints of 150 to 250 MB
_PROBE_SECONDS = 3.0
_NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")
_BUNDLE = (
    f"set {environment.MIRROR}, or bring a bundle made by 'solo-infer download NAME --output DIR' on "
    "another machine"
)


def collect_report() -> dict[str, Any]:
    """Return versions, devices, cache, sources and problems with their cure, as JSON-ready values.

    In offline mode no socket is touched; else each host of the manifest is asked for three seconds.
    Passwords in addresses are left out.
    """
    imports = describe_imports()
    report: dict[str, Any] = {
        "solo_infer": __version__,
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES},
        "imports": imports,
        "torch": describe_torch() if imports["torch"] == "ok" else None,
        "devices": _devices() if imports["torch"] == "ok" else [],
        "cache": describe_cache(),
        "offline": environment.is_offline(),
        "mirror": _without_password(environment.mirror() or "") or None,
        "sources": describe_sources(),
        "environment": {
            name: _without_password(value)
            for name, value in sorted(os.environ.items())
            if _SHOWN_VARIABLES.fullmatch(name)
        },
    }
    report["problems"] = find_problems(report)
    return report


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _without_password(text: str) -> str:
    return re.sub(r"//[^/@\s]*@", "//***@", text)


def describe_imports() -> dict[str, str]:
    """Return for each package that we need "ok", or why it cannot be imported."""
    return {package: _try_import(module) for package, module in MODULES.items()}


def _try_import(module: str) -> str:
    try:
        importlib.import_module(module)
    except Exception as error:  # binaries that do not fit each other raise almost anything
        return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
    return "ok"


def describe_torch() -> dict[str, Any]:
    """Return how torch was built."""
    import torch

    from solo_infer.runtime.device import cuda_problem, is_corex

    return {
        "cuda_build": torch.version.cuda,
        "cuda_available": torch.cuda.is_available(),
        "cuda_problem": cuda_problem(),
        "cuda_devices_seen": torch.cuda.device_count(),
        "nvidia_driver": _NVIDIA_DRIVER.exists() or shutil.which("nvidia-smi") is not None,
        "corex": is_corex(),
        "threads": torch.get_num_threads(),
        "mkldnn": torch.backends.mkldnn.is_available(),
    }


def _devices() -> list[dict[str, Any]]:
    import torch

    from solo_infer.diagnostics.kernel_checks import describe_paths
    from solo_infer.runtime.device import describe_devices

    return [{**found, "paths": describe_paths(torch.device(found["device"]))} for found in describe_devices()]


def describe_cache() -> dict[str, Any]:
    """Return where the cache is, whether it can be written, its free space and what it holds.

    Nothing is made there, but for a temporary file that has no name.
    """
    home = environment.cache_home()
    nearest = home.absolute()
    while not os.path.exists(nearest) and nearest != nearest.parent:
        nearest = nearest.parent
    try:
        with tempfile.TemporaryFile(dir=nearest):
            obstacle = ""
        free = shutil.disk_usage(nearest).free
    except OSError as error:
        obstacle, free = str(error.strerror or error), 0
    return {
        "path": str(home),
        "writable": not obstacle,
        "obstacle": obstacle,
        "free_bytes": free,
        "models": _cached_models(),
    }


def _cached_models() -> list[str]:
    try:
        from solo_infer.weights import fetch

        return [
            entry.name for entry in load_manifest().values() if not entry.folder and fetch.is_cached(entry)
        ]
    except (CacheError, ImportError):  # which the report tells as the state of the cache or the imports
        return []


def describe_sources() -> dict[str, str]:
    """Return for each host of the manifest, and the mirror: "reachable", why not, "not asked (offline)"."""
    places = list(dict.fromkeys(place for place in map(_origin, _addresses()) if place))
    if environment.is_offline():
        states = {place: "not asked (offline)" for place in places}
    else:
        with ThreadPoolExecutor(max_workers=8) as pool:
            states = dict(zip(places, pool.map(_reach, places), strict=True))
    mirror = environment.mirror()
    if mirror and not _origin(mirror):
        path = url2pathname(urlsplit(mirror).path) if mirror.startswith("file:") else mirror
        there = Path(path).expanduser().is_dir()
        states[mirror] = "reachable" if there else "unreachable: there is no such directory"
    return {_without_password(place): state for place, state in states.items()}


def _addresses() -> Iterator[str]:
    for entry in load_manifest().values():
        for source in entry.sources:
            yield _hub_endpoint() if source.kind == "hub" else source.address
    if mirror := environment.mirror():
        yield mirror


def _hub_endpoint() -> str:
    try:
        from huggingface_hub import constants
    except ImportError:  # told among the imports
        return "https://huggingface.co"
    return constants.ENDPOINT


def _origin(address: str) -> str:
    """Return "https://host:port" of an address, "" for one that is no URL of a host."""
    found = re.match(r"(https?://)(?:[^/@]*@)?([^/?#]+)", address)
    return found[1] + found[2] if found else ""


def _reach(origin: str) -> str:
    """Ask a host for its first page, the way that downloads go (proxy and certificates included)."""
    headers = {"User-Agent": f"solo-infer/{__version__}"}
    try:
        request = urllib.request.Request(f"{origin}/", method="HEAD", headers=headers)
        with urllib.request.build_opener().open(request, timeout=_PROBE_SECONDS):
            return "reachable"
    except urllib.error.HTTPError as error:
        error.close()
        answers = error.code < 500 and error.code != 407  # 407 is a proxy that wants a password
        return "reachable" if answers else f"unreachable: HTTP {error.code} {error.reason}"
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", None) or str(error) or type(error).__name__
        return f"unreachable: {reason}"


def find_problems(report: dict[str, Any]) -> list[dict[str, str]]:
    """Return what is wrong with the machine of a report, each with its cure."""
    problems = [*_import_problems(report), *_device_problems(report), *_cache_problems(report)]
    problems += _network_problems(report)
    return [{"problem": problem, "cure": cure} for problem, cure in problems]


def _import_problems(report: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for package, state in report["imports"].items():
        if state != "ok":
            version = report["packages"][package] or "not installed"
            yield (
                f"{package} ({version}) cannot be imported: {state}.",
                "Install it again, in a version that fits the others; a vendor's torch and torchvision come "
                "from that vendor only.",
            )


def _device_problems(report: dict[str, Any]) -> Iterator[tuple[str, str]]:
    facts = report["torch"]
    if facts and facts["cuda_problem"] and (cure := _cuda_cure(facts, report["environment"])):
        yield f"CUDA cannot be used: {facts['cuda_problem'].rstrip('.')}.", cure
    for device in report["devices"]:
        for dtype, state in device["works"].items():
            if state != "ok":
                yield f"{dtype} on {device['device']}: {state}.", _dtype_cure(dtype, state)
        for part, path in device["paths"].items():
            if path.startswith("FAILS"):
                yield f"{part} on {device['device']} {path}.", "Use another device, and update the driver."
            if "WRONG" in path:
                yield (
                    f"{part} on {device['device']}: the Triton kernel does not give what torch gives.",
                    "Uninstall Triton (pip uninstall triton), and report it with 'solo-infer doctor --json'.",
                )
        yield from _operation_problems(device)
    allocator = " ".join(v for name, v in report["environment"].items() if name.endswith("_ALLOC_CONF"))
    if facts and facts["corex"] and "cudaMallocAsync" in allocator:
        yield "cudaMallocAsync is asked for, which CoreX does not have.", "Unset PYTORCH_CUDA_ALLOC_CONF."


def _operation_problems(device: dict[str, Any]) -> Iterator[tuple[str, str]]:
    from solo_infer.diagnostics.device_checks import is_needed

    for name, state in device["operations"].items():
        if state != "ok" and is_needed(name):
            yield (
                f"{name} on {device['device']}: {state}.",
                "Results there would be wrong: use device cpu, and show 'solo-infer doctor --json' to those "
                "who made this torch.",
            )


def _cuda_cure(facts: dict[str, Any], environment: dict[str, str]) -> str:
    """Return how to get at the card, "" where there is none and torch is not made for one."""
    if facts["cuda_devices_seen"]:
        return "Bring the driver and the SDK that torch was built with to versions that fit each other."
    if not (facts["cuda_build"] or facts["corex"]):
        has_card = facts["nvidia_driver"]
        return "This machine has an NVIDIA driver: install a CUDA build of torch." if has_card else ""
    if "CUDA_VISIBLE_DEVICES" in environment:
        return f"CUDA_VISIBLE_DEVICES={environment['CUDA_VISIBLE_DEVICES']!r} may hide the card: unset it."
    if facts["nvidia_driver"]:
        return "Update the driver, or install a torch that was built for its CUDA version."
    return "On a machine with a card, install its driver; else nothing: the CPU is used."


def _dtype_cure(dtype: str, state: str) -> str:
    if state.startswith("slow"):
        return "Use dtype float32 there."
    other = "another device" if dtype == "float32" else "dtype float32 there"
    return f"Use {other}, and see what 'solo-infer verify --dtype {dtype}' says."


def _cache_problems(report: dict[str, Any]) -> Iterator[tuple[str, str]]:
    cache, home = report["cache"], environment.HOME
    if not cache["writable"]:
        yield (
            f"The cache {cache['path']} cannot be written: {cache['obstacle']}.",
            f"Set {home} to a directory that can.",
        )
    elif cache["free_bytes"] < _NEEDED_BYTES:
        yield f"The cache has only {cache['free_bytes'] >> 20} MiB free.", f"Free some, or set {home}."
    if report["offline"] and not cache["models"] and not report["mirror"]:
        yield (
            "Offline mode is on, and no published model is in the cache.",
            f"Give models by their path, {_BUNDLE}, or unset {environment.OFFLINE} and HF_HUB_OFFLINE.",
        )


def _network_problems(report: dict[str, Any]) -> Iterator[tuple[str, str]]:
    try:
        environment.network_timeout()
    except ConfigError as error:
        yield str(error), f"Unset {environment.TIMEOUT}, or set it to such a number."
    mirror = report["mirror"]
    mirrors = {mirror, _origin(mirror)} if mirror else set()
    has_mirror = any(report["sources"].get(place) == "reachable" for place in mirrors)
    for place, state in report["sources"].items():
        if not state.startswith("unreachable"):
            continue
        if place in mirrors:
            yield f"The mirror {place} is {state}.", f"Correct {environment.MIRROR}, or unset it."
        elif not has_mirror:
            yield (
                f"{place} is {state}; what only it has cannot be downloaded.",
                f"Check network and proxy, {_BUNDLE}.",
            )


def format_report(report: dict[str, Any]) -> str:
    """Return a report as text for people."""
    lines = [f"solo_infer {report['solo_infer']}, Python {report['python']}, {report['platform']}", ""]
    lines += ["Packages: " + ", ".join(f"{name} {v}" for name, v in report["packages"].items() if v)]
    missing = [name for name, version in report["packages"].items() if version is None]
    lines += [f"Not installed: {', '.join(missing)}"] if missing else []
    lines += ["", "Devices", f"  CUDA: {_cuda_line(report['torch'])}"]
    for device in report["devices"]:
        works = ", ".join(f"{dtype} {state}" for dtype, state in device["works"].items())
        memory = f", {device['memory_gib']} GiB" if "memory_gib" in device else ""
        lines.append(f"  {device['device']}: {device['name']} ({device['capability']}{memory}); {works}")
        lines += [f"    {path}: {', '.join(parts)}" for path, parts in _by_path(device["paths"]).items()]
        lines += _ability_lines(device)
    cache = report["cache"]
    writable = "writable" if cache["writable"] else "NOT writable"
    lines += ["", f"Cache: {cache['path']} ({writable}, {cache['free_bytes'] / 2**30:.1f} GiB free)"]
    lines += [f"  models: {', '.join(cache['models']) or 'none'}"]
    lines += ["", f"Sources (offline mode {'on' if report['offline'] else 'off'})"]
    lines += [f"  {place}: {state}" for place, state in report["sources"].items()]
    if report["environment"]:
        lines += ["", "Environment"] + [f"  {name}={value}" for name, value in report["environment"].items()]
    lines += ["", f"Problems: {len(report['problems']) or 'none'}"]
    for item in report["problems"]:
        lines += [f"  - {item['problem']}", f"    Cure: {item['cure']}"]
    return "\n".join(lines)


def _by_path(paths: dict[str, str]) -> dict[str, list[str]]:
    """Return the parts that take each path."""
    found: dict[str, list[str]] = {}
    for part, path in paths.items():
        found.setdefault(path, []).append(part)
    return found


def _ability_lines(device: dict[str, Any]) -> list[str]:
    """Return how much a device computes as the CPU does, and its fast paths."""
    states, paths = device["operations"], device["fast_paths"]
    off = [name for name, state in states.items() if state != "ok"]
    lines = [f"    operations: {len(states) - len(off)} of {len(states)} as on the CPU"]
    lines[0] += f"; not {', '.join(off)}" if off else ""
    allowed = [name for name in ("triton", "graphs", "compile") if paths[name]]
    return [*lines, f"    fast paths: {', '.join(allowed) or 'none'}; advised dtype {paths['dtype']}"]


def _cuda_line(torch_facts: dict[str, Any] | None) -> str:
    if torch_facts is None:
        return "unknown, as torch cannot be imported"
    build = torch_facts["cuda_build"] or "none"
    return f"build {build}, {torch_facts['cuda_problem'] or 'available'}"
