"""What a machine can do, and how it is told when it cannot."""

import json
from types import SimpleNamespace

import pytest
import torch

from solo_infer.errors import DeviceError
from solo_infer.runtime import device as devices
from solo_infer.runtime.device import (
    compile_allowed,
    cuda_problem,
    describe_devices,
    fast_paths,
    graphs_allowed,
    is_corex,
    preferred_dtype,
    probe,
    resolve_device,
    resolve_dtype,
    triton_allowed,
)

CPU = torch.device("cpu")


@pytest.fixture
def no_cuda(monkeypatch):
    """A torch with CUDA on a machine without a driver."""

    def refuse():
        raise RuntimeError("Found no NVIDIA driver on your system.\nMore of it.")

    monkeypatch.setattr(torch.version, "cuda", "12.1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.cuda, "init", refuse)


@pytest.fixture
def two_cards(monkeypatch):
    card = SimpleNamespace(name="Card", major=9, minor=0, total_memory=3 << 30, multi_processor_count=5)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: card)
    return card


def test_automatic_choice(no_cuda):
    assert resolve_device() == resolve_device("auto") == CPU


def test_automatic_choice_with_cards(two_cards):
    assert resolve_device("auto") == torch.device("cuda")


def test_given_device():
    assert resolve_device("cpu") == resolve_device(CPU) == CPU


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "", 1.5, "meta"])
def test_unknown_device(name):
    with pytest.raises(DeviceError, match="expected 'auto', 'cpu', 'cuda' or 'cuda:N'"):
        resolve_device(name)


def test_cuda_that_is_not_there_says_why(no_cuda):
    with pytest.raises(
        DeviceError, match=r"'cuda' is not available.*Found no NVIDIA driver.*Use device='cpu'"
    ):
        resolve_device("cuda")


def test_card_that_is_not_there(two_cards):
    with pytest.raises(DeviceError, match=r"'cuda:2': this machine has 2 CUDA device"):
        resolve_device("cuda:2")


def test_device_that_does_not_work_here(monkeypatch):
    def refuse(*args, **kwargs):
        raise NotImplementedError("Could not run it.\nLong list of backends")

    monkeypatch.setattr(torch, "zeros", refuse)
    with pytest.raises(DeviceError, match=r"'cpu' does not work here: Could not run it\.$"):
        resolve_device("cpu")


@pytest.mark.parametrize("name", ["float32", "float16", "bfloat16"])
def test_dtypes(name):
    dtype = getattr(torch, name)
    assert resolve_dtype(name) is resolve_dtype(dtype) is dtype


@pytest.mark.parametrize("dtype", ["float64", "half", torch.float64, torch.int8, None, 16])
def test_other_dtypes(dtype):
    with pytest.raises(DeviceError, match="expected one of float32, float16, bfloat16"):
        resolve_dtype(dtype)


def test_no_problem_with_cuda(two_cards):
    assert cuda_problem() == ""


def test_problem_without_driver(no_cuda):
    assert cuda_problem().endswith("finds no card or no driver (Found no NVIDIA driver on your system.)")


def test_problem_of_versions_that_differ(no_cuda, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert "driver and SDK versions differ (Found no" in cuda_problem()


def test_problem_without_a_reason(no_cuda, monkeypatch):
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    assert cuda_problem().endswith("(torch gives no reason)")


def test_problem_of_a_cpu_build(no_cuda, monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.version, "hip", None, raising=False)
    assert cuda_problem() == f"torch {torch.__version__} is a CPU-only build"


@pytest.mark.parametrize("place", ["attribute", "version", "package"])
def test_corex_is_recognized(place, monkeypatch):
    monkeypatch.setattr(devices.metadata, "version", lambda name: "2.1.0")
    assert not is_corex()
    if place == "attribute":
        monkeypatch.setattr(torch, "corex", True, raising=False)
    elif place == "version":
        monkeypatch.setattr(torch, "__version__", "2.1.0+corex.3.2")
    else:
        monkeypatch.setattr(devices.metadata, "version", lambda name: "2.1.0+corex.3.2")
    assert is_corex()


def test_corex_of_a_torch_that_pip_does_not_know(monkeypatch):
    def refuse(name):
        raise devices.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(devices.metadata, "version", refuse)
    assert not is_corex()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_probe_of_the_cpu(dtype):
    assert probe(CPU, dtype) == "ok"


def test_probe_tells_wrong_numbers(monkeypatch):
    conv, calls = torch.nn.functional.conv2d, []

    def zeros_the_second_time(*args, **kwargs):
        calls.append(1)
        return conv(*args, **kwargs) * (len(calls) == 1)

    monkeypatch.setattr(torch.nn.functional, "conv2d", zeros_the_second_time)
    assert probe(CPU, torch.float32).startswith("wrong by ")


@pytest.mark.parametrize("message, told", [("no kernel\nfor this", "no kernel"), ("", "RuntimeError")])
def test_probe_tells_a_failure(message, told, monkeypatch):
    conv, calls = torch.nn.functional.conv2d, []

    def fail_the_second_time(*args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError(message)
        return conv(*args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "conv2d", fail_the_second_time)
    assert probe(CPU, torch.float16) == f"fails: {told}"


def test_slow_dtypes_of_the_cpu(monkeypatch):
    seconds = {torch.float32: 1.0, torch.float16: 12.0, torch.bfloat16: 2.0}
    monkeypatch.setattr(devices, "_convolution_seconds", seconds.get)
    monkeypatch.setattr(devices, "probe", lambda device, dtype: "ok")
    (cpu,) = (device for device in describe_devices() if device["device"] == "cpu")
    assert cpu["works"] == {
        "float32": "ok",
        "float16": "slow: 12 times the time of float32",
        "bfloat16": "ok",
    }


def test_description_of_cards(two_cards, monkeypatch):
    monkeypatch.setattr(devices, "probe", lambda device, dtype: "ok")
    monkeypatch.setattr(devices, "_convolution_seconds", lambda dtype: 1.0)
    cpu, first, second = json.loads(json.dumps(describe_devices(), allow_nan=False))
    assert cpu["threads"] == torch.get_num_threads()
    assert (first["device"], second["device"]) == ("cuda:0", "cuda:1")
    assert (first["name"], first["capability"], first["memory_gib"]) == ("Card", "9.0", 3.0)
    assert not first["corex"]
    two_cards.name = "Iluvatar BI-V100"
    assert describe_devices()[1]["corex"]


@pytest.fixture
def card(two_cards, monkeypatch):
    """A modern NVIDIA card with Triton; tests change its properties."""
    devices._fast_paths.cache_clear()
    two_cards.major, two_cards.name = 9, "NVIDIA H200"
    monkeypatch.setattr(torch.version, "cuda", "12.1")
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(devices.importlib.util, "find_spec", lambda name: name)
    yield two_cards
    devices._fast_paths.cache_clear()


@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_fast_paths_of_a_modern_card(device, card):
    device = torch.device(device)
    assert triton_allowed(device) and graphs_allowed(device) and compile_allowed(device)
    assert preferred_dtype(device) == torch.float16


def test_fast_paths_of_the_cpu():
    assert not triton_allowed(CPU) and not graphs_allowed(CPU)
    assert preferred_dtype(CPU) == torch.float32


def test_no_triton_where_it_is_not_installed_or_makes_no_code(card, monkeypatch):
    card.major = 6
    assert not triton_allowed(torch.device("cuda:0")) and graphs_allowed(torch.device("cuda:0"))
    assert preferred_dtype(torch.device("cuda:0")) == torch.float32
    card.major = 9
    monkeypatch.setattr(devices.importlib.util, "find_spec", lambda name: None)
    assert not triton_allowed(torch.device("cuda:1")) and graphs_allowed(torch.device("cuda:1"))


@pytest.mark.parametrize("sign", ["name", "torch", "not CUDA"])
def test_only_plain_paths_where_fast_ones_are_unproven(sign, card, monkeypatch):
    card.major = 7  # as CoreX reports
    if sign == "name":
        card.name = "Iluvatar BI-V100"
    elif sign == "torch":
        monkeypatch.setattr(torch, "corex", True, raising=False)
    else:
        monkeypatch.setattr(torch.version, "cuda", None)
    assert fast_paths(torch.device("cuda")) == devices.NO_FAST_PATHS


def test_processor_is_named_or_at_least_its_kind(monkeypatch):
    assert describe_devices()[0]["name"]

    class Unreadable:
        def __init__(self, path):
            assert path == "/proc/cpuinfo"

        def read_text(self, **options):
            raise PermissionError("not for you")

    monkeypatch.setattr(devices, "Path", Unreadable)
    monkeypatch.setattr(devices.platform, "processor", lambda: "")
    monkeypatch.setattr(devices.platform, "machine", lambda: "riscv64")
    assert devices._cpu_name() == "riscv64"
