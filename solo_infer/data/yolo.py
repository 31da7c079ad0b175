"""Reader of data sets in YOLO format: a ``data.yaml``, image folders or lists, and a text file per image.

Each line of a text file is a class number and a polygon, as fractions of the image's width and height. The
data set becomes a ``CocoContent``, so that training and evaluation treat it like a COCO annotation file.
"""

from __future__ import annotations

import glob
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from solo_infer.config.validation import require_path
from solo_infer.data.coco import CocoContent
from solo_infer.data.exif import upright_size
from solo_infer.data.patterns import match_files
from solo_infer.data.sources import IMAGE_SUFFIXES
from solo_infer.data.yolo_labels import read_labels
from solo_infer.errors import DataError
from solo_infer.runtime.messages import describe_error, quoted
from solo_infer.runtime.progress import progress_bar
from solo_infer.runtime.text_files import read_text

logger = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")
_OTHER_NAMES = {"val": ("validation",)}  # of a split
_MAX_BYTES = 2**20  # of a data.yaml
_MAX_CLASSES = 100_000
_MAX_LISTED = 3
_THREADS = 8  # that open images at the same time; most of the time is spent waiting for the disk
_IMAGES, _LABELS = "images", "labels"  # folders of a data set


class YoloDescription(NamedTuple):
    """Content of a ``data.yaml``.

    Attributes:
        path: The file.
        roots: Folders that the entries of the splits may be relative to, the first that has them counts.
        names: Class names in the order of the class numbers.
        splits: Folders, image files and ``.txt`` lists of images by split, as in the file.
    """

    path: Path
    roots: tuple[str, ...]
    names: tuple[str, ...]
    splits: dict[str, tuple[str, ...]]


def read_description(path: str | os.PathLike[str]) -> YoloDescription:
    """Read a ``data.yaml``: "names", "train", "val" and "test", and optionally "path" and "nc".

    All values are read as text, so that the class name ``no`` is not taken for false.

    Raises:
        DataError: The file cannot be read, is not YAML, or lacks class names.
    """
    file = require_path("path", path)
    content = _read_yaml(file)
    splits = {
        split: _read_entries(file, split, content[key])
        for split in SPLITS
        for key in (split, *_OTHER_NAMES.get(split, ()))
        if content.get(key)
    }
    names = _read_names(file, content)
    return YoloDescription(file, tuple(_roots(file, content.get("path"))), names, splits)


def read_yolo(path: str | os.PathLike[str], split: str = "train") -> tuple[str, CocoContent]:
    """Return the images and labels of a split of a data set in YOLO format.

    The labels of ``a/images/b/1.jpg`` are in ``a/labels/b/1.txt``, or else in ``a/images/b/1.txt``. An image
    without that file has no instances. Categories have the class numbers of the file as ids. A line of four
    numbers is a box and has no mask.

    Args:
        path: ``data.yaml``.
        split: "train", "val" or "test".

    Returns:
        The folder that all file names are relative to, and the content.

    Raises:
        DataError: A file is missing or malformed, or no image has labels.
    """
    description = read_description(path)
    images = find_split(description, split)
    folder = _common_folder(description.path, images)
    records, annotations = [], []
    missing = duplicates = 0
    sizes = _read_sizes(description.path, images)
    for number, (image, (height, width)) in enumerate(zip(images, sizes, strict=True), start=1):
        name = os.path.relpath(image, folder)
        records.append({"id": number, "file_name": name, "height": height, "width": width})
        label_file = _label_file(image)
        if label_file is None:
            missing += 1
            continue
        labels = read_labels(label_file, len(description.names))
        duplicates += labels.duplicates
        for line, label, polygon in labels.instances:
            annotation: dict[str, Any] = {"id": f"{label_file}:{line}", "image_id": number}
            annotation |= {"category_id": label, "segmentation": _in_pixels(polygon, height, width)}
            annotations.append(annotation)
    _report(description.path, split, images, missing, duplicates, len(annotations))
    categories = [{"id": number, "name": name} for number, name in enumerate(description.names)]
    content = {"images": records, "annotations": annotations, "categories": categories}
    return folder, CocoContent(description.path, content)


def _read_yaml(path: Path) -> Mapping[str, Any]:
    """Return the mapping of a YAML file, whose scalars are text."""
    try:
        import yaml
    except ImportError as error:
        raise DataError(f"{path} cannot be read without PyYAML ({error}): pip install pyyaml.") from error
    try:
        if os.path.getsize(path) > _MAX_BYTES:
            raise ValueError(f"larger than {_MAX_BYTES} bytes")
        # Unlike the safe loader, the base loader makes no number, date or object of any text or tag.
        content = yaml.load(read_text(path), yaml.BaseLoader)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        reason = " ".join(describe_error(error).split())
        raise DataError(f"{path} cannot be read ({reason}): expected the data.yaml of a data set.") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} is not the data.yaml of a data set: expected the keys names, train and val.")
    return content


def _read_names(path: Path, content: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the class names, which the file may list or give by class number."""
    names: Any = content.get("names")
    count: Any = content.get("nc")
    if isinstance(names, dict):
        numbers = {int(key): name for key, name in names.items() if _is_number(key)}
        if len(numbers) < len(names) or sorted(numbers) != list(range(len(names))):
            raise DataError(
                f'{path}: "names" has the class numbers {quoted(list(names))}: expected 0 to the number of '
                "classes less 1, each once."
            )
        names = [numbers[number] for number in range(len(names))]
    elif not names and _is_number(count) and 0 < int(count) <= _MAX_CLASSES:
        names = [f"class_{number}" for number in range(int(count))]
    if not (isinstance(names, list) and 0 < len(names) <= _MAX_CLASSES and all(map(_is_name, names))):
        raise DataError(
            f'{path}: "names" is {quoted(names)}: expected a list of class names, or one by class number.'
        )
    if count not in (None, "") and not (_is_number(count) and int(count) == len(names)):
        raise DataError(
            f'{path}: "nc" is {quoted(count)}, but "names" has {len(names)}: correct one of them.'
        )
    return tuple(names)


def _is_number(value: Any) -> bool:
    return isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 9


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and value.strip() != ""


def _read_entries(path: Path, split: str, value: Any) -> tuple[str, ...]:
    entries = value if isinstance(value, list) else [value]
    if not all(isinstance(entry, str) and entry for entry in entries):
        raise DataError(
            f'{path}: "{split}" is {quoted(value)}: expected a folder of images, a .txt file that lists '
            "them, or several of these."
        )
    return tuple(entries)


def _roots(path: Path, entry: Any) -> Iterator[str]:
    """Yield the folders that splits may be relative to: "path", and the folder of the file."""
    folder = os.path.abspath(path.parent)
    if entry not in (None, ""):
        if not isinstance(entry, str):
            raise DataError(f'{path}: "path" is {quoted(entry)}: expected the root folder of the data set.')
        root = os.path.expanduser(entry)
        yield os.path.normpath(os.path.join(folder, root))
        yield os.path.abspath(root)
    yield folder


def find_split(description: YoloDescription, split: str) -> list[str]:
    """Return the absolute paths of the images of a split, each once.

    Raises:
        DataError: The data set has no such split, or a file or folder of it is missing.
    """
    path = description.path
    if split not in description.splits:
        raise DataError(
            f"{path} has no {quoted(split)}: expected one of its splits: {', '.join(description.splits)}."
            if description.splits
            else f'{path} has no split: expected "train" and "val", each a folder of images.'
        )
    images: dict[str, None] = {}
    for entry in description.splits[split]:
        images.update(dict.fromkeys(_images_of(description, split, entry)))
    if not images:
        raise DataError(f'{path}: "{split}" has no images: expected files of {sorted(IMAGE_SUFFIXES)}.')
    return list(images)


def _images_of(description: YoloDescription, split: str, entry: str) -> Iterable[str]:
    """Return the images of a folder, a list or a single image."""
    found = next((path for path in _candidates(description.roots, entry) if os.path.exists(path)), None)
    if found is None:
        tried = ", ".join(dict.fromkeys(map(quoted, _candidates(description.roots, entry))))
        raise DataError(
            f'{description.path}: "{split}" is {quoted(entry)}, which does not exist (tried {tried}): '
            'correct "path", the root folder of the data set.'
        )
    if os.path.isdir(found):
        files = match_files(os.path.join(glob.escape(found), "**", "*"))
        return [file for file in files if _suffix(file) in IMAGE_SUFFIXES]
    if _suffix(found) in IMAGE_SUFFIXES:
        return [found]
    return _read_list(description, found)


def _candidates(roots: Sequence[str], entry: str) -> Iterator[str]:
    """Yield the paths that an entry may mean; Roboflow writes "../" before folders beside the file."""
    path = os.path.expanduser(entry)
    for root in roots:
        yield os.path.normpath(os.path.join(root, path))
    if path.startswith("../"):
        yield from (os.path.normpath(os.path.join(root, path[3:])) for root in roots)


def _read_list(description: YoloDescription, path: str) -> list[str]:
    """Return the images that a text file lists, one a line, relative to itself or the root folders."""
    try:
        entries = [line.strip() for line in read_text(path).splitlines()]
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} cannot be read ({describe_error(error)}): expected a text file of image paths."
        ) from error
    roots = (os.path.dirname(path), *description.roots, os.getcwd())
    images: list[str] = []
    missing: list[str] = []
    for entry in filter(None, entries):
        found = next((name for name in _candidates(roots, entry) if os.path.isfile(name)), None)
        (missing if found is None else images).append(found or entry)
    if missing:
        raise DataError(
            f"{path}: {len(missing)} of {len(missing) + len(images)} images do not exist: {_listed(missing)}."
            " Expected image paths relative to this file or to the root folder of the data set, one a line."
        )
    return images


def _suffix(path: str) -> str:
    return os.path.splitext(path)[1].lower()


def _common_folder(path: Path, images: Sequence[str]) -> str:
    try:
        return os.path.commonpath([os.path.dirname(image) for image in images])
    except ValueError as error:
        raise DataError(f"{path}: the images are on different drives ({error}): move them to one.") from error


def _label_file(image: str) -> str | None:
    """Return the label file of an image, None if it has none."""
    parts = Path(os.path.splitext(image)[0] + ".txt").parts
    files = [os.path.join(*parts)]
    if _IMAGES in parts[:-1]:
        last = len(parts) - 2 - parts[-2::-1].index(_IMAGES)
        files.insert(0, os.path.join(*parts[:last], _LABELS, *parts[last + 1 :]))
    return next((file for file in files if os.path.lexists(file)), None)


def _read_sizes(path: Path, images: Sequence[str]) -> list[tuple[int, int]]:
    """Return the height and width of each image with its EXIF orientation undone, without decoding it."""
    executor = ThreadPoolExecutor(_THREADS)
    try:
        results = executor.map(_size_or_error, images)
        shown = progress_bar(results, total=len(images), desc="reading image sizes", unit="image", delay=2)
        sizes = list(shown)
    finally:
        executor.shutdown(cancel_futures=True)
    damaged = [image for image, size in zip(images, sizes, strict=True) if isinstance(size, str)]
    if damaged:
        reason = next(size for size in sizes if isinstance(size, str))
        raise DataError(
            f"{path}: {len(damaged)} of {len(images)} images cannot be read: {_listed(damaged)} ({reason}). "
            "Correct or remove them."
        )
    return [size for size in sizes if not isinstance(size, str)]


def _size_or_error(image: str) -> tuple[int, int] | str:
    try:
        return upright_size(image)
    except Exception as error:  # damaged headers raise errors of many types
        return describe_error(error)


def _in_pixels(polygon: Sequence[float] | None, height: int, width: int) -> list[list[float]] | None:
    if polygon is None:
        return None
    return [[value * (width, height)[axis % 2] for axis, value in enumerate(polygon)]]


def _report(
    path: Path, split: str, images: Sequence[str], missing: int, duplicates: int, instances: int
) -> None:
    """Log what the labels lack, and require that there are some."""
    if not instances:
        where = "there is no label file" if missing == len(images) else "all label files are empty"
        raise DataError(
            f'{path}: no labels for the {len(images)} images of "{split}": {where}. Expected the labels of '
            f"{quoted(images[0])} in a .txt file of its name, in the folder {_LABELS} beside the folder "
            f"{_IMAGES}, or beside the image."
        )
    if missing:
        logger.info("%s: %d of %d images of %s have no label file.", path, missing, len(images), split)
    if duplicates:
        logger.warning("%s: %d repeated lines in the labels of %s left out.", path, duplicates, split)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(quoted, names[:_MAX_LISTED])) + (", ..." if len(names) > _MAX_LISTED else "")
