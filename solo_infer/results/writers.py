"""Where the results of many images go: pictures in a folder, one COCO results file."""

from __future__ import annotations

import json
import logging
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import BinaryIO
from urllib.parse import unquote, urlsplit

from solo_infer.errors import ResultError
from solo_infer.results.result import Result
from solo_infer.runtime.atomic_files import discard, put_in_place, staging_path

logger = logging.getLogger(__name__)

PICTURE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"}
_MAX_DIGITS = 18  # of a name that is taken for a number: more do not fit into 64 bits


def source_path(source: str) -> Path:
    """Return the path of an image, or that within its URL."""
    return Path(unquote(urlsplit(source).path).replace("\0", "")) if "://" in source else Path(source)


class PictureFolder:
    """Writes each result's drawing as ``NAME_segmented.EXT``, never one over another.

    Args:
        folder: Made when the first picture is written.
        min_score: Instances below this score are left out.
        boxes: Draw boxes.
        keep: Files that must not be overwritten, say those that are still to be read.
    """

    def __init__(
        self, folder: Path, *, min_score: float = 0.0, boxes: bool = False, keep: Iterable[str] = ()
    ) -> None:
        self.folder, self.min_score, self.boxes = folder, min_score, boxes
        self._taken = {_comparable(path) for path in keep}

    def make(self) -> None:
        """Make the folder and try whether files can be written there.

        Raises:
            ResultError: They cannot.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.folder):
                pass
        except OSError as error:
            raise ResultError(
                f"No picture can be written in {self.folder}: {error}. Choose another folder."
            ) from error

    def add(self, result: Result) -> Path:
        """Write one picture and return its path.

        Raises:
            ResultError: It cannot be written.
        """
        if not self.folder.is_dir():
            self.make()
        path = self._free_path(source_path(result.source))
        result.save(path, min_score=self.min_score, boxes=self.boxes)
        self._taken.add(_comparable(path))
        return path

    def _free_path(self, source: Path) -> Path:
        suffix = source.suffix.lower() if source.suffix.lower() in PICTURE_SUFFIXES else ".jpg"
        stem = f"{source.stem or 'image'}_segmented"
        path, number = self.folder / f"{stem}{suffix}", 2
        while _comparable(path) in self._taken:  # equal names from different folders
            path, number = self.folder / f"{stem}_{number}{suffix}", number + 1
        return path


def _comparable(path: str | Path) -> str:
    """Return what two paths of one file have in common, also where upper and lower case are the same."""
    return os.path.realpath(path).casefold()


class ImageIds:
    """Gives each image a COCO image id, the same one each time.

    Args:
        given: Ids by file name, as ``read_image_ids`` returns them. A source is found by the end of its
            path: "data/val/1.jpg" is the image "val/1.jpg" or "1.jpg". Without them, an image gets the
            number that is its name, as in COCO ("000000000139.jpg" is 139), or else its place in the
            order, counted from 1.
    """

    def __init__(self, given: Mapping[str, int | str] | None = None) -> None:
        self._by_ending = None if given is None else _by_ending(given)
        self._known: dict[str, int | str] = {}
        self._owners: dict[int | str, str] = {}
        self._count = self._highest = 0
        self._warned = False

    def of(self, source: str) -> int | str:
        """Return the id of an image; each image in memory ("") is a new one.

        Raises:
            ResultError: The ids that were given have none for it, or the same one as for another image.
        """
        if source in self._known:
            return self._known[source]
        self._count += 1
        number = self._derive(source) if self._by_ending is None else self._find(source, self._by_ending)
        if source:
            self._known[source] = number
        self._owners[number] = source
        return number

    def _find(self, source: str, by_ending: dict[tuple[str, ...], int | str | None]) -> int | str:
        parts = source_path(source).parts
        endings = (parts[start:] for start in range(len(parts)))
        number = next((by_ending[ending] for ending in endings if ending in by_ending), None)
        if number is None:
            raise ResultError(
                f"{source!r} is not, or not with a name of its own, among the images of the annotation file: "
                'expected the "file_name" of one of them at the end of the path.'
            )
        if number in self._owners:
            raise ResultError(
                f"{source!r} and {self._owners[number]!r} are both image {number} of the annotation file: "
                "segment one of them."
            )
        return number

    def _derive(self, source: str) -> int:
        stem = source_path(source).stem
        numbered = stem.isascii() and stem.isdigit() and len(stem) <= _MAX_DIGITS
        number = int(stem) if numbered else self._count
        if number in self._owners:
            if numbered and not self._warned:
                self._warned = True
                logger.warning(
                    "%s gets image id %d, as %d is that of %s, and others may have the same fate: to choose "
                    "the ids, give an annotation file.",
                    source,
                    self._highest + 1,
                    number,
                    self._owners[number] or "an image in memory",
                )
            number = self._highest + 1
        self._highest = max(self._highest, number)
        return number


def _by_ending(given: Mapping[str, int | str]) -> dict[tuple[str, ...], int | str | None]:
    """Return the ids by all endings of their file names, None for an ending that several share."""
    found: dict[tuple[str, ...], int | str | None] = {}
    for name, number in given.items():
        parts = Path(name).parts
        for start in range(len(parts)):
            ending = parts[start:]
            found[ending] = number if found.get(ending, number) == number else None
    return found


class CocoFile:
    """Writes a COCO results file (a list, as ``COCO.loadRes`` reads it) result by result.

    Each instance has its image's "file_name" beside COCO's keys, and no "bbox", so that mask AP by object
    size is right (see ``Result.to_coco``).

    The list grows in a temporary file beside it and gets its name when it is complete. Leaving the
    ``with`` block by ctrl-C completes it with the images that are done; by an error, nothing is left.

    Args:
        path: The file to write.
        image_ids: Ids by file name, or what gives them; see ``ImageIds``.
        min_score: Instances below this score are left out.
    """

    def __init__(
        self,
        path: Path,
        image_ids: Mapping[str, int | str] | ImageIds | None = None,
        *,
        min_score: float = 0.0,
    ) -> None:
        self.path, self.min_score = path, min_score
        self._ids = image_ids if isinstance(image_ids, ImageIds) else ImageIds(image_ids)
        self._stream: BinaryIO
        self._complete = 0  # bytes up to the end of the last image
        self._images = self._instances = 0

    def __enter__(self) -> CocoFile:
        """Open the file.

        Raises:
            ResultError: It cannot be written.
        """
        if self.path.is_dir():
            raise ResultError(f"{self.path} is a folder: expected the name of a file, e.g. results.json.")
        with self._explained():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._staged = staging_path(self.path)
            self._stream = self._staged.open("wb")
            self._complete = self._stream.write(b"[")
        return self

    def add(self, result: Result) -> None:
        """Append the instances of one image.

        Raises:
            ResultError: They cannot be written, or the image has no id.
        """
        name = source_path(result.source).name
        entries = result.filter(self.min_score).to_coco(self._ids.of(result.source), boxes=False)
        lines = [json.dumps({**entry, "file_name": name}) for entry in entries]
        text = "".join(
            (",\n" if self._instances + place else "\n") + line for place, line in enumerate(lines)
        )
        with self._explained():
            # An image is written at once and counted after that, so that ctrl-C leaves no part of one.
            written = self._stream.write(text.encode("ascii"))
        self._complete, self._images = self._complete + written, self._images + 1
        self._instances += len(lines)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        interrupted = kind is not None and issubclass(kind, KeyboardInterrupt)
        complete = kind is None or (interrupted and self._images > 0)
        try:
            with self._explained(), self._stream:
                if interrupted and self._stream.seekable():
                    self._stream.seek(self._complete)
                    self._stream.truncate()
                if complete:
                    self._stream.write(b"\n]\n")
            if complete:
                with self._explained():
                    put_in_place(self._staged, self.path)
        finally:
            discard(self._staged, self.path)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise ResultError(f"{self.path} cannot be written: {error}. Choose another file.") from error


def read_image_ids(annotations: Path) -> dict[str, int | str]:
    """Return {file name: image id} of a COCO annotation file.

    Raises:
        ResultError: It is no such file, or two of its images have one name.
    """
    try:
        content = json.loads(annotations.read_text(encoding="utf-8"))
        images = [(image["file_name"], image["id"]) for image in content["images"]]
        ids = dict(images)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ResultError(
            f"{annotations} is no COCO annotation file ({type(error).__name__}: {error}): expected a JSON "
            'object with "images", each with "id" and "file_name".'
        ) from error
    wrong = next((image for image in images if not _is_named_and_numbered(*image)), None)
    if wrong:
        raise ResultError(f"{annotations}: image {wrong}: expected a file name and a whole number or text.")
    if len(ids) < len(images) or len(set(ids.values())) < len(ids):
        raise ResultError(f"{annotations}: expected images of different file names and different ids.")
    return ids


def _is_named_and_numbered(name: object, number: object) -> bool:
    return isinstance(name, str) and isinstance(number, int | str) and not isinstance(number, bool)
