"""Reports of the doctor command for tests."""

import copy

from solo_infer.diagnostics.doctor import find_problems
from solo_infer.diagnostics.packages import MODULES, PACKAGES

HEALTHY = {
    "solo_infer": "0.1.0",
    "python": "3.10.0",
    "platform": "Linux",
    "packages": {**dict.fromkeys(PACKAGES, "1.0"), "triton": None},
    "imports": dict.fromkeys(MODULES, "ok"),
    "torch": {
        "cuda_build": "12.1",
        "cuda_available": True,
        "cuda_problem": "",
        "cuda_devices_seen": 1,
        "nvidia_driver": True,
        "nvidia_card": True,
        "triton": None,
        "corex": False,
        "threads": 2,
        "mkldnn": True,
    },
    "devices": [
        {
            "device": "cuda:0",
            "name": "Card",
            "capability": "9.0",
            "memory_gib": 80.0,
            "works": {"float32": "ok", "float16": "ok", "bfloat16": "ok"},
            "paths": {"GroupNorm": "triton", "Matrix-NMS": "torch (no compiler)", "CUDA graphs": "on"},
            "operations": {"packed masks": "ok", "group norm float16": "ok", "float64 copy": "ok"},
            "fast_paths": {"triton": True, "graphs": True, "compile": False, "dtype": "float16"},
        }
    ],
    "cpus": {"cores": 2, "quota": None, "quota_threads": None},
    "cache": {
        "path": "/c",
        "writable": True,
        "obstacle": "",
        "free_bytes": 1 << 40,
        "models": ["solo_r50_1x"],
        "missing": {"solo_r50_3x": ["https://host"]},
    },
    "offline": False,
    "mirror": None,
    "sources": {"https://host": "reachable"},
    "environment": {},
    "errors": {},
}


def make_report(**changes):
    """Return the report of a healthy machine with changed values of its sections."""
    report = copy.deepcopy(HEALTHY)
    for section, values in changes.items():
        if isinstance(values, dict):
            report[section].update(values)
        else:
            report[section] = values
    return report


def single_problem(report):
    (problem,) = find_problems(report)
    assert problem["problem"].endswith(".") and problem["fix"].endswith(".")
    return problem
