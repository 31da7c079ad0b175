"""Atomic writing of files."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from collections.abc import Callable
from pathlib import Path


class StagedFile:
    """Temporary file beside a target, which ``commit`` renames to the target.

    Only its owner can read it until then. The committed file has the permissions of the file that it
    replaces, or else those of a new file. If the target is a symbolic link, the file that it refers to is
    replaced. Pipes and devices (``/dev/stdout``) are written directly and never replaced.

    Args:
        target: Path of the file, in an existing directory.

    Attributes:
        path: Path to write to, with the suffix of the target.

    Raises:
        OSError: The file cannot be created.
    """

    def __init__(self, target: Path) -> None:
        self._final = Path(os.path.realpath(target))
        self._is_direct = self._final.exists() and not self._final.is_file() and not self._final.is_dir()
        if self._is_direct:
            self.path = target
            return
        name = f".{os.getpid()}-{secrets.token_hex(6)}{self._final.suffix}"
        self.path = self._final.with_name(name)
        descriptor = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        try:
            self._mode = stat.S_IMODE(os.fstat(descriptor).st_mode)  # 0o666 without the bits of the umask
        finally:
            os.close(descriptor)
        try:
            self.path.chmod(0o600)
        except OSError:
            self.discard()
            raise

    def commit(self) -> None:
        """Rename the temporary file to the target.

        Raises:
            OSError: The target cannot be replaced.
        """
        if self._is_direct:
            return
        with contextlib.suppress(FileNotFoundError):
            self._mode = stat.S_IMODE(self._final.stat().st_mode)
        self.path.chmod(self._mode)
        os.replace(self.path, self._final)

    def discard(self) -> None:
        """Remove the temporary file if it still exists."""
        if not self._is_direct:
            self.path.unlink(missing_ok=True)


def write_whole(path: Path, write: Callable[[Path], object]) -> Path:
    """Write a file under a temporary name in the same directory, then rename it.

    After an error or an interrupt an existing file is unchanged and the temporary file is removed. See
    ``StagedFile`` for links, pipes and permissions.

    Args:
        path: Path of the file, in an existing directory.
        write: Function that writes the content to the temporary path it receives, which has the suffix of
            ``path``.

    Returns:
        ``path``.

    Raises:
        OSError: The file cannot be written.
    """
    staged = StagedFile(path)
    try:
        write(staged.path)
        staged.commit()
    finally:
        staged.discard()
    return path


def write_text(path: Path, text: str) -> Path:
    r"""Write a text file atomically (UTF-8, with \n as the line end on every system)."""
    return write_whole(path, lambda staged: staged.write_text(text, encoding="utf-8", newline="\n"))
