"""Checks of output files before the work: no file of the same run is overwritten, and each can be written."""

from __future__ import annotations

import os
import stat
import tempfile
import unicodedata
from collections.abc import Hashable, Iterable, Mapping
from pathlib import Path
from typing import TypeAlias

from solo_infer.errors import ResultError, SoloInferError
from solo_infer.runtime.messages import quoted

PathLike: TypeAlias = str | os.PathLike[str]


class FileSet:
    """Set of files that recognizes each one by any path: other spellings, symbolic links and hard links.

    Names that differ only in case or Unicode normalization are taken as equal, because they are one file on
    some file systems. Pipes and devices are never in the set.

    Args:
        paths: Paths of the files, which need not exist; ``~`` is expanded.
    """

    def __init__(self, paths: Iterable[PathLike] = ()) -> None:
        self._paths: dict[Hashable, str] = {}
        for path in paths:
            self.add(path)

    def add(self, path: PathLike) -> None:
        """Add a file."""
        for key in _keys(path):
            self._paths.setdefault(key, os.fsdecode(path))

    def find(self, path: PathLike) -> str | None:
        """Return the path under which the file was added, None if it was not."""
        return next((self._paths[key] for key in _keys(path) if key in self._paths), None)

    def __contains__(self, path: PathLike) -> bool:
        return self.find(path) is not None


def _keys(path: PathLike) -> list[Hashable]:
    """Return the keys that identify a file: its real path, and its inode if it exists."""
    try:
        real = os.fsdecode(os.path.realpath(os.path.expanduser(path)))
        name = unicodedata.normalize("NFC", real).casefold()
        status = os.stat(real)
    except ValueError:  # a null character
        return []
    except OSError:
        return [name]
    if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
        return []
    return [name, (status.st_dev, status.st_ino)] if status.st_ino else [name]


def refuse_overwriting(
    outputs: Mapping[str, PathLike | None], inputs: Mapping[str, Iterable[PathLike]]
) -> None:
    """Check that no output of a run is one of its inputs or another output, whatever the spelling.

    Args:
        outputs: Paths of the files to write, by the name of the option. None is skipped.
        inputs: Paths of the files to read, by a name for messages.

    Raises:
        ResultError: Two of them are the same file; the message has both.
    """
    protected = [(name, FileSet(paths)) for name, paths in inputs.items()]
    for name, path in outputs.items():
        if path is None:
            continue
        for other_name, files in protected:
            other = files.find(path)
            if other is not None and not _differ_in_case_only(path, other):
                raise ResultError(
                    f"{name} {quoted(path, 200)} is the same file as {other_name} {quoted(other, 200)}, "
                    "which it would overwrite: choose another file."
                )
        protected.append((name, FileSet([path])))


def _differ_in_case_only(path: PathLike, other: PathLike) -> bool:
    """Return whether paths of equal keys are two files of a file system that distinguishes their names."""
    first, second = (os.fsdecode(os.path.realpath(os.path.expanduser(item))) for item in (path, other))
    if first == second:
        return False
    try:
        return not os.path.samefile(first, second)
    except OSError:  # one of them does not exist yet
        return not _ignores_case(Path(first).parent)


def _ignores_case(folder: Path) -> bool:
    """Return whether the file system of a folder, which need not exist, ignores case; probes its names."""
    for ancestor in (folder, *folder.parents):
        swapped = ancestor.with_name(ancestor.name.swapcase()) if ancestor.name else ancestor
        if swapped != ancestor and ancestor.exists():
            return swapped.exists() and swapped.samefile(ancestor)
    return os.path.normcase("A") == "a"


def require_writable(
    name: str,
    path: Path | None,
    *,
    create_folder: bool = False,
    error_type: type[SoloInferError] = ResultError,
) -> None:
    """Check that a file can be written, without changing it.

    Args:
        name: Name of the option, for messages.
        path: Path of the file. None is not checked.
        create_folder: Whether the folder of the file will be created if it does not exist.
        error_type: Type of the error.

    Raises:
        ResultError: Or ``error_type``: the path is a folder, or its folder is missing or cannot be written.
    """
    if path is None:
        return
    label = f"{name} {quoted(path, 200)}"
    if os.path.isdir(path):
        raise error_type(f"{label} is a folder: expected the path of a file.")
    try:
        if os.path.exists(path) and not os.path.isfile(path):  # a pipe or a device, which is written directly
            if not os.access(path, os.W_OK):
                raise PermissionError(f"no permission to write to {path}")
            return
        folder = Path(os.path.realpath(path)).parent
        if create_folder:
            folder = next(parent for parent in (folder, *folder.parents) if parent.exists())
        with tempfile.TemporaryFile(dir=folder):
            pass
    except (OSError, ValueError) as error:
        raise error_type(f"{label} cannot be written: {error}. Choose another file.") from error
