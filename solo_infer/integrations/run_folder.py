"""Files in a folder of this machine, or of an object store that fsspec reads."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from solo_infer.data.remote_files import file_system, is_remote
from solo_infer.errors import DataError, ImageError, OfflineError, ResultError
from solo_infer.runtime.atomic_files import write_whole

LOCK = "_lock"
_TEMPORARY = re.compile(r"\.\d+-[0-9a-f]{12}(\.\w+)?")  # names of atomic_files.StagedFile


class RunFolder:
    """Folder whose files appear when they are complete.

    Args:
        location: Path of the folder, or URI such as "s3://bucket/run".

    Attributes:
        is_local: Whether the folder is on this machine, or on one whose files it has mounted.
        location: Absolute path, or URI.
    """

    def __init__(self, location: str | os.PathLike[str]) -> None:
        text = os.fsdecode(location)
        self.is_local = not is_remote(text)
        self.location = os.path.abspath(os.path.expanduser(text)) if self.is_local else text.rstrip("/")

    def path_of(self, name: str) -> str:
        """Return the path or URI of a file."""
        return os.path.join(self.location, name) if self.is_local else f"{self.location}/{name}"

    def names(self) -> set[str]:
        """Return the names of the files, none if there is no folder.

        Raises:
            ResultError: The folder cannot be read.
        """
        files, path = self._file_system()
        try:
            files.invalidate_cache()
            return {str(name).rstrip("/").rpartition("/")[2] for name in files.ls(path, detail=False)}
        except FileNotFoundError:
            return set()
        except Exception as error:  # packages of file systems raise errors of their own
            raise ResultError(f"{self.location} cannot be read: {error}. Choose another folder.") from error

    def exists(self, name: str) -> bool:
        """Return whether there is a file."""
        files, path = self._file_system()
        files.invalidate_cache()
        return bool(files.exists(f"{path}/{name}"))

    def open_file(self, name: str) -> Any:
        """Open a file for reading bytes.

        Raises:
            OSError: It cannot be opened.
        """
        files, path = self._file_system()
        return files.open(f"{path}/{name}", "rb")

    def read(self, name: str) -> str | None:
        """Return the text of a file, None if there is no such file.

        Raises:
            DataError: It cannot be read.
        """
        try:
            with self.open_file(name) as file:
                text: str = file.read().decode("utf-8")
                return text
        except FileNotFoundError:
            return None
        except ResultError:
            raise
        except Exception as error:
            raise DataError(f"{self.path_of(name)} cannot be read: {error}.") from error

    def write(self, name: str, content: bytes) -> None:
        """Write a file, which appears when it is complete.

        Raises:
            ResultError: The file cannot be written.
        """
        files, path = self._file_system()
        try:
            files.makedirs(path, exist_ok=True)
            if self.is_local:
                write_whole(Path(self.path_of(name)), lambda staged: staged.write_bytes(content))
            else:  # object stores show a file when its upload is complete
                files.pipe_file(f"{path}/{name}", content)
        except Exception as error:
            raise ResultError(
                f"{self.path_of(name)} cannot be written: {error}. Choose another folder."
            ) from error

    def remove(self, name: str) -> None:
        """Remove a file, unless another process has removed it.

        Raises:
            ResultError: The file cannot be removed.
        """
        files, path = self._file_system()
        try:
            files.rm_file(f"{path}/{name}")
        except FileNotFoundError:
            return
        except Exception as error:
            raise ResultError(f"{self.path_of(name)} cannot be removed: {error}.") from error

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

    def _file_system(self) -> tuple[Any, str]:
        try:
            return file_system(self.location)
        except (ImageError, OfflineError) as error:
            raise ResultError(str(error)) from error


def is_temporary(name: str) -> bool:
    """Return whether a name is that of a file that was not completed."""
    return _TEMPORARY.fullmatch(name) is not None
