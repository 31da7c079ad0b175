"""Problems that the diagnostic report finds on devices, and their fixes."""

import pytest
from helpers.doctor_reports import make_report, single_problem

from solo_infer.diagnostics.doctor import find_problems, format_report


@pytest.mark.parametrize(
    "facts, environment, fix",
    [
        ({"nvidia_driver": False}, {}, "install its driver. Until then the CPU"),
        ({}, {}, "Update the driver"),
        ({"nvidia_driver": False, "cuda_devices_seen": 2}, {}, "Install matching versions"),
        ({"cuda_build": None}, {}, "install a CUDA build of torch"),
        ({"cuda_build": None, "corex": True, "nvidia_driver": False}, {}, "install its driver"),
        ({}, {"CUDA_VISIBLE_DEVICES": ""}, "CUDA_VISIBLE_DEVICES='' may hide the card"),
    ],
)
def test_unusable_cuda(facts, environment, fix):
    facts = {"cuda_problem": "torch says so.", "cuda_available": False, "cuda_devices_seen": 0, **facts}
    problem = single_problem(make_report(torch=facts, environment=environment))
    assert problem["problem"] == "CUDA cannot be used: torch says so."
    assert fix in problem["fix"]


@pytest.mark.parametrize("build", [None, "13.0"])
def test_machines_without_a_card_have_no_problem(build):
    facts = {"cuda_problem": "no card", "cuda_build": build, "cuda_devices_seen": 0}
    facts |= {"nvidia_driver": False, "nvidia_card": False}
    assert find_problems(make_report(torch=facts)) == []


@pytest.mark.parametrize(
    "dtype, state, fix",
    [
        ("float16", "slow: 12 times the time of float32", "Use dtype float32 on this device."),
        (
            "bfloat16",
            "fails: no kernel",
            "dtype float32 on this device, and check it with 'solo-infer verify --dtype bfloat16'",
        ),
        ("float32", "wrong by 3", "another device"),
    ],
)
def test_broken_dtypes(dtype, state, fix):
    report = make_report()
    report["devices"][0]["works"][dtype] = state
    problem = single_problem(report)
    assert problem["problem"] == f"{dtype} on cuda:0: {state}."
    assert fix in problem["fix"]


@pytest.mark.parametrize(
    "path, message, fix",
    [
        (
            "triton, but WRONG",
            "GroupNorm on cuda:0: the result of the Triton kernel differs",
            "pip uninstall triton",
        ),
        ("FAILS (no memory)", "GroupNorm on cuda:0 FAILS (no memory).", "another device"),
    ],
)
def test_broken_kernels(path, message, fix):
    report = make_report()
    report["devices"][0]["paths"]["GroupNorm"] = path
    problem = single_problem(report)
    assert problem["problem"].startswith(message) and fix in problem["fix"]


def test_wrong_operations():
    report = make_report()
    report["devices"][0]["operations"]["packed masks"] = "wrong by 1"
    problem = single_problem(report)
    assert problem["problem"] == "packed masks on cuda:0: wrong by 1." and "device cpu" in problem["fix"]
    assert "operations: 2 of 3 as on the CPU; different: packed masks" in format_report(
        {**report, "problems": [problem]}
    )


def test_unneeded_operations_are_not_a_problem():
    report = make_report()
    report["devices"][0]["operations"].update(
        {"float64 copy": "becomes zeros", "group norm float16": "fails: x"}
    )
    assert find_problems(report) == []


def test_fast_paths_are_listed():
    text = format_report({**make_report(), "problems": []})
    assert (
        "operations: 3 of 3 as on the CPU\n    fast paths: triton, graphs; recommended dtype float16" in text
    )
    report = make_report()
    report["devices"][0]["fast_paths"] = {
        "triton": False,
        "graphs": False,
        "compile": False,
        "dtype": "float32",
    }
    assert "fast paths: none; recommended dtype float32" in format_report({**report, "problems": []})


def test_unsupported_allocator_on_corex():
    setting = {"PYTORCH_CUDA_ALLOC_CONF": "backend:cudaMallocAsync"}
    assert find_problems(make_report(environment=setting)) == []
    problem = single_problem(make_report(environment=setting, torch={"corex": True}))
    assert "cudaMallocAsync" in problem["problem"] and "PYTORCH_CUDA_ALLOC_CONF" in problem["fix"]


def test_threads_beyond_the_quota():
    cpus = {"cores": 8, "quota": 1.5, "quota_threads": 2}
    report = make_report(cpus=cpus, torch={"threads": 8})
    problem = single_problem(report)
    assert problem["problem"].startswith("torch uses 8 threads, but the CPU quota is 1.5")
    assert "OMP_NUM_THREADS=2" in problem["fix"] and "torch.set_num_threads(2)" in problem["fix"]
    assert find_problems(make_report(cpus=cpus)) == []


@pytest.mark.parametrize(
    "cpus, line, has_advice",
    [
        ({}, "CPUs: 2 cores, no CPU quota, torch uses 2 threads", False),
        ({"cores": 1}, "CPUs: 1 core, no CPU quota", False),
        ({"quota": 2.5}, "CPUs: 2 cores, CPU quota 2.5, ", False),
        ({"quota": 0.5, "quota_threads": 1}, "CPUs: 2 cores, CPU quota 0.5, ", True),
    ],
)
def test_lines_on_the_cpus(cpus, line, has_advice):
    text = format_report({**make_report(cpus=cpus), "problems": []})
    assert line in text and ("in programs, set OMP_NUM_THREADS=1" in text) == has_advice
