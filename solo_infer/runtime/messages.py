"""Short forms of errors for messages and reports."""

from __future__ import annotations


def first_line(error: BaseException) -> str:
    """Return the first line of the message of an error, or the name of its type if it has no message."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def describe_error(error: BaseException) -> str:
    """Return the type of an error and the first line of its message: "ImportError: no module"."""
    message = next(iter(str(error).splitlines()), "")
    return f"{type(error).__name__}: {message}" if message else type(error).__name__
