"""Memory that operations borrow."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from solo_infer.runtime import scratch_memory as module
from solo_infer.runtime.scratch_memory import scratch_memory


@pytest.fixture(autouse=True)
def no_blocks(monkeypatch):
    monkeypatch.setattr(module, "_free", [])


def test_a_block_is_used_again():
    with scratch_memory(100) as memory:
        assert memory.shape == (100,) and memory.dtype == torch.float32
        address = memory.data_ptr()
        with scratch_memory(10) as other:
            assert other.data_ptr() != address
    with scratch_memory(50) as memory:
        assert memory.shape == (50,) and memory.data_ptr() == address
    with scratch_memory(101) as memory:
        assert memory.shape == (101,)


@pytest.mark.parametrize("first", [torch.inference_mode, torch.no_grad, torch.enable_grad])
@pytest.mark.parametrize("second", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_blocks_do_not_depend_on_the_mode_of_their_first_use(first, second):
    for mode in (first, second):
        with mode(), scratch_memory(4) as memory:
            torch.mm(torch.ones(2, 2), torch.ones(2, 2), out=memory.view(2, 2))
            assert memory.tolist() == [2, 2, 2, 2]


def test_an_error_returns_the_block():
    with pytest.raises(ValueError), scratch_memory(7) as memory:
        address = memory.data_ptr()
        raise ValueError
    with scratch_memory(7) as memory:
        assert memory.data_ptr() == address


def test_kept_memory_is_bounded(monkeypatch):
    monkeypatch.setattr(module, "MAX_KEPT", 100)
    with scratch_memory(60), scratch_memory(60), scratch_memory(30):
        pass
    assert sorted(map(len, module._free)) == [30, 60]
    with scratch_memory(101):
        pass
    assert sum(map(len, module._free)) <= 100


def test_threads_have_blocks_of_their_own():
    def fill(value):
        with scratch_memory(1000) as memory:
            memory.fill_(value)
            return bool((memory.square_() == value**2).all())

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(fill, range(200)))
