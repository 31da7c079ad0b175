"""Reader of COCO results files."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, TextIO

from solo_infer.data.annotation import ImageId, check_number, is_listed
from solo_infer.data.coco import CocoData, summarize
from solo_infer.data.segmentation import to_rle
from solo_infer.errors import DataError
from solo_infer.runtime.messages import quoted
from solo_infer.runtime.text_files import open_text

_CHUNK = 1 << 20  # characters read at a time
_MAX_ENTRY = 1 << 26  # characters of one detection
_SPACE = re.compile(r"[ \t\n\r]*")
# A value that ends at the end of the text read so far fails at most this number of characters before it,
# unless it is an unterminated string.
_MAX_TOKEN = 16


class Detection(NamedTuple):
    """One instance of a results file, its mask as compressed RLE; ``area`` is that of the mask, in pixels."""

    image_id: ImageId
    counts: bytes
    area: int
    score: float


def read_detections(files: Iterable[str | os.PathLike[str]], data: CocoData) -> dict[int, list[Detection]]:
    """Return the detections of the selected images and classes by category id.

    Detections of classes that the annotation file does not list are ignored. Memory grows by little more than
    the RLE text of the masks.

    Args:
        files: COCO results files (lists of "image_id", "category_id", "score" and "segmentation") in UTF-8 or
            UTF-16, with or without a byte order mark.
        data: Annotation file with the images and classes.

    Raises:
        DataError: A file is not a COCO results file, has detections on unknown images, or no file has a
            detection of a known class.
    """
    sizes = {image.id: (image.height, image.width) for image in data.images}
    detections: dict[int, list[Detection]] = {number: [] for number in data.categories.ids}
    is_empty, has_known_class = True, False
    for path in files:
        for entry in iterate_list(path):
            is_empty = False
            try:
                image_id, category = entry["image_id"], entry["category_id"]
                score, segmentation = check_number("score", entry["score"]), entry["segmentation"]
                is_selected = is_listed(category, detections) and is_listed(image_id, sizes)
                mask = to_rle(segmentation, *sizes[image_id]) if is_selected else None
                if is_selected and mask is None:
                    raise ValueError(f'"segmentation" is {quoted(segmentation)}: expected polygons or RLE.')
            except (ValueError, KeyError) as error:
                raise DataError(
                    f"{path}: detection {summarize(entry)} ({type(error).__name__}: {error}): expected "
                    '"image_id", "category_id", "score" and "segmentation" (RLE of the image\'s size).'
                ) from error
            if not is_listed(image_id, data.image_ids):
                raise DataError(
                    f"{path}: image {quoted(image_id)} is not in {data.path}: expected detections on the "
                    "images of that file, with its image ids."
                )
            has_known_class |= is_listed(category, data.category_ids)
            if mask is not None:
                detections[category].append(Detection(image_id, *mask, score))
    if not is_empty and not has_known_class:
        raise DataError(
            f"No detection is of a category of {data.path} (ids {summarize(sorted(data.category_ids))}): "
            "expected its category ids."
        )
    return detections


def iterate_list(path: str | os.PathLike[str]) -> Iterator[dict[str, Any]]:
    """Iterate over the objects of a JSON list, holding little more than one of them in memory.

    Raises:
        DataError: The file cannot be read, or is anything other than one list of objects. The end of the list
            is checked after its last object.
    """
    path = Path(path)
    try:
        with open_text(path) as file:
            yield from _Reader(path, file).entries()
    except (OSError, UnicodeError) as error:
        raise DataError(f"{path} cannot be read: {error}. Expected a COCO results file.") from error


class _Reader:
    """Reader of a JSON list, which holds only a window of the text.

    Args:
        path: Path for messages.
        file: Text file.
    """

    def __init__(self, path: Path, file: TextIO) -> None:
        self._path, self._file = path, file
        self._text, self._position = "", 0  # window, and the next character in it
        self._offset = 0  # characters before the window
        self._decode = json.JSONDecoder().raw_decode

    def entries(self) -> Iterator[dict[str, Any]]:
        if self._next() != "[":
            self._fail("expected a JSON list of detections")
        self._position += 1
        if self._next() != "]":
            yield self._entry()
            while self._next() == ",":
                self._position += 1
                yield self._entry()
            if self._next() != "]":
                self._fail("expected ',' or ']' after a detection")
        self._position += 1
        if self._next():
            self._fail("expected nothing after the list")

    def _next(self) -> str:
        """Skip white space and return the next character, "" at the end of the file."""
        while True:
            self._position = _SPACE.match(self._text, self._position).end()  # type: ignore[union-attr]
            if self._position < len(self._text) or not self._extend():
                return self._text[self._position : self._position + 1]

    def _entry(self) -> dict[str, Any]:
        self._next()
        while True:
            try:
                entry, end = self._decode(self._text, self._position)
                break
            except json.JSONDecodeError as error:
                is_cut = error.pos > len(self._text) - _MAX_TOKEN or error.msg.startswith("Unterminated")
                place = self._offset + error.pos
                if not is_cut or not self._extend():
                    self._position = place - self._offset
                    self._fail(error.msg)
            except RecursionError:
                self._fail("a detection is nested too deeply")
            except ValueError as error:  # an integer of too many digits
                self._fail(str(error))
        if not isinstance(entry, dict):
            self._fail(f"{summarize(entry)} in the list: expected only objects")
        self._position = end
        return entry

    def _extend(self) -> bool:
        """Read more text, and return whether there was any."""
        rest = self._text[self._position :]
        if len(rest) > _MAX_ENTRY:
            self._fail(f"a detection is longer than {_MAX_ENTRY} characters")
        chunk = self._file.read(max(_CHUNK, len(rest)))
        self._offset += self._position
        self._text, self._position = rest + chunk, 0
        return bool(chunk)

    def _fail(self, problem: str) -> NoReturn:
        found = self._text[self._position : self._position + 200]
        kind = "is not a" if found else "is not a complete"
        place = f"character {self._offset + self._position} ({quoted(found)})" if found else "the end"
        raise DataError(f"{self._path} {kind} COCO results file: {problem}, at {place}.")
