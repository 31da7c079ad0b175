"""Reader of COCO annotation files."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from solo_infer.config.categories import Categories
from solo_infer.config.validation import is_int
from solo_infer.errors import ConfigError, DataError, SoloInferError
from solo_infer.ops.rle import run_lengths

_SECTIONS = ("images", "annotations", "categories")
_IMAGE_KEYS = {"id", "file_name", "height", "width"}
_MAX_SUMMARY = 160  # characters of a value in a message

ImageId = int | str


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """An image of an annotation file.

    Attributes:
        id: Image id, unique in the file.
        file_name: File name, unique in the file.
        height: Height in pixels.
        width: Width in pixels.
        extra: All other keys of the record, such as "license".
    """

    id: ImageId
    file_name: str
    height: int
    width: int
    extra: Mapping[str, Any] = field(default_factory=dict, repr=False)


class Annotation(NamedTuple):
    """An instance of an annotation file.

    Attributes:
        id: Annotation id, None if the file has none.
        image_id: Id of its image.
        category_id: Id of its class.
        segmentation: Polygons or RLE as in the file, not checked; see ``to_rle``. None if missing.
        area: Area in pixels, None if missing.
        is_crowd: Whether "iscrowd" is set; False if missing.
        bbox: Box as in the file, not checked. None if missing.
    """

    id: Any
    image_id: ImageId
    category_id: int
    segmentation: Any
    area: float | None
    is_crowd: bool
    bbox: Any

    @property
    def name(self) -> str:
        """Description for messages, such as "annotation 5 of image 139"."""
        number = "" if self.id is None else f" {self.id!r}"
        return f"annotation{number} of image {self.image_id!r}"


class GroundTruth(NamedTuple):
    """One annotated instance, its mask as compressed RLE; ``area`` is in pixels."""

    image_id: ImageId
    counts: bytes
    area: float
    is_crowd: bool


@dataclass(frozen=True)
class CocoData:
    """An annotation file, or a selection of its images and classes.

    Attributes:
        path: Path of the file.
        images: Selected images, in the order of the file.
        categories: Selected classes, in the order of their ids.
        annotations: Annotations of the selected images and classes, in the order of the file.
        image_ids: Ids of all images of the file, selected or not.
        category_ids: Ids of all classes of the file, selected or not.
    """

    path: Path
    images: tuple[ImageRecord, ...]
    categories: Categories
    annotations: tuple[Annotation, ...]
    image_ids: frozenset[ImageId]
    category_ids: frozenset[int]


def read_annotations(
    path: str | os.PathLike[str], *, classes: Iterable[str] | None = None, limit: int | None = None
) -> CocoData:
    """Read a COCO annotation file.

    Masks are not decoded here; see ``read_ground_truth`` and ``to_rle``.

    Args:
        path: JSON file with "images" ("id", "file_name", "height", "width"), "categories" ("id", "name") and
            "annotations" ("image_id", "category_id", "segmentation"; optionally "id", "area", "iscrowd" and
            "bbox").
        classes: Names of the classes to select. Defaults to all.
        limit: Number of images to select, from the first. Defaults to all.

    Raises:
        DataError: The file is not a COCO annotation file, is inconsistent, or does not list a class.
        ConfigError: ``limit`` is less than 1.
    """
    if limit is not None and limit < 1:
        raise ConfigError(f"limit={limit}: expected at least 1 image.")
    path = Path(path)
    content = _read_json(path, _SECTIONS)
    images = _read_images(path, content["images"])
    categories = _read_categories(path, content["categories"])
    image_ids, category_ids = frozenset(image.id for image in images), frozenset(categories.ids)
    for entry in content["annotations"]:
        _check_references(path, entry, image_ids, category_ids)
    if classes is not None:
        categories = _select_classes(path, categories, classes)
    images = images[:limit]
    selected_images, selected_categories = {image.id for image in images}, set(categories.ids)
    annotations = tuple(
        _read_annotation(path, entry)
        for entry in content["annotations"]
        if entry["image_id"] in selected_images and entry["category_id"] in selected_categories
    )
    return CocoData(path, images, categories, annotations, image_ids, category_ids)


def read_image_ids(path: str | os.PathLike[str]) -> dict[str, ImageId]:
    """Return {file name: image id} of a COCO annotation file.

    The file only needs "images" with "id" and "file_name".

    Raises:
        DataError: The file is not a COCO annotation file, or two of its images share a name or an id.
    """
    path = Path(path)
    entries = _read_json(path, ("images",))["images"]
    _check_images(path, entries, sized=False)
    return {entry["file_name"]: entry["id"] for entry in entries}


def _read_json(path: Path, sections: tuple[str, ...]) -> dict[str, list[Any]]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(
            f"{path} cannot be read ({type(error).__name__}: {error}): expected a COCO annotation file."
        ) from error
    if not isinstance(content, dict) or not all(isinstance(content.get(key), list) for key in sections):
        raise DataError(
            f"{path} is not a COCO annotation file: expected a JSON object with the lists "
            f"{', '.join(sections)}. (A COCO results file is a list of detections.)"
        )
    return content


def _read_images(path: Path, entries: list[Any]) -> tuple[ImageRecord, ...]:
    _check_images(path, entries, sized=True)
    if len({type(entry["id"]) for entry in entries}) > 1:  # pycocotools sorts the ids
        raise DataError(f"{path}: image ids of several types: expected only integers, or only strings.")
    return tuple(
        ImageRecord(
            entry["id"],
            entry["file_name"],
            entry["height"],
            entry["width"],
            {key: value for key, value in entry.items() if key not in _IMAGE_KEYS},
        )
        for entry in entries
    )


def _check_images(path: Path, entries: list[Any], *, sized: bool) -> None:
    """Raise DataError unless each image has an id and a file name of its own and, if required, a size."""
    for entry in entries:
        if not _is_image(entry, sized):
            size = ', "height" and "width" (in pixels)' if sized else ""
            raise DataError(
                f'{path}: image {summarize(entry)}: expected "id" (an integer or a string) and "file_name" '
                f"(a string){size}."
            )
    if not entries:
        raise DataError(f"{path} lists no images: expected at least one.")
    for key in ("id", "file_name"):
        _check_unique(path, f'"{key}" of images', [entry[key] for entry in entries])


def _is_image(entry: Any, sized: bool) -> bool:
    return (
        isinstance(entry, dict)
        and (is_int(entry.get("id")) or isinstance(entry.get("id"), str))
        and isinstance(entry.get("file_name"), str)
        and (not sized or all(is_int(entry.get(side)) and entry[side] > 0 for side in ("height", "width")))
    )


def _read_categories(path: Path, entries: list[Any]) -> Categories:
    for entry in entries:
        if not (isinstance(entry, dict) and is_int(entry.get("id")) and isinstance(entry.get("name"), str)):
            raise DataError(
                f'{path}: category {summarize(entry)}: expected "id" (an integer) and "name" (a string).'
            )
    if not entries:
        raise DataError(f"{path} lists no categories: expected at least one.")
    ordered = sorted(entries, key=lambda entry: entry["id"])  # the order of pycocotools
    names, ids = tuple(entry["name"] for entry in ordered), tuple(entry["id"] for entry in ordered)
    _check_unique(path, '"id" of categories', ids)
    _check_unique(path, '"name" of categories', names)
    return Categories(names, ids)


def _check_unique(path: Path, label: str, values: Sequence[Any]) -> None:
    seen: set[Any] = set()
    for value in values:
        if value in seen:
            raise DataError(f"{path}: {label}: {value!r} occurs more than once, expected unique values.")
        seen.add(value)


def _select_classes(path: Path, categories: Categories, classes: Iterable[str]) -> Categories:
    try:
        labels = sorted(set(categories.labels(classes)))
    except SoloInferError as error:
        raise DataError(f"{path}: {error}") from error
    if not labels:
        raise DataError(f"{path}: no class was selected: name at least one, or pass None for all.")
    return Categories(
        tuple(categories.names[label] for label in labels), tuple(categories.ids[label] for label in labels)
    )


def _check_references(
    path: Path, entry: Any, image_ids: frozenset[ImageId], category_ids: frozenset[int]
) -> None:
    try:
        is_listed = entry["image_id"] in image_ids and entry["category_id"] in category_ids
    except (TypeError, KeyError):  # not an object, a key is missing, or an id is a list
        is_listed = False
    if not is_listed:
        raise DataError(
            f'{path}: annotation {summarize(entry)}: expected "image_id" and "category_id" that are listed '
            'in "images" and "categories" of the file.'
        )


def _read_annotation(path: Path, entry: dict[str, Any]) -> Annotation:
    annotation = Annotation(
        id=entry.get("id"),
        image_id=entry["image_id"],
        category_id=entry["category_id"],
        segmentation=entry.get("segmentation"),
        area=entry.get("area"),
        is_crowd=bool(entry.get("iscrowd", 0)),
        bbox=entry.get("bbox"),
    )
    try:
        for key in ("area", "iscrowd"):
            if key in entry:
                check_number(key, entry[key])
    except ValueError as error:
        raise DataError(f"{path}: {annotation.name}: {error}") from error
    return annotation


def read_ground_truth(data: CocoData) -> dict[int, list[GroundTruth]]:
    """Return the annotated instances by category id; a missing area is that of the mask.

    Raises:
        DataError: A mask is missing, malformed or of another size than its image.
    """
    sizes = {image.id: (image.height, image.width) for image in data.images}
    instances: dict[int, list[GroundTruth]] = {number: [] for number in data.categories.ids}
    for annotation in data.annotations:
        try:
            counts, mask_area = to_rle(annotation.segmentation, *sizes[annotation.image_id])
        except ValueError as error:
            raise DataError(f"{data.path}: {annotation.name}: {error}") from error
        area = mask_area if annotation.area is None else annotation.area
        instances[annotation.category_id].append(
            GroundTruth(annotation.image_id, counts, area, annotation.is_crowd)
        )
    return instances


def check_number(key: str, value: Any) -> float:
    """Return the value of a key.

    Raises:
        ValueError: The value is not a finite number.
    """
    try:
        if isinstance(value, int | float) and math.isfinite(value):
            return value
    except OverflowError:  # an integer beyond the range of float
        value = summarize(value)
    raise ValueError(f'"{key}" is {value!r}: expected a finite number.')


def to_rle(segmentation: Any, height: int, width: int) -> tuple[bytes, int]:
    """Convert a COCO segmentation to the counts of compressed RLE and the area in pixels.

    Args:
        segmentation: Polygons ([[x, y, x, y, ...], ...] in pixels), or RLE with "size" and "counts" (a list
            or a string).
        height: Height of the image in pixels.
        width: Width of the image in pixels.

    Raises:
        ValueError: The segmentation is neither polygons nor RLE, or is of another size.
    """
    if isinstance(segmentation, dict):
        counts = _rle_counts(segmentation, height, width)
    elif isinstance(segmentation, list) and segmentation:
        counts = _polygon_counts(segmentation, height, width)
    else:
        raise ValueError(f'"segmentation" is {summarize(segmentation)}: expected polygons or RLE.')
    runs = run_lengths(counts)
    # pycocotools loops forever when it compares masks whose run lengths have different sums.
    if runs.min(initial=0) < 0 or runs.sum() != height * width:
        raise ValueError(f"RLE counts do not add up to the {height * width} pixels of the image.")
    return counts, int(runs[1::2].sum())


def _polygon_counts(polygons: list[Any], height: int, width: int) -> bytes:
    from pycocotools import mask

    try:
        return mask.merge(mask.frPyObjects(polygons, height, width))["counts"]
    except Exception as error:  # pycocotools raises bare exceptions
        raise ValueError(f"pycocotools cannot read the polygons ({error})") from error


def _rle_counts(rle: dict[str, Any], height: int, width: int) -> bytes:
    from pycocotools import mask

    counts, size = rle.get("counts"), rle.get("size")
    if size != [height, width]:
        raise ValueError(f"RLE of size {size} for an image of height {height}, width {width}.")
    if isinstance(counts, str) and counts.isascii():
        return counts.encode("ascii")
    if isinstance(counts, list) and all(is_int(count) and 0 <= count < 1 << 32 for count in counts):
        return mask.frPyObjects(rle, height, width)["counts"]
    raise ValueError('RLE "counts" are neither a list of integers nor ASCII text.')


def summarize(value: Any) -> str:
    """Return a value for a message, without its mask and cut to a maximum length."""
    if isinstance(value, dict):
        value = {key: item for key, item in value.items() if key != "segmentation"}
    text = repr(value)
    return text if len(text) <= _MAX_SUMMARY else f"{text[: _MAX_SUMMARY - 3]}..."
