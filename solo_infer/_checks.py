"""What the frozen dataclasses of settings require of their fields."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from solo_infer.errors import ConfigError


def require(condition: bool, what: str) -> None:
    """Raise ConfigError with this message if a condition does not hold."""
    if not condition:
        raise ConfigError(what)


def require_whole(values: Mapping[str, Any]) -> None:
    """Require whole numbers of at least 1."""
    for name, value in values.items():
        whole = isinstance(value, int) and not isinstance(value, bool)
        require(whole and value >= 1, f"{name}={value!r}: expected a whole number of at least 1.")


def require_parts(values: Mapping[str, Any]) -> None:
    """Require numbers in 0..1."""
    for name, value in values.items():
        within = is_finite(value) and 0.0 <= value <= 1.0
        require(within, f"{name}={value!r}: expected a number in 0..1.")


def fix_tuple(owner: object, name: str, length: int) -> None:
    """Require a list or tuple of this length in a frozen dataclass, and make it a tuple."""
    value = getattr(owner, name)
    fits = isinstance(value, list | tuple) and len(value) == length
    require(fits, f"{name}={value!r}: expected {length} values.")
    object.__setattr__(owner, name, tuple(value))


def is_finite(value: Any) -> bool:
    """Return whether a value is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
