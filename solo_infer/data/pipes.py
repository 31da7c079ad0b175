"""Read images from pipes and standard input to memory, with limits of time and size."""

from __future__ import annotations

import os
import select
import stat
import time

from solo_infer.errors import ImageError
from solo_infer.runtime import environment

STDIN = "/dev/stdin"  # name of standard input, on every system
MAX_PIPE_BYTES = 100_000_000
_BLOCK_BYTES = 1 << 16
_POLL_SECONDS = 0.05
_STDIN_DESCRIPTOR = 0


def read_stdin() -> bytes:
    """Return everything that standard input holds.

    Raises:
        ImageError: It is closed, a terminal or a device, silent for too long, or larger than
            ``MAX_PIPE_BYTES``.
    """
    try:
        mode = os.fstat(_STDIN_DESCRIPTOR).st_mode
    except OSError as error:
        raise ImageError(f"Standard input is closed ({error.strerror}): expected an image.") from error
    if not (stat.S_ISREG(mode) or stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)):
        raise ImageError("Standard input is a terminal or a device: pipe an image into it.")
    try:
        return _read(_STDIN_DESCRIPTOR, "Standard input")
    except OSError as error:
        raise ImageError(f"Standard input cannot be read: {error}.") from error


def read_pipe(path: str, name: str) -> bytes:
    """Return everything that a pipe holds, such as a FIFO or the process substitution of a shell.

    Args:
        path: Path of the pipe.
        name: Its name for messages.

    Raises:
        OSError: The pipe cannot be opened or read.
        ImageError: It is silent for too long, for example because nothing writes to it, or larger than
            ``MAX_PIPE_BYTES``.
    """
    # Opened without waiting for a writer, which may never come.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    try:
        return _read(descriptor, name)
    finally:
        os.close(descriptor)


def _read(descriptor: int, name: str) -> bytes:
    """Return the content of a descriptor; its end is where a writer has come and gone."""
    content = bytearray()
    timeout = environment.network_timeout()
    deadline = time.monotonic() + timeout
    while len(content) <= MAX_PIPE_BYTES:
        block = _read_block(descriptor, has_started=bool(content))
        if block == b"":
            return bytes(content)
        if block is not None:
            content += block
            deadline = time.monotonic() + timeout
        elif time.monotonic() > deadline:
            raise ImageError(
                f"{name} sent nothing for {timeout:g} s: check the program that writes to it, or set "
                f"{environment.TIMEOUT} to more seconds."
            )
    raise ImageError(f"{name} is larger than the limit of {MAX_PIPE_BYTES:,} bytes: pass it as a file.")


def _read_block(descriptor: int, *, has_started: bool) -> bytes | None:
    """Return the next bytes, b"" at the end, or None if there are none within a moment.

    A pipe that no writer has opened yet reads like one at its end; only ``select`` tells them apart.
    """
    if os.name == "nt":  # select() supports sockets only
        return os.read(descriptor, _BLOCK_BYTES)
    is_ready = bool(select.select([descriptor], [], [], _POLL_SECONDS)[0])
    if not is_ready and os.get_blocking(descriptor):
        return None
    try:
        block = os.read(descriptor, _BLOCK_BYTES)
    except BlockingIOError:
        return None
    return block if block or is_ready or has_started else None
