"""Checks of texts that become part of a format."""

from __future__ import annotations

from typing import Any

from solo_infer.errors import ResultError
from solo_infer.runtime.messages import quoted


def require_text(name: str, value: Any) -> str:
    """Return a text.

    Raises:
        ResultError: The value is something else.
    """
    if not isinstance(value, str):
        raise ResultError(f"{name}={quoted(value)}: expected a text.")
    return value
