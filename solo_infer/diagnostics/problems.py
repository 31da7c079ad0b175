"""Problems in a report of ``solo-infer doctor`` and their fixes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from solo_infer.diagnostics.packages import package_fix
from solo_infer.errors import ConfigError
from solo_infer.runtime import environment
from solo_infer.runtime.urls import origin

_MIN_FREE_BYTES = 1 << 30  # a few checkpoints of 150 to 250 MB
_ALTERNATIVES = (
    f"set {environment.MIRROR}, or copy a bundle made by 'solo-infer download NAME --output DIR' on "
    "another machine"
)


def find_problems(report: dict[str, Any]) -> list[dict[str, str]]:
    """Return the problems in a report, each with its fix."""
    problems = [*_import_problems(report), *_device_problems(report), *_cache_problems(report)]
    problems += _network_problems(report)
    return [{"problem": problem, "fix": fix} for problem, fix in problems]


def _import_problems(report: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for package, state in report["imports"].items():
        if state != "ok":
            version = report["packages"][package] or "not installed"
            yield (
                f"{package} ({version}) cannot be imported: {state.rstrip('.')}.",
                package_fix(package, report["imports"], report["packages"]),
            )
    for name, error in report["errors"].items():
        yield (
            f"The check of {name} failed: {error.rstrip('.')}.",
            "Solve the problems of the packages first. If there is none, report the output of "
            "'solo-infer doctor --json'.",
        )
    triton = (report["torch"] or {}).get("triton")
    if triton not in (None, "ok"):
        yield (
            f"triton ({report['packages']['triton']}) cannot be imported: {triton.rstrip('.')}.",
            "The kernels of the GPU are slower without it: install the version that this torch needs, or "
            "uninstall it.",
        )


def _device_problems(report: dict[str, Any]) -> Iterator[tuple[str, str]]:
    facts = report["torch"]
    if facts and facts["cuda_problem"] and (fix := _cuda_fix(facts, report["environment"])):
        yield f"CUDA cannot be used: {facts['cuda_problem'].rstrip('.')}.", fix
    yield from _thread_problems(report)
    for device in report["devices"]:
        for dtype, state in device["works"].items():
            is_slow_cpu = device["device"] == "cpu" and state.startswith("slow")
            if state != "ok" and not is_slow_cpu:  # the recommended dtype says what to use instead
                yield f"{dtype} on {device['device']}: {state}.", _dtype_fix(dtype, state)
        yield from _kernel_problems(device)
        yield from _operation_problems(device)
    allocator = " ".join(v for name, v in report["environment"].items() if name.endswith("_ALLOC_CONF"))
    if facts and facts["corex"] and "cudaMallocAsync" in allocator:
        yield "cudaMallocAsync is selected, but CoreX does not support it.", "Unset PYTORCH_CUDA_ALLOC_CONF."


def _thread_problems(report: dict[str, Any]) -> Iterator[tuple[str, str]]:
    threads = (report["torch"] or {}).get("threads", 1)
    advised = (report["cpus"] or {}).get("quota_threads")
    if advised and threads > advised:
        yield (
            f"torch uses {threads} threads, but the CPU quota is {report['cpus']['quota']:g}: all of them "
            "stop when it is used up.",
            f"Set OMP_NUM_THREADS={advised}, or call torch.set_num_threads({advised}).",
        )


def _kernel_problems(device: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for name, path in device["paths"].items():
        if path.startswith("FAILS"):
            yield f"{name} on {device['device']} {path}.", "Use another device and update the driver."
        if "WRONG" in path:
            yield (
                f"{name} on {device['device']}: the result of the Triton kernel differs from PyTorch's.",
                "Uninstall Triton (pip uninstall triton) and report the output of "
                "'solo-infer doctor --json'.",
            )


def _operation_problems(device: dict[str, Any]) -> Iterator[tuple[str, str]]:
    from solo_infer.diagnostics.device_checks import is_needed

    for name, state in device["operations"].items():
        if state != "ok" and is_needed(name):
            yield (
                f"{name} on {device['device']}: {state}.",
                "Results would be wrong: use device cpu and report the output of 'solo-infer doctor --json' "
                "to the vendor of this torch build.",
            )


def _cuda_fix(facts: dict[str, Any], environment: dict[str, str]) -> str:
    """Return how to make CUDA work, "" for a machine without a CUDA device."""
    if facts["cuda_devices_seen"]:
        return "Install matching versions of the driver and of the SDK that torch was built with."
    if not (facts["nvidia_driver"] or facts["nvidia_card"] or facts["corex"]):
        return ""
    if not (facts["cuda_build"] or facts["corex"]):
        return "This machine has an NVIDIA card or driver: install a CUDA build of torch."
    if "CUDA_VISIBLE_DEVICES" in environment:
        return f"CUDA_VISIBLE_DEVICES={environment['CUDA_VISIBLE_DEVICES']!r} may hide the card: unset it."
    if facts["nvidia_driver"]:
        return "Update the driver, or install a build of torch for the driver's CUDA version."
    return "This machine has a card, but no driver: install its driver. Until then the CPU is used."


def _dtype_fix(dtype: str, state: str) -> str:
    if state.startswith("slow"):
        return "Use dtype float32 on this device."
    alternative = "another device" if dtype == "float32" else "dtype float32 on this device"
    return f"Use {alternative}, and check it with 'solo-infer verify --dtype {dtype}'."


def _cache_problems(report: dict[str, Any]) -> Iterator[tuple[str, str]]:
    cache, home = report["cache"], environment.HOME
    if not cache["writable"]:
        yield (
            f"The cache {cache['path']} cannot be written: {cache['obstacle']}.",
            f"Set {home} to a writable directory.",
        )
    elif cache["free_bytes"] < _MIN_FREE_BYTES:
        free_mib = cache["free_bytes"] >> 20
        yield f"The cache has only {free_mib} MiB free.", f"Free up disk space or set {home}."
    if report["offline"] and not cache["models"] and not report["mirror"]:
        yield (
            "Offline mode is on, and no published model is in the cache.",
            f"Pass the path of a model, {_ALTERNATIVES}, or unset {environment.OFFLINE_NAMES}.",
        )


def _models_only_on(address: str, report: dict[str, Any]) -> list[str]:
    """Return the models that are not in the cache, and that no host but unreachable ones provides."""
    is_reachable = {host: not state.startswith("unreachable") for host, state in report["sources"].items()}
    return [
        name
        for name, hosts in report["cache"]["missing"].items()
        if address in hosts and not any(is_reachable.get(host) for host in hosts)
    ]


def _network_problems(report: dict[str, Any]) -> Iterator[tuple[str, str]]:
    try:
        environment.network_timeout()
    except ConfigError as error:
        yield str(error), f"Unset {environment.TIMEOUT} or set it to a positive number."
    mirror = report["mirror"]
    mirrors = {mirror, origin(mirror)} if mirror else set()
    has_mirror = any(report["sources"].get(address) == "reachable" for address in mirrors)
    for address, state in report["sources"].items():
        if not state.startswith("unreachable"):
            continue
        if address in mirrors:
            yield f"The mirror {address} is {state}.", f"Correct {environment.MIRROR} or unset it."
        elif not has_mirror and (names := _models_only_on(address, report)):
            yield (
                f"{address} is {state}; models that are not in the cache cannot be downloaded from it: "
                f"{', '.join(names)}.",
                f"Check network and proxy, {_ALTERNATIVES}.",
            )
