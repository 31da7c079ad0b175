"""Checks shared by the frozen configuration dataclasses."""

from __future__ import annotations

import math
import os
import reprlib
from collections.abc import Hashable, Iterable, Mapping
from pathlib import Path
from typing import Any

from solo_infer.errors import ConfigError

_MAX_BITS = 1024  # of an integer that is written in decimal; the conversion takes quadratic time


class _BoundedRepr(reprlib.Repr):
    """``repr`` of bounded length and time."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = 80

    def repr_int(self, x: int, level: int) -> str:
        return repr(x) if x.bit_length() <= _MAX_BITS else f"<an integer of {x.bit_length()} bits>"


shown = _BoundedRepr().repr  # a value for a message


def require(condition: bool, message: str) -> None:
    """Raise ``ConfigError`` with a message if a condition does not hold."""
    if not condition:
        raise ConfigError(message)


def require_choice(name: str, value: Any, choices: Iterable[Any]) -> None:
    """Require one of several values."""
    choices = tuple(choices)
    is_choice = isinstance(value, Hashable) and any(value is item or value == item for item in choices)
    require(is_choice, f"{name}={shown(value)}: expected one of {', '.join(map(repr, choices))}.")


def require_positive_ints(values: Mapping[str, Any]) -> None:
    """Require integers of at least 1."""
    for name, value in values.items():
        require(is_int(value) and value >= 1, f"{name}={shown(value)}: expected an integer of at least 1.")


def require_non_negative_ints(values: Mapping[str, Any]) -> None:
    """Require integers of at least 0."""
    for name, value in values.items():
        require(is_int(value) and value >= 0, f"{name}={shown(value)}: expected an integer of at least 0.")


def require_unit_interval(values: Mapping[str, Any]) -> None:
    """Require numbers in 0..1."""
    for name, value in values.items():
        within = is_finite(value) and 0.0 <= value <= 1.0
        require(within, f"{name}={shown(value)}: expected a number in 0..1.")


def require_positive(values: Mapping[str, Any]) -> None:
    """Require finite numbers greater than 0."""
    for name, value in values.items():
        require(is_finite(value) and value > 0, f"{name}={shown(value)}: expected a positive finite number.")


def require_bools(values: Mapping[str, Any]) -> None:
    """Require ``True`` or ``False``."""
    for name, value in values.items():
        require(isinstance(value, bool), f"{name}={shown(value)}: expected true or false.")


def coerce_tuple(owner: object, name: str, length: int) -> None:
    """Replace a list in a field of a frozen dataclass by a tuple, and require its length."""
    value = getattr(owner, name)
    fits = isinstance(value, list | tuple) and len(value) == length
    require(fits, f"{name}={shown(value)}: expected {length} values.")
    object.__setattr__(owner, name, tuple(value))


def is_int(value: Any) -> bool:
    """Return whether a value is an integer; ``bool`` does not count."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_finite(value: Any) -> bool:
    """Return whether a value is a finite number; ``bool`` and integers beyond floats do not count."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def require_path(name: str, value: Any) -> Path:
    """Return a path with ``~`` expanded; require a str or a PathLike."""
    try:
        return Path(os.path.expanduser(os.fsdecode(value)))
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"{name} is a {type(value).__name__}: expected a path (str or PathLike)."
        ) from error


def require_instance(name: str, value: Any, expected: type) -> None:
    """Require an instance of a class of this library or of torch."""
    require(
        isinstance(value, expected), f"{name} is a {type(value).__name__}: expected a {expected.__name__}."
    )
