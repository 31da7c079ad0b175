"""Numbers of threads on busy machines, with a process file system that is made here."""

import os
import subprocess
import sys
import threading
import time

import pytest
import torch

from solo_infer.runtime import busy_cpus, environment, thread_pool
from solo_infer.runtime.busy_cpus import ThreadLimiter, suitable_threads
from solo_infer.runtime.thread_pool import can_limit_threads, limited_threads

CPU = torch.device("cpu")


class FakeProc:
    """A process file system with one own thread that runs, and other work.

    Args:
        path: Directory to write to.
    """

    def __init__(self, path):
        self.path, self.waited = path, 0.0
        (path / "self/task/7").mkdir(parents=True)
        (path / "self/task/7/stat").write_text("7 (a) R) R 1 1")
        (path / "self/task/8").mkdir()  # a thread that has just ended
        self.others(0)
        self.wait(0.0)

    def others(self, count):
        (self.path / "loadavg").write_text(f"0.50 0.40 0.30 {count + 1}/80 4711\n")

    def wait(self, seconds):
        self.waited += seconds
        (self.path / "self/task/7/schedstat").write_text(f"123 {int(self.waited * 1e9)} 4\n")


@pytest.fixture
def proc(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(busy_cpus, "quota_threads", lambda: None)
    monkeypatch.setattr(busy_cpus, "_MIN_SECONDS", 0.0)
    return FakeProc(tmp_path)


@pytest.fixture
def eight_threads():
    if not can_limit_threads():
        pytest.skip("this build of torch cannot limit the threads of one thread")
    before = torch.get_num_threads()
    torch.set_num_threads(8)
    yield
    torch.set_num_threads(before)


def used(limiter, seconds=0.0):
    """Return the number of threads of a computation."""
    with limiter.limit():
        if seconds:
            time.sleep(seconds)
        return torch.get_num_threads()


@pytest.mark.parametrize("others, expected", [(0, 8), (1, 4), (4, 4), (5, 2), (6, 2), (7, 1), (30, 1)])
def test_first_computation_uses_the_free_cpus(proc, eight_threads, others, expected):
    proc.others(others)
    assert used(ThreadLimiter(proc.path)) == expected
    assert torch.get_num_threads() == 8


def test_threads_are_limited_once_they_wait_for_cpus(proc, eight_threads):
    limiter = ThreadLimiter(proc.path)
    assert used(limiter) == 8
    proc.others(6)  # without effect as long as no thread waits
    assert used(limiter, 0.02) == 8
    with limiter.limit():
        proc.wait(1.0)
    assert used(limiter) == 2
    assert used(limiter) == 2
    proc.others(0)
    assert [used(limiter, 0.02), used(limiter)] == [8, 8]


def test_short_work_of_others_does_not_count(proc, eight_threads, monkeypatch):
    samples = iter([1, 0])
    proc.others(4)
    monkeypatch.setattr(time, "sleep", lambda seconds: proc.others(next(samples)))
    assert used(ThreadLimiter(proc.path)) == 8


def test_simultaneous_computations_share_the_cpus(proc, eight_threads):
    limiter = ThreadLimiter(proc.path)
    with limiter.limit():
        assert torch.get_num_threads() == 8
        seen = []

        def compute():
            torch.get_num_threads()
            with limiter.limit():
                seen.append(torch.get_num_threads())

        thread = threading.Thread(target=compute)
        thread.start()
        thread.join()
    assert seen == [4]


def test_quota(proc, eight_threads, monkeypatch):
    monkeypatch.setattr(busy_cpus, "quota_threads", lambda: 3)
    assert used(ThreadLimiter(proc.path)) == 2


def test_errors_leave_the_number_as_it_was(proc, eight_threads):
    proc.others(7)
    limiter = ThreadLimiter(proc.path)
    with pytest.raises(KeyError), limiter.limit():
        raise KeyError
    assert torch.get_num_threads() == 8 and limiter._active == 0


@pytest.mark.parametrize("missing", ["loadavg", "self/task/7/stat", "self/task/7/schedstat"])
def test_systems_that_do_not_tell_the_load(proc, eight_threads, missing):
    (proc.path / missing).unlink()
    (proc.path / missing).write_text("?")
    limiter = ThreadLimiter(proc.path)
    assert [used(limiter), used(limiter)] == [8, 8]


def test_systems_without_such_files(tmp_path, eight_threads):
    limiter = ThreadLimiter(tmp_path / "nothing")
    assert [used(limiter), used(limiter)] == [8, 8]


def test_number_is_kept_where_it_was_fixed(monkeypatch, eight_threads):
    class Busy:
        def limit(self):
            return limited_threads(1)

    monkeypatch.setattr(busy_cpus, "_limiter", Busy())

    def count(device=CPU):
        with suitable_threads(device):
            return torch.get_num_threads()

    monkeypatch.setenv(environment.ADAPT_THREADS, "1")
    assert count() == 1
    assert count(torch.device("cuda")) == 8
    monkeypatch.setenv(environment.ADAPT_THREADS, "0")
    assert count() == 8
    monkeypatch.delenv(environment.ADAPT_THREADS)
    assert count() == 1
    torch.use_deterministic_algorithms(True)
    try:
        assert count() == 8
    finally:
        torch.use_deterministic_algorithms(False)
    torch.set_num_threads(1)
    assert count() == 1


def test_limited_threads_of_the_calling_thread_only(eight_threads):
    with limited_threads(3):
        assert torch.get_num_threads() == 3
        with limited_threads(1):
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 3
    assert torch.get_num_threads() == 8
    torch.set_num_threads(5)
    counts = set(thread_pool._THREAD_COUNT.findall(torch.__config__.parallel_info()))
    assert counts == {"5"}  # no limit is left behind, of MKL either


SCRIPT = """
import time
import torch
torch.set_num_threads({cpus})
from solo_infer.runtime import busy_cpus
limiter = busy_cpus.ThreadLimiter()
with limiter.limit():
    print(torch.get_num_threads())
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/schedstat"), reason="the system does not tell the load")
def test_busy_processes_of_this_machine():
    """As many busy processes as CPUs leave one thread."""
    if not can_limit_threads():
        pytest.skip("this build of torch cannot limit the threads of one thread")
    cpus = os.cpu_count()
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(cpus)]
    try:
        output = subprocess.run(
            [sys.executable, "-c", SCRIPT.format(cpus=cpus)], capture_output=True, text=True, check=True
        )
        assert output.stdout.split() == ["1"]
    finally:
        for process in busy:
            process.kill()
            process.wait()


def test_predictions_adapt(small_model, photo, monkeypatch):
    """A prediction takes the number of threads from the load, and its result hardly depends on it."""
    devices = []

    def suitable(device):
        devices.append(device.type)
        return limited_threads(1)

    expected = small_model(photo)
    monkeypatch.setattr("solo_infer.segmenters.base.suitable_threads", suitable)
    result = small_model(photo)
    assert devices == ["cpu"] and len(result) == len(expected)
    torch.testing.assert_close(result.scores, expected.scores, rtol=0, atol=1e-4)
