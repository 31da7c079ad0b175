"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from pathlib import Path


def write_whole(path: Path, write: Callable[[Path], object]) -> Path:
    """Let ``write`` fill a file under a temporary name beside ``path``, then rename it.

    If anything goes wrong, or the program is interrupted, an older file stays as it was and the
    temporary one is removed. A link stays, and the file that it names is replaced.

    Args:
        path: The file that shall be there in the end; its directory exists.
        write: Gets the temporary path (with the suffix of ``path``).

    Returns:
        ``path``.

    Raises:
        OSError: It cannot be written.
    """
    staged = staging_path(path)
    try:
        write(staged)
        put_in_place(staged, path)
    finally:
        discard(staged, path)
    return path


def write_text(path: Path, text: str) -> Path:
    r"""Write text (UTF-8, lines end in \n on every system) whole or not at all."""
    return write_whole(path, lambda staged: staged.write_text(text, encoding="utf-8", newline="\n"))


def staging_path(path: Path) -> Path:
    """Return a new temporary name beside a file, with its suffix.

    It is ``path`` itself for a pipe or device (``/dev/stdout``): those are written to, never replaced.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        return path
    target = Path(os.path.realpath(path))
    return target.with_name(f".{os.getpid()}-{secrets.token_hex(6)}{target.suffix}")


def put_in_place(staged: Path, path: Path) -> None:
    """Give the file of ``staging_path(path)`` its name."""
    if staged != path:
        os.replace(staged, os.path.realpath(path))


def discard(staged: Path, path: Path) -> None:
    """Remove the file of ``staging_path(path)``, if it is still there."""
    if staged != path:
        staged.unlink(missing_ok=True)
