"""Check of the Triton kernels against their PyTorch references."""

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
MODULES = ("matrix_nms", "group_norm_relu", "paste_masks", "mask_statistics", "preprocess")


@pytest.fixture(autouse=True)
def no_recorded_failures(monkeypatch):
    monkeypatch.setattr(dispatch, "_failed", {})


def describe_with(monkeypatch, allowed, corex=False, device=CPU):
    monkeypatch.setattr(kernel_checks, "fast_paths", lambda device: allowed)
    monkeypatch.setattr(kernel_checks, "is_corex_card", lambda index: corex)
    monkeypatch.setattr(dispatch, "triton_allowed", lambda device: allowed.triton)
    return describe_paths(device)


def test_paths_of_the_cpu():
    paths = describe_paths(CPU)
    assert set(paths) == {*KERNELS, "CUDA graphs", "static shapes", "torch.compile"}
    assert {paths[name] for name in KERNELS} == {"torch (for CUDA only)"}
    assert paths["CUDA graphs"] == "off (for CUDA only)"


def test_failing_kernels_are_reported_with_the_reason(monkeypatch):
    """Triton is installed but cannot be imported."""
    for name in MODULES:
        monkeypatch.setitem(sys.modules, f"solo_infer.ops.triton.{name}", None)
        monkeypatch.delattr(f"solo_infer.ops.triton.{name}", raising=False)
    paths = describe_with(monkeypatch, ALL)
    for name in KERNELS:
        assert paths[name].startswith("torch (ImportError") or paths[name].startswith("torch (ModuleNotFound")
    assert (paths["CUDA graphs"], paths["torch.compile"]) == ("on", "available")


def test_running_kernels_are_compared(monkeypatch):
    """One check succeeds, the other one fails."""
    monkeypatch.setattr(dispatch, "run", lambda name, device, fused, plain: plain())
    monkeypatch.setattr(
        kernel_checks, "CHECKS", {"equal": lambda device: True, "different": lambda device: False}
    )
    paths = describe_with(monkeypatch, ALL)
    assert (paths["equal"], paths["different"]) == (kernel_checks.TRITON, kernel_checks.WRONG)


def test_device_errors_are_reported(monkeypatch):
    def fail(device):
        raise RuntimeError("CUDA error: broken\nmore")

    monkeypatch.setattr(kernel_checks, "CHECKS", {"part": fail})
    assert describe_with(monkeypatch, ALL)["part"] == "FAILS (CUDA error: broken)"


@pytest.mark.parametrize("name, check", kernel_checks.CHECKS.items())
def test_checks_accept_the_reference_and_reject_other_results(name, check, monkeypatch):
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
        outputs = iter((torch.zeros(1), torch.ones(1)))
        monkeypatch.setattr(kernel_checks, "prepare_batch", lambda *arguments: next(outputs))
    else:
        monkeypatch.setattr(kernel_checks, *wrong[name])
    assert not check(CPU)


def test_iluvatar_cards_and_others(monkeypatch):
    card = torch.device("cuda", 0)
    assert describe_with(monkeypatch, NO_FAST_PATHS, corex=True, device=card)["CUDA graphs"].endswith(
        "Iluvatar cards)"
    )
    assert (
        describe_with(monkeypatch, NO_FAST_PATHS, device=card)["GroupNorm"] == "torch (for NVIDIA cards only)"
    )
    without_triton = replace(ALL, triton=False, compile=False)
    paths = describe_with(monkeypatch, without_triton, device=card)
    assert paths["CUDA graphs"] == "on" and "Triton is not installed" in paths["GroupNorm"]
