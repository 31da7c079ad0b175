"""Atomic writing of files."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from pathlib import Path


def write_whole(path: Path, write: Callable[[Path], object]) -> Path:
    """Write a file under a temporary name in the same directory, then rename it.

    After an error or an interrupt an existing file is unchanged and the temporary file is removed. If
    ``path`` is a symbolic link, its target is replaced.

    Args:
        path: Path of the file, in an existing directory.
        write: Function that writes the content to the temporary path it receives, which has the suffix of
            ``path``.

    Returns:
        ``path``.

    Raises:
        OSError: The file cannot be written.
    """
    staged = staging_path(path)
    try:
        write(staged)
        put_in_place(staged, path)
    finally:
        discard(staged, path)
    return path


def write_text(path: Path, text: str) -> Path:
    r"""Write a text file atomically (UTF-8, with \n as the line end on every system)."""
    return write_whole(path, lambda staged: staged.write_text(text, encoding="utf-8", newline="\n"))


def staging_path(path: Path) -> Path:
    """Return a new temporary path in the directory of a file, with its suffix.

    Pipes and devices (``/dev/stdout``) are written directly and never replaced: for them it is ``path``.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        return path
    target = Path(os.path.realpath(path))
    return target.with_name(f".{os.getpid()}-{secrets.token_hex(6)}{target.suffix}")


def put_in_place(staged: Path, path: Path) -> None:
    """Rename the file at ``staging_path(path)`` to its final name."""
    if staged != path:
        os.replace(staged, os.path.realpath(path))


def discard(staged: Path, path: Path) -> None:
    """Remove the file at ``staging_path(path)`` if it still exists."""
    if staged != path:
        staged.unlink(missing_ok=True)
