"""Compiled kernels: where they are, and what happens where they are not."""

import ctypes
import platform
import shutil
import subprocess
import sys

import pytest
import torch

from solo_infer.ops.native import library
from solo_infer.ops.native.library import kernel_library, load_kernels
from solo_infer.runtime.native_library import instruction_sets, load_library

COMPILES = (sys.platform, platform.machine()) == ("linux", "x86_64") and any(
    map(shutil.which, ("c++", "g++", "clang++"))
)


@pytest.fixture(autouse=True)
def uncached_library():
    load_kernels.cache_clear()
    yield
    load_kernels.cache_clear()


@pytest.mark.skipif(not COMPILES, reason="the kernels are not compiled on this system")
def test_kernels_are_installed_where_they_can_be_compiled():
    """``pip install -e .`` compiles them again after a change."""
    for name in instruction_sets():
        assert load_kernels(name).instructions == name
    if instruction_sets():
        assert kernel_library().instructions == instruction_sets()[0]


@pytest.mark.parametrize(
    ("capability", "expected"),
    [("AVX512", ("avx512", "avx2")), ("AVX2", ("avx2",)), ("DEFAULT", ()), ("NO AVX", ()), ("VSX", ())],
)
def test_instruction_sets(capability, expected, monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert instruction_sets() == expected


def test_capability_of_torch_limits_the_kernels():
    code = "from solo_infer.runtime.native_library import instruction_sets; print(*instruction_sets())"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"ATEN_CPU_CAPABILITY": "default", "PATH": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == ""


def test_no_library_without_openmp(monkeypatch):
    monkeypatch.setattr(library, "openmp_address", lambda name: None)
    assert kernel_library() is None


def test_missing_library(tmp_path, caplog):
    caplog.set_level("INFO", "solo_infer")
    assert load_library(tmp_path / "kernels_avx2.so", 1) is None
    assert "kernels_avx2.so is not installed" in caplog.text


def test_broken_library(tmp_path, caplog):
    path = tmp_path / "kernels_avx2.so"
    path.write_bytes(b"no library")
    assert load_library(path, 1) is None
    assert "cannot be loaded" in caplog.text and "install solo_infer again" in caplog.text


def test_library_of_another_version(monkeypatch, caplog):
    if kernel_library() is None:
        pytest.skip("the kernels are not installed")
    monkeypatch.setattr(library, "_INTERFACE_VERSION", 0)
    load_kernels.cache_clear()
    assert kernel_library() is None
    assert "instead of 0" in caplog.text


@pytest.mark.parametrize("shape", [(1, 5, 3), (2, 64, 64), (3, 7, 70)])
def test_packed_weights(shape):
    kernels = kernel_library()
    if kernels is None:
        pytest.skip("the kernels are not installed")
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    packed = kernels.pack(weight)
    count, panels, channels, columns = packed.shape
    assert (count, channels, columns) == (*shape[:2], kernels.block_columns)
    columns = packed.transpose(1, 2).flatten(2)
    assert torch.equal(columns[..., : shape[2]], weight) and not columns[..., shape[2] :].any()
    assert packed.is_contiguous()


def test_address_of_openmp_is_callable():
    kernels = kernel_library()
    if kernels is None:
        pytest.skip("the kernels are not installed")
    calls = []
    function = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(calls.append)
    parallel = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
    parallel(kernels.parallel)(ctypes.cast(function, ctypes.c_void_p), 7, 1, 0)
    assert calls == [7]
