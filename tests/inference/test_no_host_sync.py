"""The static path never synchronizes with the host and copies nothing from it, as a CUDA graph requires.

Fake CUDA tensors have shapes and devices but no values: reading a value raises an error.
"""

import pytest
import torch
from helpers.models import HEADS, small_config
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from torch.utils._python_dispatch import TorchDispatchMode

from solo_infer import PostprocessConfig
from solo_infer.inference import solo, solo_static
from solo_infer.models import build_network
from solo_infer.models.optimized import module_swaps
from solo_infer.models.optimized.optimize import optimize_for_inference
from solo_infer.ops import dispatch
from solo_infer.runtime.stopwatch import Stopwatch

READS_VALUES = (DataDependentOutputException, DynamicOutputShapeException)


class CudaOnly(TorchDispatchMode):
    """Fail on every operation with a tensor on the host."""

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        devices = {tensor.device.type for tensor in tensors_in([args, kwargs, result])}
        assert devices <= {"cuda"}, f"{operation} touches {devices}"
        return result


def tensors_in(value):
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        yield from tensors_in(list(value.values()))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors_in(item)


@pytest.fixture
def fake_cuda(monkeypatch):
    monkeypatch.setattr(dispatch, "triton_allowed", lambda device: False)
    with FakeTensorMode(), torch.no_grad():
        try:
            torch.empty(1, device="cuda")
        except RuntimeError as error:
            pytest.skip(f"this torch needs a GPU even for fake tensors: {error}")
        yield torch.device("cuda")


@pytest.fixture(params=HEADS)
def network(request, monkeypatch):
    """Return a float16 network optimized as for a GPU, on the CPU and made before fake tensors are."""
    monkeypatch.setattr(module_swaps, "operators_work", lambda device, dtype: False)
    return optimize_for_inference(build_network(small_config(request.param).architecture).half())


def make_fake(network, device):
    """Replace the parameters and buffers of a network by fake tensors on a device."""
    for module in network.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    fake = torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
                    tensors[name] = torch.nn.Parameter(fake) if tensors is module._parameters else fake


@pytest.mark.parametrize("kernel", ["gaussian", "linear"])
def test_static_path_does_not_synchronize(kernel, network, fake_cuda):
    make_fake(network, fake_cuda)
    inputs = torch.empty(2, 3, 96, 160, device=fake_cuda, dtype=torch.float16)
    inputs = inputs.contiguous(memory_format=torch.channels_last)
    class_mask = torch.ones(network.config.num_classes, device=fake_cuda)
    thresholds, stopwatch = PostprocessConfig(kernel=kernel), Stopwatch()
    with CudaOnly():
        features = solo.extract_features(network, inputs, class_mask, stopwatch)
        detections = solo_static.detect_static(network, features, thresholds, 512, stopwatch)
    assert features.scores.dtype == detections.scores.dtype == detections.masks.dtype == torch.float32
    assert features.levels[0].dtype == torch.float16
    assert detections.scores.shape == (2, 100) and detections.masks.shape == (2, 100, 24, 40)


def test_reads_and_copies_are_detected(fake_cuda):
    x = torch.empty(4, device=fake_cuda)
    with pytest.raises(READS_VALUES):
        torch.nonzero(x)
    with pytest.raises(READS_VALUES):
        float(x.sum())
    with pytest.raises(AssertionError, match="touches"), CudaOnly():
        torch.ones(4).to(fake_cuda)
