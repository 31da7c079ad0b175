"""Descriptions of devices and comparison of their operations with the CPU."""

import json
import sys
from dataclasses import replace

import pytest
import torch

from solo_infer.diagnostics import device_checks
from solo_infer.diagnostics.device_checks import (
    OPERATIONS,
    cpu_name,
    describe_devices,
    is_needed,
    probe_operations,
)


def test_slow_dtypes_of_the_cpu_are_reported(monkeypatch):
    seconds = {torch.float32: 1.0, torch.float16: 12.0, torch.bfloat16: 2.0}
    monkeypatch.setattr(device_checks, "_convolution_seconds", seconds.get)
    monkeypatch.setattr(device_checks, "probe", lambda device, dtype: "ok")
    (cpu,) = (device for device in describe_devices() if device["device"] == "cpu")
    assert cpu["works"] == {
        "float32": "ok",
        "float16": "slow: 12 times the time of float32",
        "bfloat16": "ok",
    }


def test_description_of_cards(two_cards, monkeypatch):
    monkeypatch.setattr(device_checks, "probe", lambda device, dtype: "ok")
    monkeypatch.setattr(device_checks, "_convolution_seconds", lambda dtype: 1.0)
    cpu, first, second = json.loads(json.dumps(describe_devices(), allow_nan=False))
    assert cpu["threads"] == torch.get_num_threads()
    assert (first["device"], second["device"]) == ("cuda:0", "cuda:1")
    assert (first["name"], first["capability"], first["memory_gib"]) == ("Card", "9.0", 3.0)
    assert not first["corex"]
    two_cards.name = "Iluvatar BI-V100"
    assert describe_devices()[1]["corex"]


def test_cpu_name_falls_back_to_the_architecture(monkeypatch):
    assert describe_devices()[0]["name"]

    class Unreadable:
        def __init__(self, path):
            assert path == "/proc/cpuinfo"

        def read_text(self, **options):
            raise PermissionError("not readable")

    monkeypatch.setattr(device_checks, "Path", Unreadable)
    monkeypatch.setattr(device_checks.platform, "processor", lambda: "")
    monkeypatch.setattr(device_checks.platform, "machine", lambda: "riscv64")
    assert cpu_name() == "riscv64"


@pytest.mark.parametrize(
    "name, broken, state",
    [
        ("packed masks", lambda masks: masks.int() * 0, "wrong by 1"),
        ("nonzero", lambda masks: torch.zeros(2, 1), "wrong: shape (2, 1) instead of (2, "),
        ("sigmoid", lambda x: x.new_full(x.shape, torch.nan), "wrong by nan"),
    ],
)
def test_wrong_results_are_reported(name, broken, state, monkeypatch):
    """The first call runs on the CPU, the second on the device."""
    operation, calls = OPERATIONS[name], []

    def run(*inputs):
        calls.append(1)
        return operation.run(*inputs) if len(calls) == 1 else broken(*inputs)

    monkeypatch.setitem(OPERATIONS, name, replace(operation, run=run))
    states = probe_operations(torch.device("cpu"))
    (result,) = (value for key, value in states.items() if key.startswith(name))
    assert result.startswith(state)


def test_cpu_passes_all_operations():
    states = probe_operations(torch.device("cpu"))
    assert {state for name, state in states.items() if is_needed(name)} == {"ok"}
    assert states["float64 copy"] == "ok" and not is_needed("float64 copy")
    assert is_needed("convolution float32") and not is_needed("convolution float16")
    assert states["deformable convolution float32"] == "ok"


def test_report_does_not_depend_on_torchvision(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision.ops", None)
    states = probe_operations(torch.device("cpu"))
    assert states["deformable convolution float32"].startswith("fails: torchvision cannot be imported")
