"""Choice between a PyTorch function and its kernel."""

import logging
import pickle
import subprocess
import sys
import types
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from solo_infer.errors import ConfigError, DeviceError
from solo_infer.ops import dispatch
from solo_infer.ops.dispatch import triton_kernel
from solo_infer.ops.group_norm_relu import group_norm_relu

CPU = torch.device("cpu")
needs_compiler_api = pytest.mark.skipif(
    not hasattr(torch.compiler, "is_compiling"), reason="torch is older than 2.3"
)


@pytest.fixture(autouse=True)
def no_failures(monkeypatch):
    monkeypatch.setattr(dispatch, "_failed", {})


@pytest.fixture
def triton_is_allowed(monkeypatch):
    devices = []
    monkeypatch.setattr(dispatch, "triton_allowed", lambda device: devices.append(device) or True)
    return devices


@pytest.fixture
def add_kernel(monkeypatch):
    """Return a function that registers a kernel and returns its import name."""

    def add(kernel):
        monkeypatch.setitem(sys.modules, "fake_kernels", types.SimpleNamespace(kernel=kernel))
        return "fake_kernels:kernel"

    return add


def total_with(implementation, **options):
    @triton_kernel("total", implementation, **options)
    def total(x, offset=0):
        """Return the sum."""
        return float(x.sum()) + offset

    return total


class CompilationError(Exception):
    """Has the module of Triton's exceptions."""


CompilationError.__module__ = "triton.compiler.errors"


class InheritedError(CompilationError):
    """Derives from one of Triton's exceptions."""


def test_kernel_runs_with_the_same_arguments(triton_is_allowed, add_kernel):
    calls = []
    total = total_with(add_kernel(lambda *args, **kwargs: calls.append((args, kwargs)) or "kernel"))
    x = torch.ones(2)
    assert total(x, offset=1) == total(x=x) == "kernel"
    assert calls == [((x,), {"offset": 1}), ((), {"x": x})]
    assert triton_is_allowed == [CPU, CPU]
    assert total.reference(x, 1) == 3.0
    assert (total.__name__, total.__doc__) == ("total", "Return the sum.")


def test_no_kernel_if_triton_is_not_allowed(monkeypatch, add_kernel):
    monkeypatch.setattr(dispatch, "triton_allowed", lambda device: False)
    assert total_with(add_kernel(lambda x: "kernel"))(torch.ones(2)) == 2.0


def test_no_kernel_on_the_cpu(add_kernel):
    assert total_with(add_kernel(lambda x: "kernel"))(torch.ones(2)) == 2.0


def test_device_argument_has_precedence(triton_is_allowed, add_kernel):
    @triton_kernel("move", add_kernel(lambda *args, **kwargs: "kernel"))
    def move(x, device):
        return "reference"

    meta = torch.device("meta")
    assert move(torch.ones(1), meta) == move(torch.ones(1), device=meta) == "kernel"
    assert triton_is_allowed == [meta, meta]
    assert move(torch.ones(1), device=None) == "reference"


def test_reference_runs_without_tensors(triton_is_allowed, add_kernel):
    @triton_kernel("identity", add_kernel(lambda *args: "kernel"))
    def identity(x):
        return x

    assert identity(3) == 3 and triton_is_allowed == []


def test_supports_declines_arguments(triton_is_allowed, add_kernel):
    kernel = add_kernel(lambda *args, **kwargs: "kernel")
    total = total_with(kernel, supports=lambda x, offset=0: offset == 0)
    assert total(torch.ones(2)) == "kernel"
    assert total(torch.ones(2), offset=1) == 3.0
    assert dispatch.failures() == {}


def test_failure_is_logged_once_and_the_kernel_is_not_tried_again(triton_is_allowed, add_kernel, caplog):
    tries = []

    def fail(x):
        tries.append(1)
        raise OSError("no compiler\nhere")

    total = total_with(add_kernel(fail))
    with caplog.at_level(logging.WARNING, "solo_infer"):
        assert [total(torch.ones(7)) for _ in range(3)] == [7, 7, 7]
    assert len(tries) == 1
    assert [record.getMessage() for record in caplog.records] == [
        "The Triton kernel 'total' failed, its PyTorch implementation is used: OSError: no compiler"
    ]
    assert dispatch.failures() == {"total": "OSError: no compiler"}


def test_other_kernels_run_after_a_failure(triton_is_allowed, add_kernel):
    dispatch._failed["product"] = "OSError: no compiler"
    assert total_with(add_kernel(lambda x: 8))(torch.ones(7)) == 8


@pytest.mark.parametrize(
    "error",
    [
        ImportError("no triton"),
        OSError("no compiler"),
        subprocess.CalledProcessError(1, "ptxas"),
        RuntimeError("PassManager::run failed"),
        CompilationError("at 3:5"),
        InheritedError("out of resources"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_of_compiler_and_device_switch_the_kernel_off(error, triton_is_allowed, add_kernel):
    def fail(x):
        raise error

    assert total_with(add_kernel(fail))(torch.ones(7)) == 7
    assert dispatch.failures()["total"].startswith(type(error).__name__)


@pytest.mark.parametrize(
    "error",
    [
        torch.cuda.OutOfMemoryError("full"),
        ConfigError("kernel='box'"),
        DeviceError("no such device"),
        TypeError("missing argument"),
        ValueError("shape"),
        AssertionError("shape"),
        KeyError("name"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_other_errors_propagate(error, triton_is_allowed, add_kernel):
    def fail(x):
        raise error

    with pytest.raises(type(error)):
        total_with(add_kernel(fail))(torch.ones(7))
    assert dispatch.failures() == {}


def test_missing_kernel_module(triton_is_allowed):
    assert total_with("solo_infer.ops.triton.no_such_module:kernel")(torch.ones(7)) == 7
    assert dispatch.failures()["total"].startswith("ModuleNotFoundError")


@needs_compiler_api
def test_export_traces_the_reference(triton_is_allowed):
    class Layer(torch.nn.Module):
        def forward(self, x):
            return group_norm_relu(x, 2, torch.ones(4), torch.zeros(4), 1e-5)

    x = torch.randn(1, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    exported = torch.export.export(Layer(), (x,))
    assert triton_is_allowed == []
    assert "group_norm" in str(exported.graph)
    torch.testing.assert_close(exported.module()(x), torch.nn.functional.group_norm(x, 2).relu())


@needs_compiler_api
def test_compile_traces_the_reference(triton_is_allowed):
    compiled = torch.compile(
        lambda x: group_norm_relu(x, 2, torch.ones(4), torch.zeros(4), 1e-5), backend="eager", fullgraph=True
    )
    x = torch.randn(1, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(compiled(x), torch.nn.functional.group_norm(x, 2).relu())
    assert triton_is_allowed == []


def test_dispatched_functions_can_be_pickled():
    assert pickle.loads(pickle.dumps(group_norm_relu)) is group_norm_relu


def test_tracing_holds_for_its_thread_until_it_ends():
    assert not dispatch.is_compiling()
    with dispatch.tracing():
        with dispatch.tracing():
            assert dispatch.is_compiling()
        assert dispatch.is_compiling()
        with ThreadPoolExecutor(1) as pool:
            assert not pool.submit(dispatch.is_compiling).result()
    assert not dispatch.is_compiling()
