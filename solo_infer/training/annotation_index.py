"""What the annotations of a training set say, in a few arrays and byte strings.

Millions of Python objects would be copied into every worker process as soon as it counts references to
them; arrays are shared.
"""

from __future__ import annotations

import difflib
import logging
import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from solo_infer.data.coco import Annotation, CocoData, ImageId, read_annotations, to_rle
from solo_infer.errors import ConfigError, DataError

logger = logging.getLogger(__name__)

_COVERAGE = "labelled_category_ids"


class PackedBytes:
    """Byte strings, one after the other in one."""

    def __init__(self, parts: Sequence[bytes]) -> None:
        self._data = b"".join(parts)
        self._ends = np.cumsum([0, *map(len, parts)])

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> bytes:
        return self._data[self._ends[index] : self._ends[index + 1]]


@dataclass(frozen=True)
class Index:
    """Images and their instances; those of an image lie side by side.

    Attributes:
        classes: Class names in the order of the labels.
        roots: Folders of images.
        root_of: (N,) int64, which of them each image lies in.
        names: File names below them, N in UTF-8.
        shapes: (N, 2) int32, height and width in pixels.
        labelled: (N, classes) bool, which classes the labels of an image cover.
        starts: (N + 1,) int64, the first instance of each image, and the number of all, M.
        labels: (M,) int64.
        iscrowd: (M,) bool.
        counts: Masks as compressed RLE of the image's size, M.
        category_ids: Of the classes in the annotation files; () where these do not give each its own.
    """

    classes: tuple[str, ...]
    roots: tuple[str, ...]
    root_of: np.ndarray
    names: PackedBytes
    shapes: np.ndarray
    labelled: np.ndarray
    starts: np.ndarray
    labels: np.ndarray
    iscrowd: np.ndarray
    counts: PackedBytes
    category_ids: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.names)

    @property
    def sizes(self) -> np.ndarray:
        """Number of instances of each image, (N,) int64."""
        return np.diff(self.starts)

    def name(self, image: int) -> str:
        """Return the file name of an image, as its annotation file has it."""
        return os.fsdecode(self.names[image])

    def path(self, image: int) -> str:
        """Return the path of an image."""
        return os.path.join(self.roots[self.root_of[image]], self.name(image))

    def instances(self, image: int) -> range:
        """Return where the instances of an image lie."""
        return range(self.starts[image], self.starts[image + 1])


class IndexBuilder:
    """An index in the making.

    Args:
        classes: Class names in the order of the labels.
        ids: Category ids by class name.
    """

    def __init__(self, classes: Sequence[str], ids: Mapping[str, int]) -> None:
        self.classes = tuple(classes)
        known = tuple(ids[name] for name in self.classes if name in ids)
        self._category_ids = known if len(set(known)) == len(self.classes) else ()
        self.shapes: list[tuple[int, int]] = []
        self.labelled: list[np.ndarray] = []
        self._roots: dict[str, int] = {}
        self._root_of: list[int] = []
        self._names: list[bytes] = []
        self._instances: list[tuple[int, int, bool, bytes]] = []

    def add_image(self, root: str, name: str, shape: tuple[int, int], labelled: np.ndarray) -> int:
        """Take in an image and the classes (n,) bool that its labels cover; return its place."""
        self._root_of.append(self._roots.setdefault(root, len(self._roots)))
        self._names.append(os.fsencode(name))
        self.shapes.append(shape)
        self.labelled.append(labelled)
        return len(self._names) - 1

    def add_instance(self, image: int, label: int, is_crowd: bool, counts: bytes) -> None:
        """Take in an instance of the image at a place."""
        self._instances.append((image, label, is_crowd, counts))

    def finish(self) -> Index:
        """Return the index; the instances of an image keep their order."""
        ordered = sorted(self._instances, key=lambda instance: instance[0])
        numbers = np.array([instance[0] for instance in ordered], dtype=np.int64)
        return Index(
            classes=self.classes,
            roots=tuple(self._roots),
            root_of=np.array(self._root_of, dtype=np.int64),
            names=PackedBytes(self._names),
            shapes=np.array(self.shapes, dtype=np.int32).reshape(-1, 2),
            labelled=np.array(self.labelled, dtype=bool).reshape(-1, len(self.classes)),
            starts=np.searchsorted(numbers, np.arange(len(self._names) + 1)),
            labels=np.array([instance[1] for instance in ordered], dtype=np.int64),
            iscrowd=np.array([instance[2] for instance in ordered], dtype=bool),
            counts=PackedBytes([instance[3] for instance in ordered]),
            category_ids=self._category_ids,
        )


def read_index(images: Path, annotations: Path, classes: Sequence[str] | None = None) -> Index:
    """Read a COCO annotation file.

    Instances without area, with a box outside of the image or thinner than a pixel (as in mmdet) or with an
    empty mask are skipped.

    Args:
        images: The folder that its file names start from.
        annotations: The file. "labelled_category_ids" of an image record, if there, says which of its
            categories the labels of that image cover; else they cover all.
        classes: Class names in the order of the labels; the file's categories in the order of their ids if
            not given. Those that the file lacks are not labelled by it.

    Raises:
        DataError: A file or image is missing or damaged, contradicts itself or has none of the classes.
        ConfigError: ``classes`` is no list of different names.
    """
    data = read_annotations(annotations)
    names = data.categories.names if classes is None else _checked(classes)
    _require_match(data, names)
    _require_images(images, data)
    ids = dict(zip(data.categories.names, data.categories.ids, strict=True))
    label_of = {number: names.index(name) for name, number in ids.items() if name in names}
    builder = IndexBuilder(names, ids)
    places, root = {}, os.path.realpath(images)
    coverage = _coverage(data)
    for record in data.images:
        covered = np.zeros(len(names), dtype=bool)
        numbers = label_of.keys() & coverage.get(record.id, label_of.keys())
        covered[[label_of[number] for number in numbers]] = True
        places[record.id] = builder.add_image(root, record.file_name, (record.height, record.width), covered)
    _add_instances(builder, data, places, label_of)
    return builder.finish()


def merge(indices: Iterable[Index], classes: Sequence[str] | None, exclude: Collection[str]) -> Index:
    """Return several indices as one; see ``solo_infer.training.dataset.union``."""
    indices = list(indices)
    names = tuple(dict.fromkeys(name for index in indices for name in index.classes))
    ids: dict[str, int] = {}
    for index in indices:
        ids = {**dict(zip(index.classes, index.category_ids, strict=False)), **ids}
    builder = IndexBuilder(names if classes is None else _checked(classes), ids)
    places: dict[str, int] = {}
    left_out = 0
    for index in indices:
        label_of = [builder.classes.index(name) if name in builder.classes else -1 for name in index.classes]
        for image in range(len(index)):
            if _is_named(index.path(image), exclude):
                left_out += 1
            else:
                _merge_image(builder, places, index, image, np.array(label_of))
    logger.info("%d images in the union, %d excluded", len(places), left_out)
    return builder.finish()


def _merge_image(
    builder: IndexBuilder, places: dict[str, int], index: Index, image: int, label_of: np.ndarray
) -> None:
    path, (height, width) = os.path.normpath(index.path(image)), index.shapes[image].tolist()
    if path not in places:
        root = index.roots[index.root_of[image]]
        nothing = np.zeros(len(builder.classes), dtype=bool)
        places[path] = builder.add_image(root, index.name(image), (height, width), nothing)
    place = places[path]
    if builder.shapes[place] != (height, width):
        raise DataError(
            f"{path} has {height} x {width} pixels (height x width) in one annotation file and "
            f"{builder.shapes[place][0]} x {builder.shapes[place][1]} in another: correct one of them."
        )
    covered = np.zeros(len(builder.classes), dtype=bool)
    covered[label_of[index.labelled[image] & (label_of >= 0)]] = True
    fresh = covered & ~builder.labelled[place]
    builder.labelled[place] |= covered
    for instance in index.instances(image):
        label = label_of[index.labels[instance]]
        if label >= 0 and fresh[label]:
            builder.add_instance(place, int(label), bool(index.iscrowd[instance]), index.counts[instance])


def _is_named(path: str, names: Collection[str]) -> bool:
    """Return whether a path ends in one of these file names, folders before it included."""
    parts = Path(path).parts
    return bool(names) and any("/".join(parts[start:]) in names for start in range(1, len(parts)))


def _checked(classes: Sequence[str]) -> tuple[str, ...]:
    if isinstance(classes, str) or not all(isinstance(name, str) for name in classes):
        raise ConfigError(f"classes={classes!r}: expected a sequence of class names.")
    repeated = sorted(name for name, count in Counter(classes).items() if count > 1)
    if not classes or repeated:
        raise ConfigError(f"classes={list(classes)}: expected at least one, and none twice ({repeated}).")
    return tuple(classes)


def _require_match(data: CocoData, classes: tuple[str, ...]) -> None:
    """Refuse names that are surely wrong and warn of those that probably are."""
    spare = {_plain(name): name for name in data.categories.names if name not in classes}
    missing = [name for name in classes if name not in data.categories.names]
    meant = {name: difflib.get_close_matches(_plain(name), spare, n=1, cutoff=0.75) for name in missing}
    hints = [f"{name!r} (did you mean {spare[near[0]]!r}?)" for name, near in meant.items() if near]
    if len(missing) == len(classes) or any(_plain(name) in spare for name in missing):
        raise DataError(
            f"{data.path} has no category {', '.join(hints or map(repr, missing))}: expected names as it "
            f"writes them: {', '.join(data.categories.names)}."
        )
    if hints:
        logger.warning("%s has no category %s: it counts as not labelled.", data.path, ", ".join(hints))


def _plain(name: str) -> str:
    return re.sub(r"[\W_]+", "", name).lower()


def _require_images(folder: Path, data: CocoData) -> None:
    if not folder.is_dir():
        raise DataError(f"There is no folder {folder}: expected that of the images of {data.path}.")
    missing = [image.file_name for image in data.images if not os.path.isfile(folder / image.file_name)]
    if missing:
        shown = ", ".join(map(repr, missing[:3])) + (", ..." if len(missing) > 3 else "")
        raise DataError(
            f"{len(missing)} of {len(data.images)} images of {data.path} are not in {folder}: {shown}. "
            "Give the folder that their file names start from, or take them out of the file."
        )


def _coverage(data: CocoData) -> dict[ImageId, list[int]]:
    """Return the labelled category ids of the images whose records have them."""
    found = {image.id: image.extra[_COVERAGE] for image in data.images if _COVERAGE in image.extra}
    for image, numbers in found.items():
        if not (isinstance(numbers, list) and all(number in data.categories.ids for number in numbers)):
            raise DataError(
                f'{data.path}: image {image!r}: "{_COVERAGE}" is {numbers!r}: expected a list of '
                "category ids of the file."
            )
    return found


def _add_instances(
    builder: IndexBuilder, data: CocoData, places: dict[ImageId, int], label_of: dict[int, int]
) -> None:
    from tqdm import tqdm

    seen = skipped = 0
    for entry in tqdm(data.annotations, desc="reading annotations", unit="instance", delay=2, disable=None):
        label, place = label_of.get(entry.category_id), places[entry.image_id]
        if label is None or not builder.labelled[place][label]:
            continue
        seen += 1
        try:
            counts = _mask_of(entry, *builder.shapes[place])
        except (TypeError, ValueError) as error:
            raise DataError(f"{data.path}: {entry.name}: {error}") from error
        if counts is None:
            skipped += 1
        else:
            builder.add_instance(place, label, entry.is_crowd, counts)
    if skipped:
        logger.info("%s: %d of %d instances skipped: no area or no mask", data.path, skipped, seen)
    if seen and skipped == seen:
        raise DataError(
            f"{data.path}: none of {seen} annotations has a mask with area inside its image: expected "
            "polygons in pixels, or RLE. (A data set of boxes cannot train masks.)"
        )


def _mask_of(entry: Annotation, height: int, width: int) -> bytes | None:
    """Return the compressed RLE of an annotation, None if there is nothing to learn from it."""
    if entry.area == 0 or (entry.bbox is not None and not _reaches(entry.bbox, height, width)):
        return None
    segmentation = entry.segmentation
    if isinstance(segmentation, list):
        # Fewer than three points enclose nothing (and pycocotools would take four numbers for a box).
        segmentation = [part for part in segmentation if not isinstance(part, list) or len(part) >= 6]
        if not segmentation:
            return None
    counts, area = to_rle(segmentation, height, width)
    return counts if area > 0 else None


def _reaches(box: Any, height: int, width: int) -> bool:
    """Return whether a box covers a pixel's width and height, and part of the image."""
    try:
        left, top, across, down = map(float, box)
    except (TypeError, ValueError) as error:
        raise ValueError(f'"bbox" is {box!r}: expected x, y, width and height in pixels.') from error
    inside = min(left + across, width) > max(left, 0) and min(top + down, height) > max(top, 0)
    return inside and across >= 1 and down >= 1
