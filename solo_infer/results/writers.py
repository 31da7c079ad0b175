"""Writers of results: drawings in a folder, COCO results files."""

from __future__ import annotations

import json
import logging
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import BinaryIO
from urllib.parse import unquote, urlsplit

from solo_infer.errors import ResultError
from solo_infer.results.caption_text import require_font
from solo_infer.results.result import Result
from solo_infer.runtime.atomic_files import StagedFile
from solo_infer.runtime.output_files import FileSet, refuse_overwriting

logger = logging.getLogger(__name__)

DRAWING_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"}
DRAWING_MARK = "_segmented"  # at the end of the names of drawings
_DRAWING_STEM = re.compile(rf"(.+){DRAWING_MARK}(?:_\d+)?", re.DOTALL)
_MAX_PARTS = 32  # folders of a "file_name" by which sources are matched
_MAX_DIGITS = 18  # of a file name that is an image id; more may not fit into 64 bits


def source_path(source: str) -> Path:
    """Return the path of a source, or the path of its URL (of an invalid one the last part)."""
    if "://" not in source:
        return Path(source)
    try:
        path = urlsplit(source).path
    except ValueError:
        path = source.rpartition("/")[2]
    return Path(unquote(path).replace("\0", ""))


def drawings_among(paths: Sequence[str], folder: str | os.PathLike[str]) -> list[str]:
    """Return the paths that have the name of a drawing of another one of them.

    Args:
        paths: Paths of image files.
        folder: Folder of drawings; elsewhere, drawings are beside their images.
    """
    places = [(os.path.dirname(path), Path(path).stem) for path in paths]
    beside, anywhere = set(places), {stem for _, stem in places}
    output = os.path.realpath(folder)
    return [
        path
        for path, (parent, stem) in zip(paths, places, strict=True)
        if (match := _DRAWING_STEM.fullmatch(stem)) is not None
        and ((parent, match[1]) in beside or (match[1] in anywhere and os.path.realpath(parent) == output))
    ]


class ImageFolder:
    """Writer of drawings, named ``NAME_segmented.EXT`` after their images. Each result gets its own file.

    Args:
        folder: Path of the folder, which is created when the first drawing is written.
        min_score: Lowest score to draw, 0..1.
        boxes: Whether to draw boxes.
        font: Font file for the captions. Defaults to a font of the system that has the characters.
        keep: Paths of files that must not be overwritten, such as images that are still to be read.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        min_score: float = 0.0,
        boxes: bool = False,
        font: str | os.PathLike[str] | None = None,
        keep: Iterable[str | os.PathLike[str]] = (),
    ) -> None:
        self.folder, self.font = Path(os.path.expanduser(folder)), font
        self.min_score, self.boxes = min_score, boxes
        self._used = FileSet(keep)

    def make(self) -> None:
        """Create the folder, and check that it is writable and that the font can be read.

        Raises:
            ResultError: The folder cannot be created or written to, or the font cannot be read.
        """
        if self.font is not None:
            require_font(self.font)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.folder):
                pass
        except OSError as error:
            raise ResultError(
                f"No image can be written to {self.folder}: {error}. Choose another folder."
            ) from error

    def add(self, result: Result) -> Path:
        """Write the drawing of a result and return its path.

        Raises:
            ResultError: The file cannot be written.
        """
        if not self.folder.is_dir():
            self.make()
        path = self.reserve(result.source)
        result.save(path, min_score=self.min_score, boxes=self.boxes, font=self.font)
        self._used.add(path)  # by its inode, too
        return path

    def path_of(self, source: str, suffix: str | None = None) -> Path:
        """Return the path of the drawing of a source, unless that of another image has the same name.

        Args:
            source: Path or URL of the image or video.
            suffix: Suffix of the drawing. Defaults to that of the image, or ".jpg".
        """
        path = source_path(source)
        if suffix is None:
            suffix = path.suffix.lower() if path.suffix.lower() in DRAWING_SUFFIXES else ".jpg"
        return self.folder / f"{path.stem or 'image'}{DRAWING_MARK}{suffix}"

    def reserve(self, source: str, suffix: str | None = None) -> Path:
        """Return a path for the drawing of a source that no other file of the run has; see ``path_of``."""
        path = first = self.path_of(source, suffix)
        number = 2
        while path in self._used:  # equal names from different folders
            path, number = first.with_stem(f"{first.stem}_{number}"), number + 1
        self._used.add(path)
        return path


class ImageIds:
    """Unique COCO image ids of sources.

    Args:
        by_file_name: Image ids by file name, as ``solo_infer.data.coco.read_image_ids`` returns them. A
            source matches by the end of its path: "data/val/1.jpg" is the image "val/1.jpg" or "1.jpg". In a
            file name from Windows, backslashes count as slashes.
            Defaults to ids derived from the sources: the number that is the file name, as in COCO
            ("000000000139.jpg" is 139), or else the position of the image, counted from 1.
    """

    def __init__(self, by_file_name: Mapping[str, int | str] | None = None) -> None:
        self._by_path_end = None if by_file_name is None else _by_path_end(by_file_name)
        self._ids: dict[tuple[str, int | None], int | str] = {}
        self._sources: dict[int | str, str] = {}
        self._count = self._highest = 0
        self._has_warned = False

    def of(self, source: str, frame_index: int | None = None) -> int | str:
        """Return the id of a source; every image in memory ("") gets a new one, and every frame of a video.

        Args:
            source: Path or URL.
            frame_index: Position of a frame in its video, None for an image.

        Raises:
            ResultError: The annotation file has no image of that name, or it was already matched by another
                source.
        """
        if (source, frame_index) in self._ids:
            return self._ids[source, frame_index]
        self._count += 1
        if self._by_path_end is not None:
            image_id = self._find(source, self._by_path_end)
        else:
            image_id = self._derive(source if frame_index is None else "")
        if source and frame_index is None:
            self._ids[source, None] = image_id
        self._sources[image_id] = source
        return image_id

    def _find(self, source: str, by_path_end: Mapping[tuple[str, ...], int | str | None]) -> int | str:
        parts = source_path(source).parts
        ends = (parts[start:] for start in range(len(parts)))
        image_id = next((by_path_end[end] for end in ends if end in by_path_end), None)
        if image_id is None:
            raise ResultError(
                f"{source!r} is not, or not unambiguously, among the images of the annotation file: expected "
                'a path that ends with the "file_name" of one of them.'
            )
        if image_id in self._sources:
            raise ResultError(
                f"{source!r} and {self._sources[image_id]!r} are both image {image_id} of the annotation "
                "file: segment only one of them."
            )
        return image_id

    def _derive(self, source: str) -> int:
        stem = source_path(source).stem
        is_number = stem.isascii() and stem.isdigit() and len(stem) <= _MAX_DIGITS
        image_id = int(stem) if is_number else self._count
        if image_id in self._sources:
            if is_number and not self._has_warned:
                self._has_warned = True
                logger.warning(
                    "%s gets image id %d, because %d is that of %s; further collisions are not reported. To "
                    "control the ids, pass an annotation file.",
                    source,
                    self._highest + 1,
                    image_id,
                    self._sources[image_id] or "an image in memory",
                )
            image_id = self._highest + 1
        self._highest = max(self._highest, image_id)
        return image_id


def _by_path_end(by_file_name: Mapping[str, int | str]) -> dict[tuple[str, ...], int | str | None]:
    """Return the ids by all ends of their file names, None for an end that several file names share."""
    by_end: dict[tuple[str, ...], int | str | None] = {}
    for name, image_id in by_file_name.items():
        for parts in {Path(name).parts, Path(name.replace("\\", "/")).parts}:
            for start in range(max(len(parts) - _MAX_PARTS, 0), len(parts)):
                end = parts[start:]
                by_end[end] = image_id if by_end.get(end, image_id) == image_id else None
    return by_end


class CocoFile:
    """Context manager that writes a COCO results file (a list, for ``COCO.loadRes``) result by result.

    In addition to COCO's keys, each instance has the "file_name" of its image. It has no "bbox", so that mask
    AP by object size is correct (see ``Result.to_coco``).

    The list is written to a temporary file in the same folder, which is renamed when it is complete. On
    ctrl-C, the file is completed with the images written so far; on an error, it is removed.

    Args:
        path: Path of the file.
        image_ids: ``ImageIds``, or image ids by file name. Defaults to ids derived from the sources.
        min_score: Lowest score to write, 0..1.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        image_ids: Mapping[str, int | str] | ImageIds | None = None,
        *,
        min_score: float = 0.0,
    ) -> None:
        self.path, self.min_score = Path(os.path.expanduser(path)), min_score
        self._ids = image_ids if isinstance(image_ids, ImageIds) else ImageIds(image_ids)
        self._stream: BinaryIO
        self._complete = 0  # bytes up to the end of the last result
        self._images = self._instances = 0

    def __enter__(self) -> CocoFile:
        """Open the file.

        Raises:
            ResultError: The file cannot be written.
        """
        if os.path.isdir(self.path):
            raise ResultError(f"{self.path} is a folder: expected the path of a file, e.g. results.json.")
        with self._as_result_error():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._staged = StagedFile(self.path)
            try:
                self._stream = self._staged.path.open("wb")
                self._complete = self._stream.write(b"[")
            except OSError:
                self._staged.discard()
                raise
        return self

    def add(self, result: Result) -> None:
        """Append the instances of one image.

        Raises:
            ResultError: The file cannot be written or is the image itself, or the image has no id.
        """
        if result.source and "://" not in result.source:
            refuse_overwriting({"The results file": self.path}, {"the segmented image": [result.source]})
        name = source_path(result.source).name
        image_id = self._ids.of(result.source, result.frame_index)
        entries = result.filter(self.min_score).to_coco(image_id, boxes=False)
        frame = {"frame_index": result.frame_index, "frame_time": result.frame_time}
        extra = {"file_name": name, **(frame if result.frame_index is not None else {})}
        lines = [json.dumps({**entry, **extra}) for entry in entries]
        text = "".join(
            (",\n" if self._instances + index else "\n") + line for index, line in enumerate(lines)
        )
        with self._as_result_error():
            # A result is written in one call and counted afterwards: ctrl-C cannot leave a part of it.
            written = self._stream.write(text.encode("ascii"))
        self._complete, self._images = self._complete + written, self._images + 1
        self._instances += len(lines)

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        interrupted = error_type is not None and issubclass(error_type, KeyboardInterrupt)
        is_complete = error_type is None or (interrupted and self._images > 0)
        try:
            with self._as_result_error(), self._stream:
                if interrupted and self._stream.seekable():
                    self._stream.seek(self._complete)
                    self._stream.truncate()
                if is_complete:
                    self._stream.write(b"\n]\n")
            if is_complete:
                with self._as_result_error():
                    self._staged.commit()
        finally:
            self._staged.discard()

    @contextmanager
    def _as_result_error(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:
            raise ResultError(f"{self.path} cannot be written: {error}. Choose another file.") from error
