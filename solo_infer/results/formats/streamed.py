"""Files that are written result by result and appear when they are complete."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, BinaryIO, TypeVar, cast

from solo_infer.config.validation import require_path
from solo_infer.errors import ResultError
from solo_infer.runtime.atomic_files import StagedFile
from solo_infer.runtime.output_files import refuse_overwriting

if TYPE_CHECKING:
    from solo_infer.results.result import Result

FileT = TypeVar("FileT", bound="StreamedFile")


class StreamedFile(ABC):
    """Context manager that writes the results of many images to one file.

    The content is written to a temporary file in the same folder, which is renamed when it is complete. On
    ctrl-C, the file is completed with the images written so far; on an error, it is removed.

    Args:
        target: Path of the file, where ``~`` is expanded, or a binary stream such as ``sys.stdout.buffer``,
            which is not closed, and left incomplete after an error.
        min_score: Lowest score to write, 0..1.

    Raises:
        ConfigError: The target is neither a path nor a stream.
    """

    def __init__(self, target: str | os.PathLike[str] | BinaryIO, *, min_score: float = 0.0) -> None:
        self.path: Path | None = None
        self.min_score = min_score
        self._stream: BinaryIO
        if hasattr(target, "write"):
            self._stream = cast(BinaryIO, target)
        else:
            self.path = require_path("target", target)
        self._staged: StagedFile | None = None
        self._complete = 0  # bytes up to the end of the last result
        self._images = 0

    @abstractmethod
    def _opening(self) -> str:
        """Return the text before the first result."""

    @abstractmethod
    def _entries(self, result: Result) -> str:
        """Return the text of a result, whose instances have the lowest score or a higher one."""

    @abstractmethod
    def _closing(self) -> Iterator[str]:
        """Yield the text after the last one of ``self._images`` results."""

    def __enter__(self: FileT) -> FileT:
        """Open the file.

        Raises:
            ResultError: The file cannot be written.
        """
        if self.path is not None and os.path.isdir(self.path):
            raise ResultError(f"{self.path} is a folder: expected the path of a file, e.g. results.json.")
        with self._as_result_error():
            if self.path is not None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._staged = StagedFile(self.path)
            try:
                if self._staged:
                    self._stream = self._staged.path.open("wb")
                self._complete = self._write(self._opening())
            except OSError:
                self._discard()
                raise
        return self

    def add(self, result: Result) -> None:
        """Append the instances of one image.

        Raises:
            ResultError: The file cannot be written or is the image itself, or the image has no id.
        """
        if self.path is not None and result.source and "://" not in result.source:
            refuse_overwriting({"The results file": self.path}, {"the segmented image": [result.source]})
        text = self._entries(result.filter(self.min_score))
        with self._as_result_error():
            # A result is written in one call and counted afterwards: ctrl-C cannot leave a part of it.
            written = self._write(text)
        self._complete, self._images = self._complete + written, self._images + 1

    def _write(self, text: str) -> int:
        # Names of files that are not valid Unicode have lone surrogates.
        return self._stream.write(text.encode("utf-8", "backslashreplace"))

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        interrupted = error_type is not None and issubclass(error_type, KeyboardInterrupt)
        is_complete = error_type is None or (interrupted and self._images > 0)
        try:
            with self._as_result_error():
                try:
                    self._finish(interrupted, is_complete)
                finally:
                    if self._staged:
                        self._stream.close()
            if is_complete and self._staged:
                with self._as_result_error():
                    self._staged.commit()
        finally:
            self._discard()

    def _finish(self, interrupted: bool, is_complete: bool) -> None:
        if interrupted and self._staged and self._stream.seekable():
            self._stream.seek(self._complete)
            self._stream.truncate()
        if is_complete:
            for text in self._closing():
                self._write(text)
            self._stream.flush()

    def _discard(self) -> None:
        if self._staged:
            self._staged.discard()

    @contextmanager
    def _as_result_error(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:
            if self.path is None or isinstance(error, ResultError):
                raise
            raise ResultError(f"{self.path} cannot be written: {error}. Choose another file.") from error
