"""Files in a folder of this machine, or of an object store that fsspec reads."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from solo_infer.data.remote_files import file_system, is_remote
from solo_infer.errors import DataError, ResultError
from solo_infer.runtime.atomic_files import write_whole
from solo_infer.runtime.messages import quoted

LOCK = "_lock"
_LOCAL_SCHEMES = ("file://", "local://")
_TEMPORARY = re.compile(r"\.\d+-[0-9a-f]{12}(\.\w+)?")  # names of atomic_files.StagedFile


class RunFolder:
    """Folder whose files appear when they are complete.

    Args:
        location: Path of the folder, or URI such as "s3://bucket/run".

    Raises:
        ResultError: The location is a URI of another kind.

    Attributes:
        is_local: Whether the folder is on this machine, or on one whose files it has mounted.
        location: Absolute path, or URI.
    """

    def __init__(self, location: str | os.PathLike[str]) -> None:
        text = os.fsdecode(location)
        if text.lower().startswith(_LOCAL_SCHEMES):
            text = file_system(text)[1]
        self.is_local = not is_remote(text)
        if self.is_local and "://" in text:
            raise ResultError(
                f"{quoted(text, 200)} is not a folder: expected a path, or the URI of an object store such "
                "as s3://bucket/run."
            )
        self.location = os.path.abspath(os.path.expanduser(text)) if self.is_local else text.rstrip("/")

    def path_of(self, name: str) -> str:
        """Return the path or URI of a file."""
        return os.path.join(self.location, name) if self.is_local else f"{self.location}/{name}"

    def names(self) -> set[str]:
        """Return the names of the files, none if there is no folder.

        Raises:
            ResultError: The folder cannot be read.
        """
        with self._as_result_error("read"):
            try:
                if self.is_local:
                    return set(os.listdir(self.location))
                files, path = file_system(self.location)
                files.invalidate_cache()
                return {str(name).rstrip("/").rpartition("/")[2] for name in files.ls(path, detail=False)}
            except FileNotFoundError:
                return set()

    def exists(self, name: str) -> bool:
        """Return whether there is a file.

        Raises:
            ResultError: The folder cannot be read.
        """
        if self.is_local:
            return os.path.lexists(self.path_of(name))
        with self._as_result_error("read", name):
            files, path = file_system(self.path_of(name))
            files.invalidate_cache()
            return bool(files.exists(path))

    def open_file(self, name: str) -> Any:
        """Open a file for reading bytes.

        Raises:
            OSError: It cannot be opened; other file systems may raise other errors.
        """
        if self.is_local:
            return open(self.path_of(name), "rb")
        files, path = file_system(self.path_of(name))
        return files.open(path, "rb")

    def read(self, name: str) -> str | None:
        """Return the text of a file, None if there is no such file.

        Raises:
            DataError: It cannot be read.
        """
        try:
            with self.open_file(name) as file:
                text: str = file.read().decode("utf-8")
                return text
        except (FileNotFoundError, NotADirectoryError):
            return None
        except Exception as error:  # packages of file systems raise errors of their own
            raise DataError(f"{self.path_of(name)} cannot be read: {error}.") from error

    def write(self, name: str, content: bytes) -> None:
        """Write a file, which appears when it is complete.

        Raises:
            ResultError: The file cannot be written.
        """
        with self._as_result_error("written", name):
            if self.is_local:
                os.makedirs(self.location, exist_ok=True)
                write_whole(Path(self.path_of(name)), lambda staged: staged.write_bytes(content))
            else:  # object stores show a file when its upload is complete
                files, path = file_system(self.path_of(name))
                files.makedirs(path.rpartition("/")[0], exist_ok=True)
                files.pipe_file(path, content)

    def remove(self, name: str) -> None:
        """Remove a file, unless another process has removed it.

        Raises:
            ResultError: The file cannot be removed.
        """
        with self._as_result_error("removed", name), suppress(FileNotFoundError):
            if self.is_local:
                os.unlink(self.path_of(name))
            else:
                files, path = file_system(self.path_of(name))
                files.rm_file(path)

    @contextmanager
    def _as_result_error(self, action: str, name: str = "") -> Iterator[None]:
        try:
            yield
        except Exception as error:  # packages of file systems raise errors of their own
            place = self.path_of(name) if name else self.location
            raise ResultError(f"{place} cannot be {action}: {error}. Choose another folder.") from error

    def lock(self) -> AbstractContextManager[object]:
        """Return a context manager that keeps other runs out of a local folder.

        Raises:
            ResultError: Another run is writing to the folder, or it cannot be written.
        """
        return self._lock() if self.is_local else nullcontext()

    @contextmanager
    def _lock(self) -> Iterator[None]:
        from filelock import FileLock, Timeout

        try:
            os.makedirs(self.location, exist_ok=True)
            lock = FileLock(self.path_of(LOCK))
            lock.acquire(timeout=0)
        except Timeout as error:
            raise ResultError(
                f"Another run is writing to {self.location}: wait until it ends, or choose another folder."
            ) from error
        except OSError as error:
            raise ResultError(f"{self.location} cannot be used: {error}. Choose another folder.") from error
        try:
            yield
        finally:
            lock.release()


def is_temporary(name: str) -> bool:
    """Return whether a name is that of a file that was not completed."""
    return _TEMPORARY.fullmatch(name) is not None
