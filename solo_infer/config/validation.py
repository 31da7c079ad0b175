"""Checks shared by the frozen configuration dataclasses."""

from __future__ import annotations

import math
import operator
import os
import reprlib
from collections.abc import Hashable, Iterable, Mapping
from pathlib import Path
from typing import Any

from solo_infer.errors import ConfigError

_CHANNELS, _PIXELS, _EPOCHS = 2**13, 2**15, 10**6
# Upper bounds of integers by name of the field: larger ones exceed the memory of every machine.
_LIMITS = {
    "num_classes": 10**5,
    "num_grids": 1000,
    "stacked_convs": 64,
    "pyramid_channels": _CHANNELS,
    "head_channels": _CHANNELS,
    "mask_channels": _CHANNELS,
    "mask_context_blocks": 64,
    "num_protos": _CHANNELS,
    "short_side": _PIXELS,
    "short_sides": _PIXELS,
    "long_side": _PIXELS,
    "longest": _PIXELS,
    "side": _PIXELS,
    "size": _PIXELS,
    "size_divisor": _PIXELS,
    "crop_size": _PIXELS,
    "input_size": _PIXELS,
    "epochs": _EPOCHS,
    "last_epoch": _EPOCHS,
    "batch_size": 2**16,
    "workers": 256,
    "seed": 2**63 - 1,
}
_LARGEST_INT = 2**31 - 1  # upper bound of other fields
_MAX_MESSAGE = 600  # characters
_MAX_BITS = 1024  # of an integer that is written in decimal; the conversion takes quadratic time


class _BoundedRepr(reprlib.Repr):
    """``repr`` of bounded length and time."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = 80

    def repr_int(self, x: int, level: int) -> str:
        return repr(x) if x.bit_length() <= _MAX_BITS else f"<an integer of {x.bit_length()} bits>"


_REPR = _BoundedRepr()


def bounded_repr(value: object) -> str:
    """Return the ``repr`` of a value for a message, of bounded length and in bounded time."""
    return _REPR.repr(value)


def require(condition: bool, message: str) -> None:
    """Raise ``ConfigError`` with a message, cut to a few lines, if a condition does not hold."""
    if not condition:
        raise ConfigError(message if len(message) <= _MAX_MESSAGE else f"{message[: _MAX_MESSAGE - 3]}...")


def require_choice(name: str, value: Any, choices: Iterable[Any]) -> None:
    """Require one of several values."""
    choices = tuple(choices)
    is_choice = isinstance(value, Hashable) and any(value is item or value == item for item in choices)
    require(is_choice, f"{name}={bounded_repr(value)}: expected one of {', '.join(map(repr, choices))}.")


def require_positive_ints(values: Mapping[str, Any]) -> None:
    """Require integers of at least 1, up to the limit of each name."""
    _require_ints(values, 1)


def require_non_negative_ints(values: Mapping[str, Any]) -> None:
    """Require integers of at least 0, up to the limit of each name."""
    _require_ints(values, 0)


def _require_ints(values: Mapping[str, Any], least: int) -> None:
    for name, value in values.items():
        greatest = _LIMITS.get(name.partition("[")[0], _LARGEST_INT)
        within = is_int(value) and least <= value <= greatest
        require(within, f"{name}={bounded_repr(value)}: expected an integer in {least}..{greatest}.")


def require_unit_interval(values: Mapping[str, Any]) -> None:
    """Require numbers in 0..1."""
    for name, value in values.items():
        within = is_finite(value) and 0.0 <= value <= 1.0
        require(within, f"{name}={bounded_repr(value)}: expected a number in 0..1.")


def require_positive(values: Mapping[str, Any]) -> None:
    """Require finite numbers greater than 0."""
    for name, value in values.items():
        require(
            is_finite(value) and value > 0,
            f"{name}={bounded_repr(value)}: expected a positive finite number.",
        )


def require_bools(values: Mapping[str, Any]) -> None:
    """Require ``True`` or ``False``."""
    for name, value in values.items():
        require(isinstance(value, bool), f"{name}={bounded_repr(value)}: expected true or false.")


def coerce_tuple(owner: object, name: str, length: int) -> None:
    """Replace a list in a field of a frozen dataclass by a tuple, and require its length."""
    value = getattr(owner, name)
    fits = isinstance(value, list | tuple) and len(value) == length
    require(fits, f"{name}={bounded_repr(value)}: expected {length} values.")
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
    except OverflowError:  # an integer beyond the range of float
        return False


def as_int(value: Any) -> int | None:
    """Convert an int, or a 0-d integer of numpy or torch, to int; return None for all other types."""
    is_bool = isinstance(value, bool) or "bool" in str(getattr(value, "dtype", ""))
    if is_bool or getattr(value, "ndim", 0) > 0:
        return None
    try:
        return operator.index(value)
    except (TypeError, ValueError, RuntimeError):
        return None


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
