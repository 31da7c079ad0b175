"""Reader of COCO annotation files."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from solo_infer.config.categories import Categories
from solo_infer.config.suggestions import did_you_mean
from solo_infer.config.validation import is_int
from solo_infer.data.annotation import (
    Annotation,
    ImageId,
    Omission,
    describe_omissions,
    hints,
    is_listed,
    read_annotation,
)
from solo_infer.errors import ConfigError, DataError
from solo_infer.ops.rle import MAX_PIXELS, MAX_SIDE
from solo_infer.runtime.messages import quoted, shortened, summarize_names
from solo_infer.runtime.text_files import read_json

logger = logging.getLogger(__name__)

_SECTIONS = ("images", "annotations", "categories")
_IMAGE_KEYS = {"id", "file_name", "height", "width"}
_MAX_FILE_NAME = 4096  # characters; no system has longer paths


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


class CocoContent(NamedTuple):
    """Annotations in memory, accepted in place of an annotation file.

    Attributes:
        path: File that they are from, for messages.
        content: "images", "annotations" and "categories", as in an annotation file. The key "id" of an
            annotation is text that says where it is from.
    """

    path: Path
    content: Mapping[str, Any]


AnnotationSource: TypeAlias = str | os.PathLike[str] | CocoContent


def read_annotations(
    source: AnnotationSource,
    *,
    classes: Iterable[str] | None = None,
    limit: int | None = None,
    keep: Collection[str] = (),
) -> CocoData:
    """Read a COCO annotation file in UTF-8 or UTF-16, with or without a byte order mark.

    Masks are not decoded here; see ``read_ground_truth`` and ``Annotation.rle``. A category with the id 0
    that is the supercategory of all others and has no annotation is left out: Roboflow adds one to exports.

    Args:
        source: JSON file, or its content, with "images" ("id", "file_name", "height", "width"), "categories"
            ("id", "name") and "annotations" ("image_id", "category_id", "segmentation"; optionally "id",
            "area", "bbox", and "iscrowd" and "ignore", which are 0 or 1). Null counts as missing.
        classes: Names of the classes to select. Defaults to all.
        limit: Number of images to select, from the first. Defaults to all.
        keep: Names of classes that are not left out, even if nothing has them.

    Raises:
        DataError: The file is not a COCO annotation file, is inconsistent, or does not list a class.
        ConfigError: ``limit`` is less than 1.
    """
    if limit is not None and limit < 1:
        raise ConfigError(f"limit={limit}: expected at least 1 image.")
    if classes is not None:
        classes = [classes] if isinstance(classes, str) else list(classes)
    if isinstance(source, CocoContent):
        path, content = source
    else:
        path = Path(source)
        content = _read_sections(path, _SECTIONS)
    images = _read_images(path, content["images"])
    entries = _sorted_categories(path, content["categories"])
    image_ids = frozenset(image.id for image in images)
    category_ids = frozenset(entry["id"] for entry in entries)
    for entry in content["annotations"]:
        _check_references(path, entry, image_ids, category_ids)
    entries = _without_root(path, entries, content["annotations"], {*keep, *(classes or ())})
    categories = _read_categories(path, entries, classes)
    images = images[:limit]
    selected_images, selected_categories = {image.id for image in images}, set(categories.ids)
    try:
        annotations = tuple(
            read_annotation(entry)
            for entry in content["annotations"]
            if entry["image_id"] in selected_images and entry["category_id"] in selected_categories
        )
    except ValueError as error:
        raise DataError(f"{path}: {error}") from error
    return CocoData(path, images, categories, annotations, image_ids, category_ids)


def read_image_ids(path: str | os.PathLike[str]) -> dict[str, ImageId]:
    """Return {file name: image id} of a COCO annotation file.

    The file only needs "images" with "id" and "file_name".

    Raises:
        DataError: The file is not a COCO annotation file, or two of its images share a name or an id.
    """
    path = Path(path)
    entries = _read_sections(path, ("images",))["images"]
    _check_images(path, entries, sized=False)
    return {entry["file_name"]: entry["id"] for entry in entries}


def _read_sections(path: Path, sections: tuple[str, ...]) -> dict[str, list[Any]]:
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        raise DataError(
            f"{shortened(path)} cannot be read ({type(error).__name__}: {shortened(error)}): expected a COCO "
            "annotation file."
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
            size = (
                f', "height" and "width" (1 to {MAX_SIDE} pixels, at most {MAX_PIXELS} in all)'
                if sized
                else ""
            )
            raise DataError(
                f'{path}: image {summarize(entry)}: expected "id" (an integer or a string) and "file_name" '
                f"(a string of at most {_MAX_FILE_NAME} characters){size}."
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
        and len(entry["file_name"]) <= _MAX_FILE_NAME
        and (not sized or _is_size(entry.get("height"), entry.get("width")))
    )


def _is_size(height: Any, width: Any) -> bool:
    sides_are_valid = all(is_int(side) and 0 < side <= MAX_SIDE for side in (height, width))
    return sides_are_valid and height * width <= MAX_PIXELS


def _sorted_categories(path: Path, entries: list[Any]) -> list[dict[str, Any]]:
    """Return the categories in the order of their ids, which is the order of pycocotools."""
    for entry in entries:
        if not (isinstance(entry, dict) and is_int(entry.get("id")) and isinstance(entry.get("name"), str)):
            raise DataError(
                f'{path}: category {summarize(entry)}: expected "id" (an integer) and "name" (a string).'
            )
    if not entries:
        raise DataError(f"{path} lists no categories: expected at least one.")
    _check_unique(path, '"id" of categories', [entry["id"] for entry in entries])
    return sorted(entries, key=lambda entry: entry["id"])


def _without_root(
    path: Path, entries: list[dict[str, Any]], annotations: list[dict[str, Any]], keep: set[str]
) -> list[dict[str, Any]]:
    """Return the categories without one that only groups the others."""
    root = next((entry for entry in entries if entry["id"] == 0), None)
    others = [entry for entry in entries if entry is not root]
    if (
        root is None
        or not others
        or any(entry.get("supercategory") != root["name"] for entry in others)
        or any(entry["category_id"] == 0 for entry in annotations)
        or (root["name"] in keep and all(entry["name"] != root["name"] for entry in others))
    ):
        return entries
    logger.warning(
        "%s: category %s (id 0) is left out: it is the supercategory of all others without annotations.",
        path,
        quoted(root["name"]),
    )
    return others


def _read_categories(path: Path, entries: list[dict[str, Any]], classes: list[str] | None) -> Categories:
    """Return all classes, or those of some names, in the order of their ids."""
    names = [entry["name"] for entry in entries]
    _check_unique(path, '"name" of categories', names)
    if classes is not None:
        unknown = next((name for name in classes if name not in names), None)
        if unknown is not None:
            raise DataError(
                f"{path}: No class {quoted(unknown)}. {did_you_mean(unknown, names)}"
                f"Classes: {summarize_names(names)}."
            )
        if not classes:
            raise DataError(f"{path}: no class was selected: name at least one, or pass None for all.")
        entries = [entry for entry in entries if entry["name"] in classes]
    return Categories(tuple(entry["name"] for entry in entries), tuple(entry["id"] for entry in entries))


def _check_unique(path: Path, label: str, values: Sequence[Any]) -> None:
    seen: set[Any] = set()
    for value in values:
        if value in seen:
            raise DataError(
                f"{path}: {label}: {quoted(value)} occurs more than once, expected unique values."
            )
        seen.add(value)


def _check_references(
    path: Path, entry: Any, image_ids: frozenset[ImageId], category_ids: frozenset[int]
) -> None:
    if not (
        isinstance(entry, dict)
        and is_listed(entry.get("image_id"), image_ids)
        and is_listed(entry.get("category_id"), category_ids)
    ):
        raise DataError(
            f'{path}: annotation {summarize(entry)}: expected "image_id" and "category_id" that are listed '
            'in "images" and "categories" of the file.'
        )


def read_ground_truth(data: CocoData) -> dict[int, list[GroundTruth]]:
    """Return the annotated instances by category id; a missing area is that of the mask.

    Instances without a mask are left out with a warning.

    Raises:
        DataError: A mask is malformed or of another size than its image, or no instance has a mask.
    """
    sizes = {image.id: (image.height, image.width) for image in data.images}
    instances: dict[int, list[GroundTruth]] = {number: [] for number in data.categories.ids}
    omissions: Counter[Omission] = Counter()
    for annotation in data.annotations:
        try:
            mask = annotation.rle(*sizes[annotation.image_id])
        except ValueError as error:
            raise DataError(f"{data.path}: {error}") from error
        if mask is None:
            omissions[Omission.NO_MASK] += 1
            continue
        counts, mask_area = mask
        area = mask_area if annotation.area is None else annotation.area
        instances[annotation.category_id].append(
            GroundTruth(annotation.image_id, counts, area, annotation.is_crowd)
        )
    report_omissions(data, omissions, len(data.annotations))
    return instances


def report_omissions(data: CocoData, omissions: Counter[Omission], total: int) -> None:
    """Log one warning about the instances that are left out.

    Raises:
        DataError: All instances are left out.
    """
    count = sum(omissions.values())
    if not count:
        return
    if count == total:
        raise DataError(
            f"{data.path}: none of {total} annotations can be used: {describe_omissions(omissions)}. "
            f"{hints(omissions)}"
        )
    logger.warning(
        "%s: %d of %d instances skipped: %s", data.path, count, total, describe_omissions(omissions)
    )


def summarize(value: Any) -> str:
    """Return a value for a message, without its mask and cut to a maximum length."""
    if isinstance(value, dict):
        value = {key: item for key, item in value.items() if key != "segmentation"}
    return quoted(value, limit=160)
