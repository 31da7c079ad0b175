"""Memory for intermediate results that is kept for the next use.

The first access to a page of new memory takes longer than the rest of a short operation, and the allocator
returns large blocks to the system after each use.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from solo_infer.runtime.neutral_state import neutral_state

MAX_KEPT = 2**24  # elements of all blocks: 64 MiB
_free: list[Tensor] = []  # its operations are atomic


@contextmanager
def scratch_memory(size: int) -> Iterator[Tensor]:
    """Lend memory to one operation; no result may refer to it afterwards.

    Up to 64 MiB are kept.

    Args:
        size: Number of elements.

    Yields:
        (size,) float32 on the CPU, of any values.
    """
    try:
        block = _free.pop()
    except IndexError:
        block = None
    if block is None or len(block) < size:
        with neutral_state():
            block = torch.empty(size, dtype=torch.float32, device="cpu")
    try:
        yield block[:size]
    finally:
        if len(block) + sum(map(len, _free)) <= MAX_KEPT:
            _free.append(block)
