"""Threads that compute with one thread of torch each."""

import os
import threading

import pytest
import torch

from solo_infer.runtime import thread_pool
from solo_infer.runtime.thread_pool import can_limit_threads, run_in_threads, thread_count


@pytest.fixture
def two_threads():
    """Compute with two threads of torch, each of which can be limited."""
    if not can_limit_threads():
        pytest.skip("this build of torch cannot limit the threads of one thread")
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def counts():
    """Return the numbers of threads of the calling thread that torch reports."""
    return set(thread_pool._THREAD_COUNT.findall(torch.__config__.parallel_info()))


def test_tasks_compute_with_one_thread(two_threads):
    seen, lock = [], threading.Lock()

    def task():
        with lock:
            seen.append((threading.get_ident(), frozenset(counts())))

    run_in_threads([task] * 20)
    assert len(seen) == 20 and {count for _, count in seen} == {frozenset({"1"})}
    identifiers = {identifier for identifier, _ in seen}
    assert len(identifiers) <= 2 and threading.get_ident() not in identifiers


def test_other_threads_keep_their_number(two_threads):
    run_in_threads([lambda: None] * 2)
    later = []
    thread = threading.Thread(target=lambda: later.append(counts()))
    thread.start()
    thread.join()
    assert counts() == {"2"} and later == [{"2"}]


def test_both_threads_work(two_threads):
    barrier = threading.Barrier(2, timeout=60)
    run_in_threads([barrier.wait] * 2)


@pytest.mark.parametrize("limited", [True, False])
def test_tasks_run_in_the_calling_thread_if_the_count_is_one(two_threads, monkeypatch, limited):
    if limited:
        torch.set_num_threads(1)
    else:
        monkeypatch.setattr(thread_pool, "can_limit_threads", lambda: False)
    assert thread_count() == 1
    identifiers = []
    run_in_threads([lambda: identifiers.append(threading.get_ident())] * 3)
    assert identifiers == [threading.get_ident()] * 3


def test_tasks_may_run_tasks(two_threads):
    results = []
    run_in_threads([lambda: run_in_threads([lambda: results.append(1)] * 2)] * 3)
    assert results == [1] * 6


@pytest.mark.parametrize("inference_mode", [True, False])
def test_modes_of_the_tasks(two_threads, inference_mode):
    modes = []
    with torch.inference_mode(inference_mode):
        out = torch.zeros(2)
        run_in_threads(
            [
                lambda: (
                    out.add_(1),
                    modes.append((torch.is_inference_mode_enabled(), torch.is_grad_enabled())),
                )
            ]
        )
    assert modes == [(inference_mode, False)] and out.tolist() == [1, 1]


def test_first_error_ends_the_run(two_threads):
    done = []

    def fail():
        raise MemoryError("no memory")

    with pytest.raises(MemoryError, match="no memory"):
        run_in_threads([fail, fail, *[lambda: done.append(1)] * 50])
    assert len(done) < 50
    run_in_threads([lambda: done.append(2)])  # the threads live on
    assert done[-1] == 2


def test_concurrent_callers_share_the_threads(two_threads):
    totals = [0] * 6
    identifiers = set()

    def call(index):
        def add():
            totals[index] += 1
            identifiers.add(threading.get_ident())

        torch.set_num_threads(2)
        run_in_threads([add])
        run_in_threads([add])

    callers = [threading.Thread(target=call, args=(index,)) for index in range(6)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert totals == [2] * 6 and len(identifiers) <= 2


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_child_process_starts_threads_of_its_own(two_threads):
    run_in_threads([lambda: None] * 2)
    child = os.fork()
    if child == 0:
        try:
            done = []
            thread_pool._pools.get(2).submit(done.append, 1).result(60)
            os._exit(7 if done == [1] else 1)
        except BaseException:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
