"""Reader of COCO results files."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from solo_infer.data.coco import CocoData, ImageId, check_number, summarize, to_rle
from solo_infer.errors import DataError

_CHUNK = 1 << 20  # characters read at a time
_SEPARATORS = re.compile(r"[\s,]*")  # characters between the entries of a list


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
        files: COCO results files (lists of "image_id", "category_id", "score" and "segmentation").
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
                is_known_image = entry["image_id"] in data.image_ids
                category, score = entry["category_id"], check_number("score", entry["score"])
                has_known_class |= category in data.category_ids
                if category in detections and entry["image_id"] in sizes:
                    mask = to_rle(entry["segmentation"], *sizes[entry["image_id"]])
                    detections[category].append(Detection(entry["image_id"], *mask, score))
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(
                    f"{path}: detection {summarize(entry)} ({type(error).__name__}: {error}): expected "
                    '"image_id", "category_id", "score" and "segmentation" (RLE of the image\'s size).'
                ) from error
            if not is_known_image:
                raise DataError(
                    f"{path}: image {entry['image_id']!r} is not in {data.path}: expected detections on the "
                    "images of that file, with its image ids."
                )
    if not is_empty and not has_known_class:
        raise DataError(
            f"No detection is of a category of {data.path} (ids {summarize(sorted(data.category_ids))}): "
            "expected its category ids."
        )
    return detections


def iterate_list(path: str | os.PathLike[str]) -> Iterator[dict[str, Any]]:
    """Iterate over the objects of a JSON list, holding little more than one of them in memory.

    Raises:
        DataError: The file cannot be read or is not a list of objects.
    """
    path = Path(path)
    try:
        with path.open(encoding="utf-8") as file:
            yield from _entries(path, file)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}. Expected a COCO results file.") from error


def _entries(path: Path, file: TextIO) -> Iterator[dict[str, Any]]:
    decode = json.JSONDecoder().raw_decode
    text = file.read(_CHUNK).lstrip()
    position = 1
    if not text.startswith("["):
        raise DataError(f"{path} is not a COCO results file: expected a JSON list of detections.")
    while True:
        position = _SEPARATORS.match(text, position).end()  # type: ignore[union-attr]  # it matches any text
        if text.startswith("]", position):
            return
        try:
            entry, position = decode(text, position)
        except json.JSONDecodeError as error:  # usually because the rest of the entry has not been read yet
            chunk = file.read(max(_CHUNK, len(text) - position))
            if not chunk:
                raise DataError(
                    f"{path} is not a complete COCO results file: {error.msg} after "
                    f"{summarize(text[position:])}."
                ) from error
            text, position = text[position:] + chunk, 0
            continue
        if not isinstance(entry, dict):
            raise DataError(f"{path}: {summarize(entry)} in the list: expected only objects.")
        yield entry
