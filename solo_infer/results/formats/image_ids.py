"""COCO image ids of sources."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from solo_infer.errors import ResultError
from solo_infer.results.formats.folder import source_path

logger = logging.getLogger(__name__)

_MAX_PARTS = 32  # folders of a "file_name" by which sources are matched
_MAX_DIGITS = 18  # of a file name that is an image id; more may not fit into 64 bits


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
