"""Compact index of the annotations of a training set.

Annotations are kept in a few arrays and byte strings. Worker processes share these, whereas millions of
Python objects would be copied into every process as soon as it touches their reference counts.
"""

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from solo_infer.config.suggestions import did_you_mean
from solo_infer.data.annotation import Annotation, ImageId, Omission, is_listed
from solo_infer.data.coco import AnnotationSource, CocoData, read_annotations, report_omissions
from solo_infer.data.image_files import encoding_hint, find_images
from solo_infer.errors import ConfigError, DataError
from solo_infer.runtime.messages import quoted, summarize_names
from solo_infer.runtime.progress import progress_bar

logger = logging.getLogger(__name__)

_COVERAGE_KEY = "labelled_category_ids"


class PackedBytes:
    """Immutable sequence of byte strings in one buffer."""

    def __init__(self, items: Sequence[bytes]) -> None:
        self._buffer = b"".join(items)
        self._ends = np.cumsum([0, *map(len, items)])

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> bytes:
        return self._buffer[self._ends[index] : self._ends[index + 1]]


@dataclass(frozen=True)
class AnnotationIndex:
    """Images and their instances; the instances of an image are consecutive.

    Attributes:
        classes: Class names in the order of the labels.
        roots: Image folders.
        root_indices: (N,) int64, index into ``roots`` of each image.
        names: N file names relative to the folders, in the encoding of the file system.
        shapes: (N, 2) int32, height and width in pixels.
        labelled: (N, classes) bool, whether the annotations of an image cover a class.
        starts: (N + 1,) int64, index of the first instance of each image, and the number of instances M.
        labels: (M,) int64.
        iscrowd: (M,) bool.
        counts: M masks as compressed RLE at the size of the image.
        category_ids: Ids of the classes in the annotation files, empty if the files contradict each other.
    """

    classes: tuple[str, ...]
    roots: tuple[str, ...]
    root_indices: np.ndarray
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
    def instance_counts(self) -> np.ndarray:
        """Number of instances of each image, (N,) int64."""
        return np.diff(self.starts)

    def name(self, image: int) -> str:
        """Return the file name of an image, as in its annotation file."""
        return os.fsdecode(self.names[image])

    def path(self, image: int) -> str:
        """Return the path of an image."""
        return os.path.join(self.roots[self.root_indices[image]], self.name(image))

    def instances(self, image: int) -> range:
        """Return the indices of the instances of an image."""
        return range(self.starts[image], self.starts[image + 1])


class IndexBuilder:
    """Builder of an ``AnnotationIndex``.

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
        self._root_indices: list[int] = []
        self._names: list[bytes] = []
        self._instances: list[tuple[int, int, bool, bytes]] = []

    def add_image(self, root: str, name: str, shape: tuple[int, int], labelled: np.ndarray) -> int:
        """Add an image and return its index.

        Args:
            root: Image folder.
            name: File name relative to it.
            shape: Height and width in pixels.
            labelled: (classes,) bool, whether its annotations cover a class.
        """
        self._root_indices.append(self._roots.setdefault(root, len(self._roots)))
        self._names.append(os.fsencode(name))
        self.shapes.append(shape)
        self.labelled.append(labelled)
        return len(self._names) - 1

    def add_instance(self, image: int, label: int, is_crowd: bool, counts: bytes) -> None:
        """Add an instance of an image, with its mask as compressed RLE."""
        self._instances.append((image, label, is_crowd, counts))

    def finish(self) -> AnnotationIndex:
        """Return the index; the instances of an image keep their order."""
        ordered = sorted(self._instances, key=lambda instance: instance[0])
        images = np.array([instance[0] for instance in ordered], dtype=np.int64)
        return AnnotationIndex(
            classes=self.classes,
            roots=tuple(self._roots),
            root_indices=np.array(self._root_indices, dtype=np.int64),
            names=PackedBytes(self._names),
            shapes=np.array(self.shapes, dtype=np.int32).reshape(-1, 2),
            labelled=np.array(self.labelled, dtype=bool).reshape(-1, len(self.classes)),
            starts=np.searchsorted(images, np.arange(len(self._names) + 1)),
            labels=np.array([instance[1] for instance in ordered], dtype=np.int64),
            iscrowd=np.array([instance[2] for instance in ordered], dtype=bool),
            counts=PackedBytes([instance[3] for instance in ordered]),
            category_ids=self._category_ids,
        )


def read_index(
    images: str | os.PathLike[str],
    annotations: AnnotationSource,
    classes: Sequence[str] | None = None,
) -> AnnotationIndex:
    """Read a COCO annotation file.

    Instances are left out, with a warning, if they have no mask, their area is 0 or less, their box is
    outside of the image or thinner than a pixel (as in mmdet), or their mask is empty. Instances with
    "ignore" count as crowds.

    Args:
        images: Folder of the images.
        annotations: Annotation file, or its content. The entry "labelled_category_ids" of an image lists the
            categories that its annotations cover. Defaults to all categories of the file.
        classes: Class names in the order of the labels. Names that the file lacks count as not labeled by it.
            Defaults to the categories of the file in the order of their ids.

    Raises:
        DataError: A file or image is missing or damaged, contradicts itself or has none of the classes.
        ConfigError: ``classes`` is not a list of different names.
    """
    folder = Path(images)
    names = () if classes is None else _check_classes(classes)
    data = read_annotations(annotations, keep=names)
    names = names or data.categories.names
    coverage = _covered_categories(data)
    _require_match(data, names)
    files = _require_images(folder, data)
    ids = dict(zip(data.categories.names, data.categories.ids, strict=True))
    label_of = {number: names.index(name) for name, number in ids.items() if name in names}
    builder = IndexBuilder(names, ids)
    index_of, root = {}, os.path.realpath(folder)
    for record, file_name in zip(data.images, files, strict=True):
        labelled = np.zeros(len(names), dtype=bool)
        covered = label_of.keys() & coverage.get(record.id, label_of.keys())
        labelled[[label_of[number] for number in covered]] = True
        shape = (record.height, record.width)
        index_of[record.id] = builder.add_image(root, file_name, shape, labelled)
    _add_instances(builder, data, index_of, label_of)
    return builder.finish()


def _covered_categories(data: CocoData) -> dict[ImageId, list[int]]:
    """Return the covered category ids of the images that list them."""
    coverage = {image.id: image.extra[_COVERAGE_KEY] for image in data.images if _COVERAGE_KEY in image.extra}
    for image, ids in coverage.items():
        if not (isinstance(ids, list) and all(is_listed(number, data.category_ids) for number in ids)):
            raise DataError(
                f'{data.path}: image {quoted(image)}: "{_COVERAGE_KEY}" is {quoted(ids)}: expected a list of '
                "category ids of the file."
            )
    return coverage


def merge_indices(
    indices: Iterable[AnnotationIndex], classes: Sequence[str] | None, exclude: Collection[str]
) -> AnnotationIndex:
    """Return several indices as one; see ``solo_infer.training.dataset.union`` for the arguments."""
    indices = list(indices)
    names = tuple(dict.fromkeys(name for index in indices for name in index.classes))
    ids: dict[str, int] = {}
    for index in indices:
        ids = {**dict(zip(index.classes, index.category_ids, strict=False)), **ids}
    builder = IndexBuilder(names if classes is None else _check_classes(classes), ids)
    index_of: dict[str, int] = {}
    excluded = 0
    for index in indices:
        labels = np.array(
            [builder.classes.index(name) if name in builder.classes else -1 for name in index.classes]
        )
        for image in range(len(index)):
            if _ends_in_any(index.path(image), exclude):
                excluded += 1
            else:
                _merge_image(builder, index_of, index, image, labels)
    logger.info("%d images in the union, %d excluded", len(index_of), excluded)
    return builder.finish()


def _merge_image(
    builder: IndexBuilder, index_of: dict[str, int], index: AnnotationIndex, image: int, labels: np.ndarray
) -> None:
    """Add an image to a union, or its new classes and instances if the union has the image already.

    Args:
        builder: Builder of the union.
        index_of: Indices of the images of the union by path; extended in place.
        index: Index of the image.
        image: Position in that index.
        labels: (classes of the index,) int64, labels in the union, -1 for classes that it lacks.
    """
    path, (height, width) = os.path.normpath(index.path(image)), index.shapes[image].tolist()
    if path not in index_of:
        root = index.roots[index.root_indices[image]]
        nothing = np.zeros(len(builder.classes), dtype=bool)
        index_of[path] = builder.add_image(root, index.name(image), (height, width), nothing)
    merged = index_of[path]
    if builder.shapes[merged] != (height, width):
        raise DataError(
            f"{path} has {height} x {width} pixels (height x width) in one annotation file and "
            f"{builder.shapes[merged][0]} x {builder.shapes[merged][1]} in another: correct one of them."
        )
    labelled = np.zeros(len(builder.classes), dtype=bool)
    labelled[labels[index.labelled[image] & (labels >= 0)]] = True
    new = labelled & ~builder.labelled[merged]
    builder.labelled[merged] |= labelled
    for instance in index.instances(image):
        label = labels[index.labels[instance]]
        if label >= 0 and new[label]:
            builder.add_instance(merged, int(label), bool(index.iscrowd[instance]), index.counts[instance])


def _ends_in_any(path: str, names: Collection[str]) -> bool:
    """Return whether a path ends in one of some file names, which may include folders."""
    parts = Path(path).parts
    return bool(names) and any("/".join(parts[start:]) in names for start in range(1, len(parts)))


def _check_classes(classes: Sequence[str]) -> tuple[str, ...]:
    if isinstance(classes, str) or not all(isinstance(name, str) for name in classes):
        raise ConfigError(f"classes={classes!r}: expected a sequence of class names.")
    repeated = sorted(name for name, count in Counter(classes).items() if count > 1)
    if not classes or repeated:
        raise ConfigError(f"classes={list(classes)}: expected at least one name, all different ({repeated}).")
    return tuple(classes)


def _require_match(data: CocoData, classes: tuple[str, ...]) -> None:
    """Reject class names that are surely misspelled, and warn about those that may be."""
    known = data.categories.names
    missing = [name for name in classes if name not in known]
    unused = [name for name in known if name not in classes]
    hints = {name: did_you_mean(name, unused).strip() for name in missing}
    similar = [f"{name!r} ({hint[0].lower()}{hint[1:]})" for name, hint in hints.items() if hint]
    misspelled = {_letters(name) for name in missing} & {_letters(name) for name in unused}
    if len(missing) == len(classes) or misspelled:
        raise DataError(
            f"{data.path} has no category {', '.join(similar[:3]) or summarize_names(map(repr, missing))}: "
            f"expected names of its categories: {summarize_names(known)}."
        )
    if similar:
        logger.warning("%s has no category %s: it counts as not labeled.", data.path, ", ".join(similar))


def _letters(name: str) -> str:
    return re.sub(r"[\W_]+", "", name).lower()


def _require_images(folder: Path, data: CocoData) -> list[str]:
    """Return the paths of all images relative to their folder."""
    if not folder.is_dir():
        raise DataError(f"No folder {folder}: expected the folder of the images of {data.path}.")
    files = find_images(folder, data)
    missing = [image.file_name for image, file in zip(data.images, files, strict=True) if file is None]
    if missing:
        names = ", ".join(map(quoted, missing[:3])) + (", ..." if len(missing) > 3 else "")
        raise DataError(
            f"{len(missing)} of {len(data.images)} images of {data.path} are not in {folder}: {names}. "
            "Give the folder that the file names are relative to, or remove the images from the file."
            f"{encoding_hint(missing)}"
        )
    return [file for file in files if file is not None]


def _add_instances(
    builder: IndexBuilder, data: CocoData, index_of: dict[ImageId, int], label_of: dict[int, int]
) -> None:
    total = 0
    omissions: Counter[Omission] = Counter()
    unseen = set(label_of)
    annotations = progress_bar(data.annotations, desc="reading annotations", unit="instance", delay=2)
    for annotation in annotations:
        label, image = label_of.get(annotation.category_id), index_of[annotation.image_id]
        if label is None or not builder.labelled[image][label]:
            continue
        total += 1
        try:
            counts = _usable_mask(annotation, *builder.shapes[image])
        except ValueError as error:
            raise DataError(f"{data.path}: {error}") from error
        if isinstance(counts, Omission):
            omissions[counts] += 1
        else:
            builder.add_instance(image, label, annotation.is_crowd or annotation.is_ignored, counts)
            unseen.discard(annotation.category_id)
    report_omissions(data, omissions, total)
    if total and unseen:
        names = [builder.classes[label_of[number]] for number in sorted(unseen)]
        logger.warning("%s: no instance of %s: training cannot learn it.", data.path, summarize_names(names))


def _usable_mask(annotation: Annotation, height: int, width: int) -> bytes | Omission:
    """Return the mask of an annotation as compressed RLE, or the reason to leave it out."""
    mask = annotation.rle(height, width)
    if mask is None:
        return Omission.NO_MASK
    if annotation.area is not None and annotation.area <= 0:
        return Omission.AREA
    if annotation.bbox is not None and not _is_visible(annotation.bbox, height, width):
        return Omission.BOX
    counts, area = mask
    return counts if area > 0 else Omission.EMPTY


def _is_visible(box: tuple[float, float, float, float], height: int, width: int) -> bool:
    """Return whether a box is at least a pixel wide and high and overlaps the image."""
    left, top, box_width, box_height = box
    overlaps = min(left + box_width, width) > max(left, 0) and min(top + box_height, height) > max(top, 0)
    return overlaps and box_width >= 1 and box_height >= 1
