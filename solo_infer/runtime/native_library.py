"""Compiled libraries that are installed with the package on some systems."""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Sequence
from pathlib import Path

import torch

from solo_infer.runtime.messages import describe_error

_LOGGER = logging.getLogger(__name__)
_INSTRUCTION_SETS = ("avx512", "avx2")


def instruction_sets() -> Sequence[str]:
    """Return the names of the instructions of the CPU, for which there may be libraries, fastest first.

    They are those that torch uses; ``ATEN_CPU_CAPABILITY``, an environment variable of torch, limits them.
    """
    capability = torch.backends.cpu.get_cpu_capability().lower()
    for index, name in enumerate(_INSTRUCTION_SETS):
        if capability.startswith(name):
            return _INSTRUCTION_SETS[index:]
    return ()


def load_library(path: Path, version: int) -> ctypes.CDLL | None:
    """Load a library; why it cannot be loaded is logged.

    Args:
        path: Path of the library.
        version: Expected value of its constant ``interface_version``.

    Returns:
        The library, or None if it is not there, is of another version or cannot be loaded.
    """
    if not path.is_file():
        _LOGGER.info("%s is not installed: operations of torch take its place", path.name)
        return None
    try:
        library = ctypes.CDLL(str(path))
        found = ctypes.c_int32.in_dll(library, "interface_version").value
    except (OSError, ValueError) as error:
        _LOGGER.warning("%s cannot be loaded (%s): install solo_infer again", path, describe_error(error))
        return None
    if found != version:
        _LOGGER.warning("%s is of version %d instead of %d: install solo_infer again", path, found, version)
        return None
    return library
