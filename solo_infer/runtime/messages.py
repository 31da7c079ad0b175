"""Short forms of errors and values for messages and reports."""

from __future__ import annotations

import contextlib
import os
import reprlib
from collections.abc import Iterable, Mapping
from itertools import islice

_MAX_BITS = 1024  # of an integer that is written in decimal; the conversion takes quadratic time
_FILL = "..."
_MAX_LISTED_NAMES = 5


class _BoundedRepr(reprlib.Repr):
    """``repr`` of at most about ``limit`` characters for each part, in time that the size does not affect."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.maxlevel = 4
        self.maxtuple = self.maxlist = self.maxdict = self.maxset = self.maxfrozenset = limit // 2 + 1
        self.maxstring = self.maxother = limit

    def repr_int(self, x: int, level: int) -> str:
        return repr(x) if x.bit_length() <= _MAX_BITS else f"<an integer of {x.bit_length()} bits>"

    def repr_dict(self, x: Mapping[object, object], level: int) -> str:
        if level <= 0:
            return f"{{{_FILL}}}"
        items = islice(x.items(), self.maxdict)  # in their order, which reprlib would change
        pairs = (f"{self.repr1(key, level - 1)}: {self.repr1(item, level - 1)}" for key, item in items)
        return f"{{{', '.join(pairs)}{f', {_FILL}' if len(x) > self.maxdict else ''}}}"

    def repr_bytes(self, x: bytes, level: int) -> str:
        return repr(x if len(x) <= self.maxstring else x[: self.maxstring])


def quoted(value: object, limit: int = 80) -> str:
    """Return a value from a file or a user for a message: its ``repr``, on one line and short.

    Control characters, line separators, bidirectional overrides and lone surrogates are escaped. Large values
    take no more time and memory than small ones.

    Args:
        value: Any value. Paths are quoted like strings.
        limit: Greatest number of characters, at least 16. A longer text has "..." in place of its middle.
    """
    if isinstance(value, str | os.PathLike):
        with contextlib.suppress(TypeError):  # an object that claims to be a path and is not one
            path = os.fspath(value)
            value = path if isinstance(path, bytes) else str.__str__(path)  # subclasses may have another repr
    text = _BoundedRepr(limit).repr(value)
    if not text.isprintable():  # the repr of an object of another library
        text = repr(text)[1:-1]
    return text if len(text) <= limit else _without_middle(text, limit)


def shortened(text: object, limit: int = 300) -> str:
    """Return a text for a message that another library or a file wrote: on one line, escaped and short.

    Args:
        text: Text, or an error whose message is taken.
        limit: Greatest number of characters, at least 16. A longer text has "..." in place of its middle.
    """
    words = str(text)
    if len(words) > 4 * limit:
        words = words[: 2 * limit] + words[-2 * limit :]
    plain = "".join(c if c.isprintable() else repr(c)[1:-1] for c in " ".join(words.split()))
    return plain if len(plain) <= limit else _without_middle(plain, limit)


def _without_middle(text: str, limit: int) -> str:
    end = limit // 3
    return text[: limit - end - len(_FILL)] + _FILL + text[len(text) - end :]


def escaped(text: str) -> str:
    """Return a text for a terminal, a log or a table: on one line, with control characters escaped.

    Class and file names come from files of others. Printed as they are, a line feed would forge lines of a
    report, and an escape sequence could change a terminal. The same characters as in ``quoted`` are escaped.
    """
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def escaped_lines(text: str) -> str:
    """Return a text of several lines for a terminal or a log, each line as ``escaped`` returns it."""
    return "\n".join(map(escaped, text.split("\n")))


def summarize_names(names: Iterable[str]) -> str:
    """Return the first names for a message, short and printable, and how many there are."""
    names = list(names)
    suffix = f", ... {len(names)} in all" if len(names) > _MAX_LISTED_NAMES else ""
    return ", ".join(map(_plain_or_quoted, names[:_MAX_LISTED_NAMES])) + suffix


def _plain_or_quoted(name: str) -> str:
    return name if name.isprintable() and 0 < len(name) <= 80 else quoted(name)


def first_line(error: BaseException) -> str:
    """Return the first line of the message of an error, or the name of its type if it has no message."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def describe_error(error: BaseException) -> str:
    """Return the type of an error and the first line of its message: "ImportError: no module"."""
    message = next(iter(str(error).splitlines()), "")
    return f"{type(error).__name__}: {message}" if message else type(error).__name__
