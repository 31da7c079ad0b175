"""Tensors in memory that is kept."""

import gc
import multiprocessing
import random
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from solo_infer.runtime import kept_memory
from solo_infer.runtime.kept_memory import Memory

PAGE = 4096
SIZE = 64 * PAGE


@pytest.fixture(autouse=True)
def memory(monkeypatch):
    memory = Memory(SIZE)
    monkeypatch.setattr(kept_memory, "_memory", lambda: memory)
    if not memory.take(1):
        pytest.skip("this system keeps no memory")
    return memory


def tensor(pages):
    return kept_memory.empty((pages * PAGE // 4,))


def is_kept(x, memory):
    start = torch.frombuffer(memory._bytes, dtype=torch.uint8).data_ptr()
    return start <= x.data_ptr() < start + SIZE


def test_shape_and_type():
    x = kept_memory.empty((2, 300, 70), torch.bfloat16)
    assert x.shape == (2, 300, 70) and x.dtype == torch.bfloat16 and x.device.type == "cpu"
    assert x.is_contiguous() and x.data_ptr() % 64 == 0
    assert kept_memory.empty(()).shape == () and kept_memory.empty((0, 3)).shape == (0, 3)


def test_freed_memory_is_used_again(memory):
    x = tensor(20)
    address = x.data_ptr()
    view = x[5:].view(-1)
    del x
    other = tensor(20)
    assert is_kept(other, memory) and other.data_ptr() != address  # the view is still there
    del view
    assert tensor(20).data_ptr() == address


def test_memory_is_taken_until_it_is_full(memory):
    tensors = [tensor(16) for _ in range(4)]
    assert all(is_kept(x, memory) for x in tensors)
    assert len({x.data_ptr() for x in tensors}) == 4
    assert not is_kept(tensor(16), memory)
    del tensors[1:3]
    assert is_kept(tensor(32), memory)  # adjacent parts are one again
    assert not is_kept(tensor(33), memory)


def test_small_tensors_take_memory_of_their_own(memory):
    assert not is_kept(kept_memory.empty((10,)), memory)


def test_any_order_of_requests_and_releases(memory):
    choose, tensors = random.Random(0), []
    for step in range(2000):
        if tensors and (choose.random() < 0.5 or len(tensors) > 12):
            x, value = tensors.pop(choose.randrange(len(tensors)))
            assert bool((x == value).all())
        else:
            tensors.append((tensor(choose.randint(16, 24)).fill_(step), step))
    del x
    tensors.clear()
    assert is_kept(tensor(64), memory)


@pytest.mark.parametrize("first", [torch.inference_mode, torch.no_grad, torch.enable_grad])
@pytest.mark.parametrize("second", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_tensors_do_not_depend_on_the_mode_of_the_first_use(first, second):
    for mode in (first, second):
        with mode():
            x = tensor(16)
            torch.mm(torch.ones(2, 2), torch.ones(2, 2), out=x[:4].view(2, 2))
            assert x[:4].tolist() == [2, 2, 2, 2]


def test_threads_have_tensors_of_their_own(memory):
    def fill(value):
        x = tensor(16 + value % 5).fill_(value)
        return bool((x.square_() == value**2).all())

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(fill, range(400)))
    gc.collect()
    assert is_kept(tensor(64), memory)


def test_a_thread_that_is_taking_memory_delays_no_other(memory):
    with memory._lock:
        x = tensor(16)
    assert not is_kept(x, memory)
    assert is_kept(tensor(16), memory)


def test_tensors_outlive_the_memory():
    memory = Memory(SIZE)
    x = torch.frombuffer(memory.take(SIZE), dtype=torch.float32).fill_(3)
    del memory
    gc.collect()
    assert x.sum() == 3 * SIZE / 4


def test_system_without_memory(monkeypatch, caplog):
    def refuse(*_arguments, **_options):
        raise OSError("no memory")

    monkeypatch.setattr(kept_memory.mmap, "mmap", refuse)
    with caplog.at_level("INFO", "solo_infer"):
        memory = Memory(SIZE)
    assert memory.take(10) is None and "no memory" in caplog.text


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="cannot fork")
def test_forked_process_has_memory_of_its_own(memory):
    x = tensor(16).fill_(1)
    queue = multiprocessing.get_context("fork").SimpleQueue()

    def work():
        x.fill_(2)
        y = tensor(16).fill_(3)
        queue.put((is_kept(y, memory), x[0].item(), y[0].item(), y.data_ptr() != x.data_ptr()))

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join(60)
    assert process.exitcode == 0 and queue.get() == (True, 2, 3, True)
    assert bool((x == 1).all()) and is_kept(tensor(16), memory)


def test_keep_freed_memory_can_be_called_again():
    kept_memory.keep_freed_memory()
    kept_memory.keep_freed_memory()
