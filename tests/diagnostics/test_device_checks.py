"""Descriptions of devices and comparison of their operations with the CPU."""

import json
import sys
from dataclasses import replace

import pytest
import torch

from solo_infer.diagnostics import device_checks
from solo_infer.diagnostics.device_checks import (
    OPERATIONS,
    describe_devices,
    is_needed,
    probe_operations,
)
from solo_infer.ops.dtype_speed import DtypeSpeed
from solo_infer.segmenters import auto_dtype
from solo_infer.segmenters.auto_dtype import DtypeChoice


@pytest.fixture
def speeds(monkeypatch):
    """Simulate a CPU with bfloat16 units; return its speeds by dtype, in GFLOP/s of both operations."""
    speeds = {torch.float32: 12.0, torch.float16: 1.0, torch.bfloat16: 6.0}
    monkeypatch.setattr(
        device_checks,
        "measure_speeds",
        lambda dtypes: {dtype: DtypeSpeed(speeds[dtype], speeds[dtype]) for dtype in dtypes},
    )
    monkeypatch.setattr(device_checks, "probe", lambda device, dtype: "ok")
    monkeypatch.setattr(device_checks, "has_bfloat16_units", lambda: True)
    monkeypatch.setattr(auto_dtype, "_measured", {})
    return speeds


def test_dtypes_of_the_cpu(speeds):
    (cpu,) = (device for device in describe_devices() if device["device"] == "cpu")
    assert cpu["works"] == {
        "float32": "ok",
        "float16": "slow: 12 times the time of float32",
        "bfloat16": "ok",
    }
    assert cpu["rates"] == {"float32": 12.0, "float16": 1.0, "bfloat16": 6.0} == cpu["product_rates"]
    assert cpu["fast_paths"]["dtype"] == "float32" and "0.5 times as fast" in cpu["dtype_reason"]


def test_measured_rates_decide_on_the_dtype_of_auto(speeds, monkeypatch):
    speeds[torch.bfloat16] = 24.0
    assert describe_devices()[0]["fast_paths"]["dtype"] == "bfloat16"
    # Loading reuses the measurement.
    monkeypatch.setattr(auto_dtype, "has_bfloat16_units", lambda: True)
    monkeypatch.setattr(auto_dtype, "probe", lambda device, dtype: "ok")
    monkeypatch.setattr(auto_dtype, "measure_speeds", lambda dtypes: pytest.fail("measured again"))
    assert auto_dtype.choose_dtype(torch.device("cpu")).dtype == torch.bfloat16


def test_processor_without_bfloat16_units(speeds, monkeypatch):
    speeds[torch.bfloat16] = 24.0
    for module in (device_checks, auto_dtype):
        monkeypatch.setattr(module, "has_bfloat16_units", lambda: False)
    cpu = describe_devices()[0]
    assert cpu["fast_paths"]["dtype"] == "float32"
    assert cpu["dtype_reason"] == "the processor has no bfloat16 units"


def test_description_of_cards(two_cards, speeds, monkeypatch):
    choice = DtypeChoice(torch.float16, "the card has units for it")
    monkeypatch.setattr(device_checks, "choose_dtype", lambda device: choice)
    cpu, first, second = json.loads(json.dumps(describe_devices(), allow_nan=False))
    assert cpu["threads"] == torch.get_num_threads()
    assert (first["device"], second["device"]) == ("cuda:0", "cuda:1")
    assert (first["name"], first["capability"], first["memory_gib"]) == ("Card", "9.0", 3.0)
    assert not first["corex"]
    two_cards.name = "Iluvatar BI-V100"
    assert describe_devices()[1]["corex"]


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
