"""Folders with files of their own for each result."""

from __future__ import annotations

import os
import tempfile
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from solo_infer.config.validation import require_path
from solo_infer.errors import ResultError
from solo_infer.runtime.atomic_files import write_text
from solo_infer.runtime.messages import quoted
from solo_infer.runtime.output_files import FileSet

if TYPE_CHECKING:
    from solo_infer.results.result import Result


def source_path(source: str) -> Path:
    """Return the path of a source, or the path of its URL (of an invalid one the last part)."""
    if "://" not in source:
        return Path(source)
    try:
        path = urlsplit(source).path
    except ValueError:
        path = source.rpartition("/")[2]
    return Path(unquote(path).replace("\0", ""))


def file_stem(source: str) -> str:
    """Return the file name of a source without its suffix, "image" for an image in memory."""
    stem = source_path(source).stem
    return stem if stem not in ("", "..") else "image"


class ResultFolder(ABC):
    """Base class of writers that write one file, or one folder, for each result.

    Args:
        folder: Path of the folder, which is created when the first result is written; ``~`` is expanded.
        min_score: Lowest score to write, 0..1, None for any.
        keep: Paths of files that must not be overwritten, such as images that are still to be read.

    Raises:
        ConfigError: The folder is not a path.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        min_score: float | None = 0.0,
        keep: Iterable[str | os.PathLike[str]] = (),
    ) -> None:
        self.folder, self.min_score = require_path("folder", folder), min_score
        self._used = FileSet(keep)
        self._numbers: Counter[Path] = Counter()

    def make(self) -> None:
        """Create the folder, and check that it is writable.

        Raises:
            ResultError: The folder cannot be created or written to.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.folder):
                pass
        except OSError as error:
            raise ResultError(
                f"Nothing can be written to {self.folder}: {error}. Choose another folder."
            ) from error

    def add(self, result: Result) -> Path:
        """Write a result and return the path of its file or folder.

        Raises:
            ResultError: The file cannot be written.
        """
        if not self.folder.is_dir():
            self.make()
        path = self._unused(self.path_of(result.source))
        self._write(result if self.min_score is None else result.filter(self.min_score), path)
        self._used.add(path)
        return path

    @abstractmethod
    def path_of(self, source: str) -> Path:
        """Return the path for a source, unless that of another image has the same name."""

    @abstractmethod
    def _write(self, result: Result, path: Path) -> None:
        """Write the instances of a result to a path."""

    def _unused(self, first: Path) -> Path:
        path, number = first, self._numbers[first] or 1
        while path in self._used:  # equal names from different folders
            number += 1
            path = first.with_stem(f"{first.stem}_{number}")
        if number > 1:
            self._numbers[first] = number
        return path


class LabelFolder(ResultFolder):
    """Base class of writers of text files that people edit: existing files are never replaced."""

    def require_new(self, sources: Iterable[str]) -> None:
        """Check that no file of any source exists.

        Raises:
            ResultError: A file exists.
        """
        for source in sources:
            _require_new(self.path_of(source))

    def _write(self, result: Result, path: Path) -> None:
        _require_new(path)
        text = self._text(result, path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, text)
        except (OSError, ValueError) as error:
            raise ResultError(
                f"{quoted(path, 200)} cannot be written: {error}. Choose another folder."
            ) from error

    @abstractmethod
    def _text(self, result: Result, path: Path) -> str:
        """Return the text of a file."""


def _require_new(path: Path) -> None:
    if os.path.lexists(path):
        raise ResultError(
            f"{quoted(path, 200)} exists, and may have been edited: remove it or choose another folder."
        )
