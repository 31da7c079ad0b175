"""The library of compiled kernels for the instructions of this CPU."""

from __future__ import annotations

import ctypes
import logging
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from solo_infer.runtime.native_library import instruction_sets, load_library
from solo_infer.runtime.thread_pool import openmp_address

_LOGGER = logging.getLogger(__name__)
_INTERFACE_VERSION = 3  # of the functions and structures


@dataclass(frozen=True)
class KernelLibrary:
    """A loaded library.

    Attributes:
        instructions: Name of the instructions of the CPU that it uses.
        functions: The library.
        parallel: Address of ``GOMP_parallel``, with which the kernels use the threads of torch.
        block_rows: Rows of the blocks of matrix products.
        block_columns: Columns of these blocks.
    """

    instructions: str
    functions: ctypes.CDLL
    parallel: int
    block_rows: int
    block_columns: int

    def pack(self, weight: Tensor) -> Tensor:
        """Return matrices (n, C, K) in the order in which the kernels read them.

        Returns:
            (n, panels, C, block_columns), with columns of zeros at the end.
        """
        count, channels, outputs = weight.shape
        padded = F.pad(weight, (0, -outputs % self.block_columns))
        return padded.view(count, channels, -1, self.block_columns).transpose(1, 2).contiguous()

    def threads(self, rows: int) -> int:
        """Return the number of threads for products with a number of rows."""
        return max(min(torch.get_num_threads(), -(-rows // self.block_rows)), 1)


def kernel_library() -> KernelLibrary | None:
    """Return the library for the fastest instructions of this CPU, or None where there is none."""
    return next((load_kernels(name) for name in instruction_sets()), None)


@cache
def load_kernels(instructions: str) -> KernelLibrary | None:
    """Return the library for one of ``instruction_sets()``.

    Returns:
        The library, or None if it is not installed or torch does not use OpenMP.
    """
    library = load_library(Path(__file__).with_name(f"kernels_{instructions}.so"), _INTERFACE_VERSION)
    parallel = openmp_address("GOMP_parallel")
    if library is None:
        return None
    if parallel is None:
        _LOGGER.info("torch uses no OpenMP: its operations take the place of the compiled kernels")
        return None
    rows, columns = (ctypes.c_int32.in_dll(library, name).value for name in ("block_rows", "block_columns"))
    return KernelLibrary(instructions, library, parallel, rows, columns)
