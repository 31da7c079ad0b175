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
KERNELS = (
    "preprocessing",
    "GroupNorm",
    "cell mask statistics",
    "axis mask statistics",
    "Matrix-NMS",
    "mask pasting",
)
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


@pytest.mark.parametrize(
    "name, kernel",
    [
        ("preprocessing", "preprocess"),
        ("GroupNorm", "group_norm_relu"),
        ("cell mask statistics", "cell_mask_statistics"),
        ("axis mask statistics", "axis_mask_statistics"),
        ("Matrix-NMS", "decay_factors"),
        ("mask pasting", "paste_masks"),
    ],
)
def test_checks_accept_the_reference_and_reject_other_results(name, kernel, monkeypatch):
    assert kernel_checks.CHECKS[name](CPU)
    reference = getattr(kernel_checks, kernel).reference

    def wrong_kernel(*arguments):
        result = reference(*arguments)
        return result + 1 if isinstance(result, torch.Tensor) else result._replace(packed=~result.packed)

    wrong_kernel.reference = reference
    monkeypatch.setattr(kernel_checks, kernel, wrong_kernel)
    assert not kernel_checks.CHECKS[name](CPU)


def test_every_kernel_has_a_check():
    assert tuple(kernel_checks.CHECKS) == KERNELS


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
