"""COCO files: annotation files, checked as they are read, and results files, read entry by entry."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from solo_infer.config.categories import Categories
from solo_infer.errors import ConfigError, DataError, SoloInferError

_SECTIONS = ("images", "annotations", "categories")
_CHUNK = 1 << 20  # characters of a results file that are read at a time
_GAP = re.compile(r"[\s,]*")  # what may stand between the entries of a list

ImageId = int | str


class ImageRecord(NamedTuple):
    """An image of an annotation file; sizes are in pixels."""

    id: ImageId
    file_name: str
    height: int
    width: int


class GroundTruth(NamedTuple):
    """One annotated instance, its mask as compressed RLE; ``area`` is the file's, in pixels."""

    image_id: ImageId
    counts: bytes
    area: float
    is_crowd: bool


class Detection(NamedTuple):
    """One instance of a results file, its mask as compressed RLE; ``area`` is the mask's, in pixels."""

    image_id: ImageId
    counts: bytes
    area: int
    score: float


@dataclass(frozen=True)
class CocoData:
    """An annotation file, or a part of it.

    Attributes:
        path: The file.
        images: The chosen images, in the file's order.
        categories: The chosen classes.
        annotations: Those of the chosen images and classes, as they stand in the file.
        image_ids: Of all images of the file, chosen or not.
        category_ids: Of all classes of the file, chosen or not.
    """

    path: Path
    images: tuple[ImageRecord, ...]
    categories: Categories
    annotations: tuple[dict[str, Any], ...]
    image_ids: frozenset[ImageId]
    category_ids: frozenset[int]


def read_annotations(
    path: Path, *, classes: Iterable[str] | None = None, limit: int | None = None
) -> CocoData:
    """Read a COCO annotation file.

    Args:
        path: JSON with "images" ("id", "file_name", "height", "width"), "categories" ("id", "name") and
            "annotations" ("image_id", "category_id", "segmentation").
        classes: Choose these classes, by name; all if not given.
        limit: Choose the first so many images; all if not given.

    Raises:
        DataError: It is no such file, it contradicts itself, or it lacks a class.
        ConfigError: ``limit`` is less than 1.
    """
    if limit is not None and limit < 1:
        raise ConfigError(f"limit={limit}: expected at least 1 image.")
    content = _read_json(path)
    images = _images(path, content["images"])
    categories = _categories(path, content["categories"])
    known_images, known_categories = frozenset(image.id for image in images), frozenset(categories.ids)
    for annotation in content["annotations"]:
        _check_annotation(path, annotation, known_images, known_categories)
    if classes is not None:
        categories = _choose(path, categories, classes)
    images = images[:limit]
    chosen_images, chosen_categories = {image.id for image in images}, set(categories.ids)
    annotations = tuple(
        annotation
        for annotation in content["annotations"]
        if annotation["image_id"] in chosen_images and annotation["category_id"] in chosen_categories
    )
    return CocoData(path, images, categories, annotations, known_images, known_categories)


def _read_json(path: Path) -> dict[str, list[Any]]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(
            f"{path} cannot be read ({type(error).__name__}: {error}): expected a COCO annotation file."
        ) from error
    if not isinstance(content, dict) or not all(isinstance(content.get(key), list) for key in _SECTIONS):
        raise DataError(
            f"{path} is no COCO annotation file: expected a JSON object with the lists "
            f"{', '.join(_SECTIONS)}. (A list of detections belongs where detections are asked for.)"
        )
    return content


def _images(path: Path, entries: list[Any]) -> tuple[ImageRecord, ...]:
    wrong = next((entry for entry in entries if not _is_image(entry)), None)
    if wrong is not None:
        raise DataError(
            f'{path}: image {_short(wrong)}: expected "id" (a whole number or text), "file_name", and '
            '"height" and "width" in pixels.'
        )
    images = tuple(
        ImageRecord(entry["id"], entry["file_name"], entry["height"], entry["width"]) for entry in entries
    )
    if not images:
        raise DataError(f"{path} lists no images: expected at least one.")
    for key in ("id", "file_name"):
        values = [getattr(image, key) for image in images]
        _refuse_repeated(path, f'"{key}" of images', values)
    if len({type(image.id) for image in images}) > 1:
        raise DataError(f"{path}: image ids of several types: expected all whole numbers, or all text.")
    return images


def _is_image(entry: Any) -> bool:
    return (
        isinstance(entry, dict)
        and (_is_whole(entry.get("id")) or isinstance(entry.get("id"), str))
        and isinstance(entry.get("file_name"), str)
        and all(_is_whole(entry.get(side)) and entry[side] > 0 for side in ("height", "width"))
    )


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _categories(path: Path, entries: list[Any]) -> Categories:
    for entry in entries:
        if not (
            isinstance(entry, dict) and _is_whole(entry.get("id")) and isinstance(entry.get("name"), str)
        ):
            raise DataError(f'{path}: category {_short(entry)}: expected "id" (a whole number) and "name".')
    if not entries:
        raise DataError(f"{path} lists no categories: expected at least one.")
    ordered = sorted(entries, key=lambda entry: entry["id"])  # as pycocotools orders them
    names, ids = tuple(entry["name"] for entry in ordered), tuple(entry["id"] for entry in ordered)
    _refuse_repeated(path, '"id" of categories', ids)
    _refuse_repeated(path, '"name" of categories', names)
    return Categories(names, ids)


def _refuse_repeated(path: Path, what: str, values: Sequence[Any]) -> None:
    seen: set[Any] = set()
    for value in values:
        if value in seen:
            raise DataError(f"{path}: {what}: {value!r} occurs more than once, expected different ones.")
        seen.add(value)


def _choose(path: Path, categories: Categories, classes: Iterable[str]) -> Categories:
    try:
        labels = sorted(set(categories.labels(classes)))
    except SoloInferError as error:
        raise DataError(f"{path}: {error}") from error
    if not labels:
        raise DataError(f"{path}: no class was chosen: name at least one, or give none to take all.")
    return Categories(
        tuple(categories.names[label] for label in labels), tuple(categories.ids[label] for label in labels)
    )


def _check_annotation(path: Path, entry: Any, images: frozenset[ImageId], categories: frozenset[int]) -> None:
    try:
        fits = entry["image_id"] in images and entry["category_id"] in categories
    except (TypeError, KeyError):  # no object, a key is missing, or an id is a list
        fits = False
    if not fits:
        raise DataError(
            f'{path}: annotation {_short(entry)}: expected "image_id" and "category_id" that "images" and '
            '"categories" of the file list.'
        )


def read_ground_truth(data: CocoData) -> dict[int, list[GroundTruth]]:
    """Return the annotated instances by category id.

    Raises:
        DataError: A mask is missing, malformed or of another size than its image.
    """
    sizes = {image.id: (image.height, image.width) for image in data.images}
    found: dict[int, list[GroundTruth]] = {number: [] for number in data.categories.ids}
    for entry in data.annotations:
        try:
            counts, area = to_rle(entry.get("segmentation"), *sizes[entry["image_id"]])
            given_area = _number(entry.get("area", area), "area")
            is_crowd = bool(_number(entry.get("iscrowd", 0), "iscrowd"))
        except ValueError as error:
            raise DataError(f"{data.path}: annotation {_short(entry)}: {error}") from error
        found[entry["category_id"]].append(GroundTruth(entry["image_id"], counts, given_area, is_crowd))
    return found


def _number(value: Any, what: str) -> float:
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f'"{what}" is {value!r}: expected a number.')
    return value


def to_rle(segmentation: Any, height: int, width: int) -> tuple[bytes, int]:
    """Return any COCO segmentation as the counts of compressed RLE, and its area in pixels.

    Args:
        segmentation: Polygons ([[x, y, x, y, ...], ...] in pixels), or RLE with "size" and "counts" as a
            list or text.
        height: Of the image, in pixels.
        width: Of the image, in pixels.

    Raises:
        ValueError: It is none of these, or RLE of another size.
    """
    if isinstance(segmentation, dict):
        counts = _rle_counts(segmentation, height, width)
    elif isinstance(segmentation, list) and segmentation:
        counts = _polygon_counts(segmentation, height, width)
    else:
        raise ValueError(f'"segmentation" is {_short(segmentation)}: expected polygons or RLE.')
    runs = run_lengths(counts)
    # pycocotools never comes to an end with two masks whose runs are of different length in all.
    if runs.min(initial=0) < 0 or runs.sum() != height * width:
        raise ValueError(f"RLE counts do not add up to the {height * width} pixels of the image.")
    return counts, int(runs[1::2].sum())


def _polygon_counts(polygons: list[Any], height: int, width: int) -> bytes:
    from pycocotools import mask

    try:
        return mask.merge(mask.frPyObjects(polygons, height, width))["counts"]
    except Exception as error:  # pycocotools raises bare ones
        raise ValueError(f"polygons that pycocotools does not take ({error})") from error


def _rle_counts(rle: dict[str, Any], height: int, width: int) -> bytes:
    from pycocotools import mask

    counts, size = rle.get("counts"), rle.get("size")
    if size != [height, width]:
        raise ValueError(f"RLE of size {size} for an image of height {height}, width {width}.")
    if isinstance(counts, str) and counts.isascii():
        return counts.encode("ascii")
    if isinstance(counts, list) and all(_is_whole(count) and 0 <= count < 1 << 32 for count in counts):
        return mask.frPyObjects(rle, height, width)["counts"]
    raise ValueError('RLE "counts" are no list of whole numbers and no (ASCII) text.')


def run_lengths(counts: bytes) -> np.ndarray:
    """Decode the counts of compressed RLE: pixels (runs,) int64 outside and inside the mask, in turn.

    Each number is written in digits of five bits, lowest first, six bits a character: the highest says
    that another digit follows. From the fourth on, numbers are differences to the last but one.

    Raises:
        ValueError: The text is damaged.
    """
    codes = np.frombuffer(counts, np.uint8).astype(np.int64) - ord("0")
    if codes.size == 0 or codes.min() < 0 or codes.max() >= 64 or codes[-1] >= 32:
        raise ValueError("RLE text is damaged or cut off.")
    ends = np.flatnonzero(codes < 32)
    starts = np.concatenate([[0], ends[:-1] + 1])
    places = np.arange(codes.size) - np.repeat(starts, ends - starts + 1)
    if places.max() > 6:  # more than 32 bits
        raise ValueError("RLE text is damaged: a number is too large.")
    runs = np.add.reduceat((codes & 31) << (5 * places), starts)
    runs -= np.where(codes[ends] & 16, np.int64(32) << (5 * places[ends]), 0)  # two's complement
    runs[1::2] = runs[1::2].cumsum()
    runs[2::2] = runs[2::2].cumsum()
    return runs


def read_detections(files: Iterable[Path], data: CocoData) -> dict[int, list[Detection]]:
    """Return the detections of the chosen images and classes by category id.

    Only what scoring needs is kept, so that memory grows by little more than the masks' RLE text.
    Detections of classes that the annotation file lacks are left out.

    Args:
        files: COCO results files (lists of "image_id", "category_id", "score" and "segmentation").
        data: The annotation file.

    Raises:
        DataError: A file is none, has detections on unknown images, or none of a known class.
    """
    sizes = {image.id: (image.height, image.width) for image in data.images}
    found: dict[int, list[Detection]] = {number: [] for number in data.categories.ids}
    anything = anything_known = False
    for path in files:
        for entry in iterate_list(path):
            anything = True
            try:
                known_image = entry["image_id"] in data.image_ids
                category, score = entry["category_id"], _number(entry["score"], "score")
                anything_known |= category in data.category_ids
                if category in found and entry["image_id"] in sizes:
                    mask = to_rle(entry["segmentation"], *sizes[entry["image_id"]])
                    found[category].append(Detection(entry["image_id"], *mask, score))
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(
                    f"{path}: detection {_short(entry)} ({type(error).__name__}: {error}): expected "
                    '"image_id", "category_id", "score" and "segmentation" (RLE of the image\'s size).'
                ) from error
            if not known_image:
                raise DataError(
                    f"{path}: image {entry['image_id']!r} is not in {data.path}: expected detections on the "
                    "images of that file, under its ids."
                )
    if anything and not anything_known:
        raise DataError(
            f"No detection is of a category of {data.path} (ids {_short(sorted(data.category_ids))}): "
            "expected its category ids."
        )
    return found


def iterate_list(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a JSON list one by one, holding little more than one of them.

    Raises:
        DataError: The file cannot be read or is no list of objects.
    """
    try:
        with path.open(encoding="utf-8") as file:
            yield from _entries(path, file)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}. Expected a COCO results file.") from error


def _entries(path: Path, file: Any) -> Iterator[dict[str, Any]]:
    decode = json.JSONDecoder().raw_decode
    text = file.read(_CHUNK).lstrip()
    at = 1
    if not text.startswith("["):
        raise DataError(f"{path} is no COCO results file: expected a JSON list of detections.")
    while True:
        at = _GAP.match(text, at).end()  # type: ignore[union-attr]  # it matches anything
        if text.startswith("]", at):
            return
        try:
            entry, at = decode(text, at)
        except json.JSONDecodeError as error:  # mostly because the rest of the entry is still to be read
            more = file.read(max(_CHUNK, len(text) - at))
            if not more:
                raise DataError(
                    f"{path} is no complete COCO results file: {error.msg} after {_short(text[at:])}."
                ) from error
            text, at = text[at:] + more, 0
            continue
        if not isinstance(entry, dict):
            raise DataError(f"{path}: {_short(entry)} in the list: expected only objects.")
        yield entry


def _short(value: Any) -> str:
    """Return a value for a message, without its mask and cut where it is long."""
    if isinstance(value, dict):
        value = {key: item for key, item in value.items() if key != "segmentation"}
    text = repr(value)
    return text if len(text) <= 160 else f"{text[:157]}..."
