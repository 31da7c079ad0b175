"""Files that the "file_name" entries of an annotation file refer to."""

from __future__ import annotations

import logging
import ntpath
import os
import posixpath
from collections.abc import Iterable, Iterator
from pathlib import Path

from solo_infer.data.coco import CocoData
from solo_infer.errors import DataError
from solo_infer.runtime.messages import quoted

logger = logging.getLogger(__name__)

_MAX_PARTS = 32  # folders of a name among which its end is searched


def find_images(folder: str | os.PathLike[str], data: CocoData) -> list[str | None]:
    r"""Return the path of each image relative to a folder, None for missing files.

    A "file_name" is relative to the folder and never leads out of it, although links in the folder are
    followed. If there is no such file, ``\`` is read as ``/`` and the longest end of the name that is a file
    in the folder is used: "C:\photos\val\1.jpg" may be "val/1.jpg" or "1.jpg". Such names are logged.

    Args:
        folder: Folder of the images.
        data: Annotation file.

    Raises:
        DataError: Two images are the same file.
    """
    names = [find_image(folder, image.file_name) for image in data.images]
    changed = [
        (image.file_name, name)
        for image, name in zip(data.images, names, strict=True)
        if name not in (None, image.file_name)
    ]
    if changed:
        logger.warning(
            "%s: %d of %d file names are not in %s: they are matched by their end, such as %s with %s",
            data.path,
            len(changed),
            len(names),
            folder,
            quoted(changed[0][0]),
            quoted(changed[0][1]),
        )
    _require_different(data, names)
    return names


def find_image(folder: str | os.PathLike[str], file_name: str) -> str | None:
    """Return the path of one image relative to a folder, None if it is missing; see ``find_images``."""
    return next((name for name in _candidates(folder, file_name) if _is_file(folder, name)), None)


def encoding_hint(file_names: Iterable[str]) -> str:
    """Return why this process cannot find files of some names, "" if the names are not the reason."""
    for name in file_names:
        try:
            os.fsencode(name)
        except UnicodeEncodeError as error:
            if not any("\ud800" <= char <= "\udfff" for char in name):  # no encoding has these
                return (
                    f" The file system encoding of this process, {error.encoding}, lacks characters of "
                    f"{quoted(name)}: set PYTHONUTF8=1 or a UTF-8 locale."
                )
    return ""


def _candidates(folder: str | os.PathLike[str], file_name: str) -> Iterator[str]:
    """Yield possible paths of an image relative to a folder, all of them inside."""
    is_relative = not (os.path.isabs(file_name) or os.path.splitdrive(file_name)[0])
    if is_relative and ".." not in Path(file_name).parts:
        yield file_name
    if os.path.isabs(file_name):
        path, root = os.path.normpath(file_name), os.path.abspath(folder)
        if path.startswith(root + os.sep):
            yield os.path.relpath(path, root)
    name = posixpath.normpath(ntpath.splitdrive(file_name.replace("\\", "/"))[1])
    parts = [part for part in name.split("/") if part not in ("", ".", "..")][-_MAX_PARTS:]
    yield from ("/".join(parts[start:]) for start in range(len(parts)))


def _is_file(folder: str | os.PathLike[str], name: str) -> bool:
    """Return whether a file exists; names that no file can have, such as very long ones, do not raise."""
    try:
        return os.path.isfile(os.path.join(folder, name))
    except (OSError, ValueError):
        return False


def _require_different(data: CocoData, names: Iterable[str | None]) -> None:
    file_names: dict[str, str] = {}
    for image, name in zip(data.images, names, strict=True):
        if name is None:
            continue
        other = file_names.setdefault(os.path.normpath(name), image.file_name)
        if other != image.file_name:
            raise DataError(
                f'{data.path}: several "file_name" refer to the same file, such as {quoted(other)} and '
                f"{quoted(image.file_name)}: expected different files."
            )
