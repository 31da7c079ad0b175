"""Device and dtype selection, fast paths, and their error messages."""

import pytest
import torch

from solo_infer.errors import DeviceError
from solo_infer.runtime import device as device_module
from solo_infer.runtime.device import (
    compile_allowed,
    cuda_problem,
    fast_paths,
    graphs_allowed,
    is_corex,
    probe,
    resolve_device,
    resolve_dtype,
    triton_allowed,
)

CPU = torch.device("cpu")


@pytest.fixture
def no_cuda(monkeypatch):
    """Simulate a CUDA build of torch on a machine without a driver."""

    def refuse():
        raise RuntimeError("Found no NVIDIA driver on your system.\nMore lines.")

    monkeypatch.setattr(torch.version, "cuda", "12.1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.cuda, "init", refuse)


def test_auto_selects_the_cpu_without_cuda(no_cuda):
    assert resolve_device() == resolve_device("auto") == CPU


def test_auto_selects_cuda(two_cards):
    assert resolve_device("auto") == torch.device("cuda")


def test_cpu_device():
    assert resolve_device("cpu") == resolve_device(CPU) == CPU


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "", 1.5, "meta"])
def test_unknown_devices_raise(name):
    with pytest.raises(DeviceError, match="expected 'auto', 'cpu', 'cuda' or 'cuda:N'"):
        resolve_device(name)


def test_missing_cuda_raises_with_the_reason(no_cuda):
    with pytest.raises(
        DeviceError, match=r"'cuda' is not available.*Found no NVIDIA driver.*Use device='cpu'"
    ):
        resolve_device("cuda")


def test_missing_card_raises(two_cards):
    with pytest.raises(DeviceError, match=r"'cuda:2': this machine has 2 CUDA device"):
        resolve_device("cuda:2")


def test_broken_device_raises(monkeypatch):
    def refuse(*args, **kwargs):
        raise NotImplementedError("Could not run it.\nLong list of backends")

    monkeypatch.setattr(torch, "zeros", refuse)
    with pytest.raises(DeviceError, match=r"'cpu' does not work here: Could not run it\.$"):
        resolve_device("cpu")


@pytest.mark.parametrize("name", ["float32", "float16", "bfloat16"])
def test_supported_dtypes(name):
    dtype = getattr(torch, name)
    assert resolve_dtype(name) is resolve_dtype(dtype) is dtype


@pytest.mark.parametrize("dtype", ["float64", "half", torch.float64, torch.int8, None, 16])
def test_unsupported_dtypes_raise(dtype):
    with pytest.raises(DeviceError, match="expected one of float32, float16, bfloat16"):
        resolve_dtype(dtype)


def test_cuda_problem_is_empty_with_cuda(two_cards):
    assert cuda_problem() == ""


def test_cuda_problem_without_driver(no_cuda):
    assert cuda_problem().endswith(
        "finds no CUDA device or no driver (Found no NVIDIA driver on your system.)"
    )


def test_cuda_problem_of_mismatched_versions(no_cuda, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert "driver and SDK versions differ (Found no" in cuda_problem()


def test_cuda_problem_without_a_reason(no_cuda, monkeypatch):
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    assert cuda_problem().endswith("(torch gives no reason)")


def test_cuda_problem_of_a_cpu_build(no_cuda, monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.version, "hip", None, raising=False)
    assert cuda_problem() == f"torch {torch.__version__} is a CPU-only build"


@pytest.mark.parametrize("marker", ["attribute", "version", "package"])
def test_corex_is_recognized(marker, monkeypatch):
    monkeypatch.setattr(device_module.metadata, "version", lambda name: "2.1.0")
    assert not is_corex()
    if marker == "attribute":
        monkeypatch.setattr(torch, "corex", True, raising=False)
    elif marker == "version":
        monkeypatch.setattr(torch, "__version__", "2.1.0+corex.3.2")
    else:
        monkeypatch.setattr(device_module.metadata, "version", lambda name: "2.1.0+corex.3.2")
    assert is_corex()


def test_torch_without_package_metadata_is_not_corex(monkeypatch):
    def refuse(name):
        raise device_module.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(device_module.metadata, "version", refuse)
    assert not is_corex()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_probe_passes_on_the_cpu(dtype):
    assert probe(CPU, dtype) == "ok"


def test_probe_reports_wrong_results(monkeypatch):
    conv, calls = torch.nn.functional.conv2d, []

    def zeros_the_second_time(*args, **kwargs):
        calls.append(1)
        return conv(*args, **kwargs) * (len(calls) == 1)

    monkeypatch.setattr(torch.nn.functional, "conv2d", zeros_the_second_time)
    assert probe(CPU, torch.float32).startswith("wrong by ")


@pytest.mark.parametrize("message, reason", [("no kernel\nfor this", "no kernel"), ("", "RuntimeError")])
def test_probe_reports_errors(message, reason, monkeypatch):
    conv, calls = torch.nn.functional.conv2d, []

    def fail_the_second_time(*args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError(message)
        return conv(*args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "conv2d", fail_the_second_time)
    assert probe(CPU, torch.float16) == f"fails: {reason}"


@pytest.fixture
def card(two_cards, monkeypatch):
    """Simulate a modern NVIDIA card with Triton whose properties tests can change."""
    device_module._fast_paths.cache_clear()
    two_cards.major, two_cards.name = 9, "NVIDIA H200"
    monkeypatch.setattr(torch.version, "cuda", "12.1")
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(device_module.importlib.util, "find_spec", lambda name: name)
    yield two_cards
    device_module._fast_paths.cache_clear()


@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_fast_paths_of_a_modern_card(device, card):
    device = torch.device(device)
    assert triton_allowed(device) and graphs_allowed(device) and compile_allowed(device)
    assert fast_paths(device).dtype == torch.float16


def test_fast_paths_of_the_cpu():
    assert not triton_allowed(CPU) and not graphs_allowed(CPU)
    assert fast_paths(CPU).dtype == torch.float32


def test_no_triton_if_not_installed_or_not_supported(card, monkeypatch):
    card.major = 6
    assert not triton_allowed(torch.device("cuda:0")) and graphs_allowed(torch.device("cuda:0"))
    assert fast_paths(torch.device("cuda:0")).dtype == torch.float32
    card.major = 9
    monkeypatch.setattr(device_module.importlib.util, "find_spec", lambda name: None)
    assert not triton_allowed(torch.device("cuda:1")) and graphs_allowed(torch.device("cuda:1"))


@pytest.mark.parametrize("reason", ["name", "torch", "not CUDA"])
def test_no_fast_paths_on_untested_devices(reason, card, monkeypatch):
    card.major = 7  # as CoreX reports
    if reason == "name":
        card.name = "Iluvatar BI-V100"
    elif reason == "torch":
        monkeypatch.setattr(torch, "corex", True, raising=False)
    else:
        monkeypatch.setattr(torch.version, "cuda", None)
    assert fast_paths(torch.device("cuda")) == device_module.NO_FAST_PATHS
