"""Fewer threads while other processes take the CPUs (Linux).

An operation of torch on several threads ends when all of them have. Where another process takes one of the
CPUs, one of the threads is often not running, and each of the hundreds of operations of a network waits for
it: two threads beside two busy processes take twice as long as one thread does (benchmarks/NOTES.md).
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from solo_infer.runtime.cpu import quota_threads
from solo_infer.runtime.environment import adapts_threads
from solo_infer.runtime.thread_pool import can_limit_threads, limited_threads

# Seconds that the threads of this process wait for a CPU per second of computing: more means that other work
# takes it. A quiet machine has less than 0.02, two threads beside one busy process have 0.6.
_MAX_WAIT = 0.2
_MIN_SECONDS = 0.05  # of computing between two looks at the waiting time
_SAMPLES, _SAMPLE_SECONDS = 3, 0.002  # samples of the running threads of the machine, and between two of them


class ThreadLimiter:
    """Number of threads of each computation, from what other processes leave.

    Thread-safe. As long as the threads of this process need not wait for CPUs, they are not limited.
    Otherwise, and for the first computation, the number of CPUs without other work counts, rounded down to
    the number of threads divided by a power of two, so that few numbers occur.

    Args:
        proc: Directory of the process file system.
    """

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self._proc = proc
        self._lock = threading.Lock()
        self._is_busy = True
        self._active = 0  # computations at this moment
        self._seconds = 0.0  # of computing since the last look
        self._waited = self._waiting_seconds()

    @contextmanager
    def limit(self) -> Iterator[None]:
        """Compute with as many threads as suit the load of the machine."""
        threads = torch.get_num_threads()
        count = self._begin(threads)
        start = time.perf_counter()
        try:
            if count < threads:
                with limited_threads(count):
                    yield
            else:
                yield
        finally:
            self._end(time.perf_counter() - start, is_limited=count < threads)

    def _begin(self, threads: int) -> int:
        with self._lock:
            self._active += 1
            if not self._is_busy:
                return threads
            free = self._free_cpus(threads)
            available = threads if free is None else max(free // self._active, 1)
        count = threads
        while count > available:
            count //= 2
        return max(count, 1)

    def _end(self, seconds: float, is_limited: bool) -> None:
        with self._lock:
            self._active -= 1
            self._seconds += seconds
            if is_limited or self._seconds < _MIN_SECONDS:
                return
            waited = self._waiting_seconds()
            if waited is not None and self._waited is not None:
                self._is_busy = waited - self._waited > _MAX_WAIT * self._seconds
            self._waited, self._seconds = waited, 0.0

    def _waiting_seconds(self) -> float | None:
        """Return how long the threads of this process have waited for CPUs, None if that is not known."""
        try:
            return sum(int(text.split()[1]) for text in self._threads("schedstat")) / 1e9
        except (OSError, ValueError, IndexError):
            return None

    def _free_cpus(self, enough: int) -> int | None:
        """Return the number of CPUs without other work, None if that is not known.

        A CPU quota of a container counts as that many CPUs. Work of a few milliseconds does not count: the
        greatest of some samples is returned, or the first one that is enough.
        """
        greatest = 1
        for sample in range(_SAMPLES):
            if sample:
                time.sleep(_SAMPLE_SECONDS)
            try:
                runnable = int((self._proc / "loadavg").read_text().split()[3].partition("/")[0])
                own = sum(text.rpartition(")")[2].split()[0] == "R" for text in self._threads("stat"))
            except (OSError, ValueError, IndexError):
                return None
            free = (os.cpu_count() or 1) - max(runnable - max(own, 1), 0)
            greatest = max(greatest, min(free, quota_threads() or free))
            if greatest >= enough:
                break
        return greatest

    def _threads(self, name: str) -> Iterator[str]:
        """Yield the content of a file of each thread of this process."""
        for task in (self._proc / "self/task").iterdir():
            try:
                yield (task / name).read_text(encoding="utf-8", errors="replace")
            except (FileNotFoundError, ProcessLookupError):  # the thread has just ended
                continue


_limiter = ThreadLimiter()


@contextmanager
def suitable_threads(device: torch.device) -> Iterator[None]:
    """Compute with fewer threads while other processes take the CPUs, on the CPU.

    The number of threads of the calling thread is the greatest one, and is restored. Results may differ in
    the last bits between numbers of threads: deterministic algorithms of torch, or
    ``SOLO_INFER_ADAPT_THREADS=0``, keep the number.

    Args:
        device: Device of the computation.
    """
    is_fixed = device.type != "cpu" or torch.get_num_threads() == 1 or not adapts_threads()
    if is_fixed or torch.are_deterministic_algorithms_enabled() or not can_limit_threads():
        yield
        return
    with _limiter.limit():
        yield


def _forget_load() -> None:
    _limiter.__init__()  # type: ignore[misc]  # the lock may be held, the threads are gone


if hasattr(os, "register_at_fork"):  # not on Windows, which cannot fork
    os.register_at_fork(after_in_child=_forget_load)
