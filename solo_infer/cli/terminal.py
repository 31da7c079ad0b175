"""Messages on standard error, results on standard output."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

from solo_infer.runtime.environment import set_environment
from solo_infer.runtime.messages import escaped_lines
from solo_infer.runtime.progress import HIDE

USAGE_ERROR = 2  # exit code of usage errors, as in argparse
_LOGGER = logging.getLogger("solo_infer")
# huggingface_hub reads its variable when it is imported, which happens after the options are parsed.
_NO_PROGRESS = {HIDE: "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}


def info(message: str) -> None:
    """Print a message to standard error unless --quiet is set."""
    if _LOGGER.isEnabledFor(logging.WARNING):
        _print_message(message)


def print_error(error: Exception | str) -> None:
    """Print an error to standard error; an exception with the name of its type."""
    _print_message(error if isinstance(error, str) else f"{type(error).__name__}: {error}")


def usage_error(message: str) -> int:
    """Print a usage error and return its exit code."""
    _print_message(message)
    return USAGE_ERROR


def _print_message(message: str) -> None:
    print(f"solo-infer: {escaped_lines(message)}", file=sys.stderr, flush=True)


def print_text(text: str) -> None:
    """Print text to standard output; control characters, and those that its encoding lacks, are escaped."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    text = escaped_lines(text)
    print(text.encode(encoding, "backslashreplace").decode(encoding), flush=True)


def print_json(value: Any) -> None:
    """Print a JSON-ready value to standard output."""
    print(json.dumps(value, indent=2, allow_nan=False))


class JsonArray:
    """Prints a JSON array to standard output element by element, so that memory use does not grow.

    The array is complete when the ``with`` block ends normally or by ctrl-C. After another exception it is
    left incomplete, so that no reader takes it for the whole result.
    """

    def __init__(self) -> None:
        self._length = 0

    def __enter__(self) -> JsonArray:
        return self

    def add(self, value: Any) -> None:
        """Print one JSON-ready element on a line."""
        print(",\n" if self._length else "[\n", json.dumps(value, allow_nan=False), sep="", end="")
        self._length += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None or issubclass(kind, KeyboardInterrupt):
            print("\n]" if self._length else "[]", flush=True)


class JsonLines:
    """Prints JSON objects to standard output, each on a line of its own as soon as it is added."""

    def __enter__(self) -> JsonLines:
        return self

    def add(self, value: Any) -> None:
        """Print one JSON-ready value."""
        print(json.dumps(value, allow_nan=False), flush=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Print nothing: every line is complete."""


# Subscripts of the class are for type checkers: they fail when it is Python 3.10's.
if TYPE_CHECKING:
    _StreamHandler = logging.StreamHandler[TextIO]
else:
    _StreamHandler = logging.StreamHandler


class _EscapingFormatter(logging.Formatter):
    """Formatter of messages, in which names from files cannot control the terminal."""

    def format(self, record: logging.LogRecord) -> str:
        return escaped_lines(super().format(record))


class _BarHandler(_StreamHandler):
    """Handler that prints above the progress bars of the terminal."""

    def emit(self, record: logging.LogRecord) -> None:
        if "tqdm" not in sys.modules:  # there is no bar yet
            super().emit(record)
            return
        from tqdm import tqdm

        with tqdm.external_write_mode(file=self.stream):
            super().emit(record)


@contextmanager
def standard_streams() -> Iterator[None]:
    """Replace standard streams that are missing by ones without content while a command runs.

    They are None in programs without a console (``pythonw``) and if the shell closed them (``>&-``). In the
    second case the next file to be opened would also take their place, and print into it.
    """
    with ExitStack() as stack:
        for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
            if getattr(sys, name) is None:
                setattr(sys, name, stack.enter_context(open(os.devnull, mode, encoding="utf-8")))
                stack.callback(setattr, sys, name, None)
        yield


@contextmanager
def log_to_stderr(*, verbose: bool = False, quiet: bool = False) -> Iterator[None]:
    """Show the package's log on standard error while a command runs.

    Args:
        verbose: Show informational messages. Defaults to warnings and errors.
        quiet: Show errors only, and no progress bars.
    """
    handler, level = _BarHandler(), _LOGGER.level
    handler.setFormatter(_EscapingFormatter("solo-infer: %(message)s"))
    _LOGGER.addHandler(handler)
    _LOGGER.setLevel(logging.ERROR if quiet else logging.INFO if verbose else logging.WARNING)
    try:
        with set_environment(_NO_PROGRESS if quiet else {}):
            yield
    finally:
        _LOGGER.removeHandler(handler)
        _LOGGER.setLevel(level)


@contextmanager
def show_info_of(name: str, *, enabled: bool) -> Iterator[None]:
    """Show the informational messages of one logger, e.g. the progress of a training run."""
    logger = logging.getLogger(name)
    level = logger.level
    if enabled:
        logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.setLevel(level)
