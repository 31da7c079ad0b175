"""What is told of a device's ways is what a run there would take."""

import sys
from dataclasses import replace

import pytest
import torch

from solo_infer.diagnostics import kernel_checks
from solo_infer.diagnostics.kernel_checks import describe_paths
from solo_infer.ops import dispatch
from solo_infer.runtime.device import NO_FAST_PATHS, FastPaths

CPU = torch.device("cpu")
ALL = FastPaths(triton=True, graphs=True, compile=True, dtype=torch.float16)
KERNELS = ("preprocessing", "GroupNorm", "mask measuring", "Matrix-NMS", "mask enlargement")
MODULES = ("matrix_nms", "group_norm", "enlarging", "measuring", "preparing")


@pytest.fixture(autouse=True)
def no_failures_before(monkeypatch):
    monkeypatch.setattr(dispatch, "_failed", {})


def paths(monkeypatch, allowed, corex=False, device=CPU):
    monkeypatch.setattr(kernel_checks, "fast_paths", lambda device: allowed)
    monkeypatch.setattr(kernel_checks, "is_corex_card", lambda index: corex)
    monkeypatch.setattr(dispatch, "triton_allowed", lambda device: allowed.triton)
    return describe_paths(device)


def test_paths_of_the_cpu():
    found = describe_paths(CPU)
    assert set(found) == {*KERNELS, "CUDA graphs", "fixed slots", "torch.compile"}
    assert {found[name] for name in KERNELS} == {"torch (for CUDA only)"}
    assert found["CUDA graphs"] == "off (for CUDA only)"


def test_kernels_that_do_not_run_are_told_with_the_reason(monkeypatch):
    """As on a card where Triton is there but cannot be imported."""
    for name in MODULES:
        monkeypatch.setitem(sys.modules, f"solo_infer.ops.{name}_triton", None)
        monkeypatch.delattr(f"solo_infer.ops.{name}_triton", raising=False)
    found = paths(monkeypatch, ALL)
    for name in KERNELS:
        assert found[name].startswith("torch (ImportError") or found[name].startswith("torch (ModuleNotFound")
    assert (found["CUDA graphs"], found["torch.compile"]) == ("on", "available")


def test_kernels_that_run_are_compared(monkeypatch):
    """A stand-in for the kernel gives what it likes."""
    monkeypatch.setattr(dispatch, "run", lambda name, device, fused, plain: plain())
    monkeypatch.setattr(kernel_checks, "CHECKS", {"right": lambda device: True, "off": lambda device: False})
    found = paths(monkeypatch, ALL)
    assert (found["right"], found["off"]) == (kernel_checks.TRITON, kernel_checks.WRONG)


def test_a_device_that_fails_is_told(monkeypatch):
    def fail(device):
        raise RuntimeError("CUDA error: sick\nmore")

    monkeypatch.setattr(kernel_checks, "CHECKS", {"part": fail})
    assert paths(monkeypatch, ALL)["part"] == "FAILS (CUDA error: sick)"


@pytest.mark.parametrize("name, check", kernel_checks.CHECKS.items())
def test_checks_accept_the_twin_and_refuse_others(name, check, monkeypatch):
    assert check(CPU)
    wrong = {
        "GroupNorm": ("group_norm_relu", lambda x, *rest: torch.zeros_like(x)),
        "mask measuring": ("measure", lambda maps, cells, thr: (None, None, torch.zeros(1, 40, 48).byte())),
        "Matrix-NMS": ("decay_factors", lambda packed, areas, *rest: torch.ones_like(areas)),
        "mask enlargement": (
            "enlarge",
            lambda soft, *rest: (torch.zeros(3, 101, 10, dtype=torch.uint8), None),
        ),
    }
    if name == "preprocessing":
        given = iter((torch.zeros(1), torch.ones(1)))
        monkeypatch.setattr(kernel_checks, "prepare_batch", lambda *arguments: next(given))
    else:
        monkeypatch.setattr(kernel_checks, *wrong[name])
    assert not check(CPU)


def test_iluvatar_cards_and_others(monkeypatch):
    card = torch.device("cuda", 0)
    assert paths(monkeypatch, NO_FAST_PATHS, corex=True, device=card)["CUDA graphs"].endswith(
        "Iluvatar cards)"
    )
    assert paths(monkeypatch, NO_FAST_PATHS, device=card)["GroupNorm"] == "torch (for NVIDIA cards only)"
    without = replace(ALL, triton=False, compile=False)
    found = paths(monkeypatch, without, device=card)
    assert found["CUDA graphs"] == "on" and "Triton is not installed" in found["GroupNorm"]
