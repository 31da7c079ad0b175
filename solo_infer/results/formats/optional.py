"""Packages that only some formats need."""

from __future__ import annotations

import importlib
from typing import Any

from solo_infer.errors import ResultError


def require_package(name: str, purpose: str) -> Any:
    """Import a package and return it.

    Args:
        name: Name of the package, for import and for pip.
        purpose: What needs it, for messages.

    Raises:
        ResultError: The package is not installed, or is broken.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ResultError(
            f"{purpose} needs the package {name} ({error}): install it with 'pip install {name}'."
        ) from error
