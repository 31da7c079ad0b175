"""What is told of a device's ways is what a run there would take."""

import sys
from dataclasses import replace

import pytest
import torch

from solo_infer.diagnostics import kernel_checks
from solo_infer.diagnostics.kernel_checks import describe_paths
from solo_infer.ops import dispatch
from solo_infer.ops.mask_statistics import MaskStatistics
from solo_infer.ops.paste_masks import PastedMasks
from solo_infer.runtime.device import NO_FAST_PATHS, FastPaths

CPU = torch.device("cpu")
ALL = FastPaths(triton=True, graphs=True, compile=True, dtype=torch.float16)
KERNELS = ("preprocessing", "GroupNorm", "mask statistics", "Matrix-NMS", "mask pasting")
MODULES = ("matrix_nms", "group_norm_relu", "paste_masks", "mask_statistics", "preprocess")


@pytest.fixture(autouse=True)
def no_failures_before(monkeypatch):
    monkeypatch.setattr(dispatch, "_failed", {})


class Stub:
    """A wrong kernel in place of a dispatched function."""

    def __init__(self, kernel):
        self.kernel = kernel

    def __call__(self, *args):
        return self.kernel(*args)


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
        monkeypatch.setitem(sys.modules, f"solo_infer.ops.triton.{name}", None)
    found = paths(monkeypatch, ALL)
    for name in KERNELS:
        assert found[name].startswith("torch (ImportError") or found[name].startswith("torch (ModuleNotFound")
    assert (found["CUDA graphs"], found["torch.compile"]) == ("on", "available")


def test_kernels_that_run_are_compared(monkeypatch):
    """A stand-in for the kernel gives what it likes."""
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
        "GroupNorm": ("group_norm_relu", Stub(lambda x, *rest: torch.zeros_like(x))),
        "mask statistics": (
            "cell_mask_statistics",
            Stub(lambda logits, *rest: MaskStatistics(None, None, torch.zeros(1, 40, 48).byte())),
        ),
        "Matrix-NMS": ("decay_factors", Stub(lambda packed, areas, *rest: torch.ones_like(areas))),
        "mask pasting": (
            "paste_masks",
            Stub(lambda soft, *rest: PastedMasks(torch.zeros(3, 101, 10, dtype=torch.uint8), None)),
        ),
    }
    if name == "preprocessing":
        given = iter((torch.zeros(1), torch.ones(1)))
        monkeypatch.setattr(kernel_checks, "prepare_batch", lambda *arguments: next(given))
    else:
        attribute, stub = wrong[name]
        stub.reference = getattr(kernel_checks, attribute).reference
        monkeypatch.setattr(kernel_checks, attribute, stub)
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
