"""The way to the slots asks the device nothing and copies nothing from the host: what a CUDA graph may hold.

Fake CUDA tensors have shapes and devices, but no numbers: whoever wants to know one fails.
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
from solo_infer.inference import solo_static
from solo_infer.models import build_network
from solo_infer.models.optimized.static_masks import CellTable
from solo_infer.ops import dispatch

NEEDS_NUMBERS = (DataDependentOutputException, DynamicOutputShapeException)


class OnlyOneDevice(TorchDispatchMode):
    """Refuse every operation that has to do with a tensor of the host."""

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        found = operation(*args, **(kwargs or {}))
        devices = {tensor.device.type for tensor in tensors_in([args, kwargs, found])}
        assert devices <= {"cuda"}, f"{operation} touches {devices}"
        return found


def tensors_in(value):
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        yield from tensors_in(list(value.values()))
    elif isinstance(value, list | tuple):
        for part in value:
            yield from tensors_in(part)


@pytest.fixture
def fake_card(monkeypatch):
    monkeypatch.setattr(dispatch, "triton_allowed", lambda device: False)
    with FakeTensorMode(), torch.no_grad():
        try:
            torch.empty(1, device="cuda")
        except RuntimeError as error:
            pytest.skip(f"this torch wants a card even for fake tensors: {error}")
        yield torch.device("cuda")


@pytest.mark.parametrize("kernel", ["gaussian", "linear"])
@pytest.mark.parametrize("head", HEADS)
def test_nothing_is_waited_for(head, kernel, fake_card):
    config = small_config(head).architecture
    network = build_network(config, device="cuda")
    for parameter in network.parameters():
        parameter.data = parameter.data.half()
    for buffer in network.buffers():
        buffer.data = buffer.data.half() if buffer.is_floating_point() else buffer.data
    inputs = torch.empty(2, 3, 96, 160, device=fake_card, dtype=torch.float16)
    inputs = inputs.contiguous(memory_format=torch.channels_last)
    table = CellTable.of(config, torch.device("cpu"))
    table = CellTable(*(part.to(fake_card) for part in table))
    wanted = torch.ones(config.num_classes, device=fake_card)
    with OnlyOneDevice():
        features = solo_static.extract(network, inputs, wanted)
        found = solo_static.detect(network, features, table, PostprocessConfig(kernel=kernel), 512)
    assert features.scores.dtype == found.scores.dtype == found.masks.dtype == torch.float32
    assert features.levels[0].dtype == torch.float16
    assert found.scores.shape == (2, 100) and found.masks.shape == (2, 100, 24, 40)


def test_the_check_finds_what_it_looks_for(fake_card):
    x = torch.empty(4, device=fake_card)
    with pytest.raises(NEEDS_NUMBERS):
        torch.nonzero(x)
    with pytest.raises(NEEDS_NUMBERS):
        float(x.sum())
    with pytest.raises(AssertionError, match="touches"), OnlyOneDevice():
        torch.ones(4).to(fake_card)
