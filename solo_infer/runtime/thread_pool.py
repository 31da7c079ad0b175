"""Threads that compute with one thread of torch each.

An operation of torch that runs on several threads waits for all of them before it ends. On a machine with
other busy processes, one of the threads is often not running, so that hundreds of short operations wait
hundreds of times. Threads that run sequences of single-threaded operations wait once, at the end.
"""

from __future__ import annotations

import ctypes
import os
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch

Task = Callable[[], object]

# Functions that set the number of threads of the calling thread, and what removes the limit of the second.
_OPENMP, _MKL = "omp_set_num_threads", "MKL_Set_Num_Threads_Local"
_NO_LOCAL_LIMIT = 0

_THREAD_COUNT = re.compile(r"(?:at::get_num_threads|omp_get_max_threads|mkl_get_max_threads)\(\) : (\d+)")


def thread_count() -> int:
    """Return the number of threads of ``run_in_threads``: 1 where threads cannot be limited."""
    threads = torch.get_num_threads()
    return threads if threads > 1 and can_limit_threads() else 1


def run_in_threads(tasks: Sequence[Task]) -> None:
    """Run tasks in ``thread_count()`` threads, and return when all of them have ended.

    Each thread computes with one thread of torch and takes the next task when it has ended the one before.
    Inference mode is that of the caller; gradients and autocast are off. If the count is 1, the tasks run in
    the calling thread.

    Args:
        tasks: Functions that write their results to tensors that no other task writes to.

    Raises:
        Exception: The first error of a task; tasks that have not started are left out.
    """
    threads = thread_count()
    if threads == 1:
        for task in tasks:
            task()
        return
    queue = _Queue(tasks, torch.is_inference_mode_enabled())
    pool = _pools.get(threads)
    futures = [pool.submit(queue.run) for _ in range(min(threads, len(tasks)))]
    try:
        wait(futures)
    finally:
        queue.stop()
    for future in futures:
        future.result()


class _Queue:
    """Tasks that several threads take one after another."""

    def __init__(self, tasks: Sequence[Task], inference_mode: bool) -> None:
        self._tasks: Iterator[Task] = iter(tasks)
        self._inference_mode = inference_mode
        self._lock = threading.Lock()

    def run(self) -> None:
        """Run tasks until none is left; after an error no thread starts another one."""
        try:
            with torch.inference_mode(self._inference_mode), torch.no_grad():
                while (task := self._next()) is not None:
                    task()
        finally:
            self.stop()

    def stop(self) -> None:
        """Drop the tasks that have not started."""
        with self._lock:
            self._tasks = iter(())

    def _next(self) -> Task | None:
        with self._lock:
            return next(self._tasks, None)


class _Pools:
    """Thread pools by their number of threads, which the callers in a process share."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pools: dict[int, ThreadPoolExecutor] = {}

    def get(self, threads: int) -> ThreadPoolExecutor:
        """Return the pool with a number of threads."""
        with self._lock:
            if threads not in self._pools:
                self._pools[threads] = ThreadPoolExecutor(threads, "solo_infer", _use_one_thread)
            return self._pools[threads]


_pools = _Pools()


def _forget_pools() -> None:
    _pools.__init__()  # type: ignore[misc]  # the threads and locks of the parent do not work in the child


if hasattr(os, "register_at_fork"):  # not on Windows, which cannot fork
    os.register_at_fork(after_in_child=_forget_pools)


@cache
def can_limit_threads() -> bool:
    """Return whether a thread can compute with one thread of torch while others keep theirs.

    ``torch.set_num_threads`` sets the default of all later threads of the process as well. The functions of
    OpenMP and MKL set it for the calling thread only, where torch uses them and they can be found.
    """
    states: list[bool] = []

    def limit_and_check() -> None:
        _use_one_thread()
        counts = _THREAD_COUNT.findall(torch.__config__.parallel_info())
        states.append(bool(counts) and set(counts) == {"1"})

    thread = threading.Thread(target=limit_and_check, name="solo_infer")
    thread.start()
    thread.join()
    return states == [True]


@contextmanager
def limited_threads(count: int) -> Iterator[None]:
    """Let the calling thread compute with a number of threads, where ``can_limit_threads()``.

    Args:
        count: Number of threads, at least 1.
    """
    before = torch.get_num_threads()
    _set_threads(count, count)
    try:
        yield
    finally:
        _set_threads(before, _NO_LOCAL_LIMIT)


def _use_one_thread() -> None:
    """Let the calling thread compute with one thread."""
    _set_threads(1, 1)


def _set_threads(openmp: int, mkl: int) -> None:
    """Set the numbers of threads of the calling thread in OpenMP and in MKL."""
    torch.get_num_threads()  # sets the defaults of this thread, which the calls below change
    functions = _thread_functions()
    for name, count in ((_OPENMP, openmp), (_MKL, mkl)):
        if name in functions:
            functions[name](count)


@cache
def _thread_functions() -> dict[str, Callable[[int], object]]:
    """Return the functions that set the number of threads of the calling thread, by their names."""
    functions: dict[str, Callable[[int], object]] = {}
    for name in (_OPENMP, _MKL):
        if (library := _library_with(name)) is not None:
            functions[name] = getattr(library, name)
    return functions


def openmp_address(name: str) -> int | None:
    """Return the address of a function of the OpenMP library that torch uses, or None if it has none."""
    library = _library_with(name)
    return None if library is None else ctypes.cast(getattr(library, name), ctypes.c_void_p).value


def _library_with(function: str) -> ctypes.CDLL | None:
    """Return the library that has a function among those that torch has loaded."""
    for path in (None, *Path(torch.__file__).parent.glob("lib/*torch_cpu.*")):
        try:
            library = ctypes.CDLL(None if path is None else str(path))
        except (OSError, TypeError):  # TypeError: Windows has no namespace of the whole process
            continue
        if hasattr(library, function):
            return library
    return None
