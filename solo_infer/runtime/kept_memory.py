"""Tensors in memory that is kept when they are freed.

glibc returns each block of more than 32 MiB to the system when it is freed, and memory above 64 MiB at the
end of its heap. The system clears each page of the next block on its first use, which takes longer than most
operations on feature maps: a tenth of a prediction.
"""

from __future__ import annotations

import logging
import math
import mmap
import threading
import weakref
from bisect import bisect
from collections import deque
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from solo_infer.runtime.messages import describe_error
from solo_infer.runtime.neutral_state import neutral_state

_LOGGER = logging.getLogger(__name__)
_SIZE = 3 * 2**27  # bytes that are kept at most
_PAGE = 4096
_MIN_SIZE = 2**16  # bytes; the allocator of torch keeps smaller blocks
# Bytes of the largest blocks that glibc keeps, after it has freed one of them: mallopt(3), M_MMAP_THRESHOLD.
MAX_SIZE_OF_MALLOC = 2**25 - 2**16


def empty(shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
    """Return a contiguous tensor of any values on the CPU.

    It takes part of the kept memory until it and its views are freed, or memory of its own if the kept memory
    has no room for it. Thread-safe.

    Args:
        shape: Shape.
        dtype: Type of the values. Defaults to float32.
    """
    size = math.prod(shape) * dtype.itemsize
    block = _memory().take(size) if size >= _MIN_SIZE else None
    if block is None:
        return torch.empty(tuple(shape), dtype=dtype, device="cpu")
    return torch.frombuffer(block, dtype=dtype).view(*shape)


@cache
@neutral_state()
def keep_freed_memory() -> None:
    """Let glibc keep freed blocks of up to 32 MiB, as after any program that has freed such a block."""
    torch.empty(MAX_SIZE_OF_MALLOC, dtype=torch.uint8, device="cpu")


class Memory:
    """A range of memory, of which parts are taken until their last reference is gone.

    Args:
        size: Bytes. They take no memory before their first use.
    """

    def __init__(self, size: int) -> None:
        self._bytes = _map_memory(size)
        self._free = [(0, len(self._bytes))] if self._bytes else []  # ranges, ascending, not adjacent
        self._lock = threading.Lock()
        # By identity of the reference to a part: the reference and the range of the part.
        self._taken: dict[int, tuple[weakref.ref[memoryview], tuple[int, int]]] = {}
        self._returned: deque[tuple[int, int]] = deque()

    def take(self, size: int) -> memoryview | None:
        """Return a part of a number of bytes, or None if there is no room or another thread is taking one."""
        # Waiting could take forever: in a child that was forked meanwhile, or in a signal handler.
        if not self._lock.acquire(blocking=False):
            return None
        try:
            self._add_returned()
            start = self._take_first(-(-size // _PAGE) * _PAGE)
        finally:
            self._lock.release()
        if start is None:
            return None
        part = self._bytes[start : start + size]
        reference = weakref.ref(part, self._return)
        self._taken[id(reference)] = reference, (start, start + -(-size // _PAGE) * _PAGE)
        return part

    def _return(self, reference: weakref.ref[memoryview]) -> None:
        # In any thread at any time, so without the lock: operations of dict and deque are atomic.
        self._returned.append(self._taken.pop(id(reference))[1])

    def _add_returned(self) -> None:
        while self._returned:
            start, end = self._returned.popleft()
            index = bisect(self._free, (start, end))
            if index < len(self._free) and self._free[index][0] == end:
                end = self._free.pop(index)[1]
            if index and self._free[index - 1][1] == start:
                index -= 1
                start = self._free.pop(index)[0]
            self._free.insert(index, (start, end))

    def _take_first(self, size: int) -> int | None:
        """Take a range of a number of bytes where there is room first, and return its start."""
        for index, (start, end) in enumerate(self._free):
            if end - start >= size:
                self._free[index : index + 1] = [(start + size, end)] if end - start > size else []
                return start
        return None


def _map_memory(size: int) -> memoryview:
    """Return memory of the process, or none where the system gives none."""
    try:
        return memoryview(mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
    except (AttributeError, OSError, ValueError) as error:  # Windows has no such flags
        _LOGGER.info("No memory is kept for tensors: %s", describe_error(error))
        return memoryview(b"")


@cache
def _memory() -> Memory:
    return Memory(_SIZE)
