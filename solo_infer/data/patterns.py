"""Files that match a glob pattern, each once, whatever links the folders contain."""

from __future__ import annotations

import glob
import os
from collections import deque
from collections.abc import Hashable, Iterable, Iterator

_ANY_FOLDERS = "**"


def match_files(pattern: str) -> list[str]:
    """Return the files that match a pattern, sorted. As in ``glob``, "**" matches any number of folders.

    Each file occurs once: one that is reached by several links or has several names (hard links) occurs under
    the first name that is not a link. A folder is not entered twice, so that links cannot make the search
    endless.
    """
    return unique_files(path for path in _matches(pattern) if os.path.isfile(path))


def unique_files(paths: Iterable[str]) -> list[str]:
    """Return the paths, sorted, with one path for each file."""
    by_file: dict[Hashable, str] = {}
    for path in sorted(set(paths), key=lambda path: (os.path.islink(path), path)):
        by_file.setdefault(file_key(path), path)
    return sorted(by_file.values())


def file_key(path: str) -> Hashable:
    """Return a key that is equal for all paths of a file or folder."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return path
    return (status.st_dev, status.st_ino) if status.st_ino else os.path.normcase(os.path.realpath(path))


def _matches(pattern: str) -> Iterator[str]:
    parts = pattern.replace(os.altsep or os.sep, os.sep).split(os.sep)
    if _ANY_FOLDERS not in parts:
        yield from glob.iglob(pattern)
        return
    position = parts.index(_ANY_FOLDERS)
    top = os.sep.join([*parts[:position], ""]) if position else ""
    rest = [part for index, part in enumerate(parts) if index > position]
    while rest and rest[0] == _ANY_FOLDERS:
        del rest[0]
    for start in glob.iglob(top) if top else [""]:
        for folder in _folders_below(start):
            yield from _matches(os.path.join(glob.escape(folder), *(rest or ["*"])))


def _folders_below(top: str) -> Iterator[str]:
    """Yield a folder and all folders below it that are not hidden, links last, each folder once."""
    seen: set[Hashable] = set()
    folders, links = deque([top]), deque[str]()
    while folders or links:
        folder = folders.popleft() if folders else links.popleft()
        key = file_key(folder or os.curdir)
        if key in seen:
            continue
        seen.add(key)
        yield folder
        for name in _list(folder or os.curdir):
            path = os.path.join(folder, name)
            if not name.startswith(".") and os.path.isdir(path):
                (links if os.path.islink(path) else folders).append(path)


def _list(folder: str) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError:  # as glob does, skip what must not be read
        return []
