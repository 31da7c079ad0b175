"""Training data sets from COCO annotation files, one file or several that label different classes."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from pycocotools import mask as coco
from torch import Generator, Tensor
from torch.utils.data import Dataset
from torchvision.transforms.v2 import functional as F

from solo_infer.config import Categories
from solo_infer.config.validation import require, require_non_negative_ints, require_positive_ints
from solo_infer.data.coco import AnnotationSource
from solo_infer.data.exif import upright_size
from solo_infer.data.images import load_reduced
from solo_infer.errors import DataError, ImageError
from solo_infer.ops.rle import run_lengths
from solo_infer.runtime.messages import summarize_names
from solo_infer.runtime.progress import progress_bar
from solo_infer.training.annotation_index import AnnotationIndex, merge_indices, read_index
from solo_infer.training.sample import Sample, make_sample, mask_bounds, nearest_indices

Augment = Callable[[Sample, Generator, Callable[[Generator], Sample]], Sample]


class InstanceDataset(Dataset[Sample]):
    """Images and instances for training, addressed by index or by (epoch, index).

    The augmentation of an image depends only on the seed, the epoch and the index, not on the process or on
    previous images. The masks of an image are decoded when it is read.

    Args:
        index: Annotations.
        augment: Function that changes a sample, given a generator and a function that draws a random
            sample; see ``Augmentation``.
        seed: Seed of the augmentation, at least 0.
        filter_empty: Whether to skip images without instances (mmdet's ``filter_empty_gt``). Labeled images
            without instances are examples of background; ``False`` keeps them. Images for which no class is
            labeled are always skipped.
        longest: Greatest long side in pixels; larger images are reduced while they are read. This saves most
            of the reading time of photos that are far larger than the network input. Defaults to no limit.
        cache: Whether to decode all images now and keep them, 3 bytes per pixel; forked workers share them.

    Attributes:
        classes: Class names in the order of the labels.

    Raises:
        DataError: No image is left, or (with ``cache``) an image cannot be read.
        ConfigError: A setting is out of range.
    """

    def __init__(
        self,
        index: AnnotationIndex,
        *,
        augment: Augment | None = None,
        seed: int = 0,
        filter_empty: bool = True,
        longest: int | None = None,
        cache: bool = False,
    ) -> None:
        require_non_negative_ints({"seed": seed})
        if longest is not None:
            require_positive_ints({"longest": longest})
        self.index, self.augment, self.seed, self.longest = index, augment, seed, longest
        self.classes = index.classes
        self._images = np.flatnonzero(
            index.instance_counts > 0 if filter_empty else index.labelled.any(axis=1)
        )
        if not len(self._images):
            raise DataError(
                f"None of {len(index)} images has an instance of {summarize_names(self.classes)}: select "
                "other classes or images (filter_empty=False keeps images without instances)."
            )
        self._cached = self._read_all() if cache else None

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, key: int | tuple[int, int]) -> Sample:
        """Return the augmented sample of an index or (epoch, index).

        Raises:
            DataError: The image is missing, damaged or of another size than annotated.
        """
        epoch, index = key if isinstance(key, tuple) else (0, key)
        sample = self.load(index)
        if self.augment is None:
            return sample
        return self.augment(sample, make_generator(self.seed, epoch, index), self._draw)

    @property
    def categories(self) -> Categories:
        """Classes with the ids of the annotation files, or ids from 1 if the files contradict each other."""
        return Categories(self.classes, self.index.category_ids)

    @property
    def shapes(self) -> np.ndarray:
        """Annotated height and width of each image in pixels, (n, 2) int32."""
        return self.index.shapes[self._images]

    @property
    def file_names(self) -> frozenset[str]:
        """File names of all images, including skipped ones, for the argument ``exclude`` of ``union``."""
        return frozenset(self.index.name(image) for image in range(len(self.index)))

    def load(self, index: int) -> Sample:
        """Return the sample of an index without augmentation.

        Raises:
            DataError: As for ``dataset[index]``.
        """
        image = int(self._images[index])
        pixels = self._read(image) if self._cached is None else self._cached[index]
        masks = self._masks(image, pixels.shape[-2], pixels.shape[-1])
        instances, labelled = self.index.instances(image), self.index.labelled[image]
        return make_sample(
            pixels,
            masks,
            mask_bounds(masks),
            torch.from_numpy(self.index.labels[instances.start : instances.stop].copy()),
            torch.from_numpy(self.index.iscrowd[instances.start : instances.stop].copy()),
            None if labelled.all() else torch.from_numpy(np.flatnonzero(labelled)),
        )

    def _draw(self, generator: Generator) -> Sample:
        return self.load(
            int(torch.randint(len(self), (), dtype=torch.int64, generator=generator, device="cpu"))
        )

    def _read(self, image: int) -> Tensor:
        height, width = self.index.shapes[image].tolist()
        return read_pixels(self.index.path(image), height, width, self.longest)

    def _read_all(self) -> list[Tensor]:
        images = progress_bar(self._images, desc="reading images", unit="image", delay=2)
        return [self._read(int(image)) for image in images]

    def _masks(self, image: int, height: int, width: int) -> Tensor:
        """Return the masks (n, height, width) bool of an image, which may be smaller than annotated."""
        size = self.index.shapes[image].tolist()
        encoded = [{"size": size, "counts": self.index.counts[i]} for i in self.index.instances(image)]
        masks = np.zeros((len(encoded), height, width), dtype=bool)
        if encoded:
            decode = _decode_rle if [height, width] == size else _decode_rle_reduced
            for mask, rle, box in zip(masks, encoded, coco.toBbox(encoded).astype(np.int64), strict=True):
                decode(mask, rle, *box)
        return torch.from_numpy(masks)


def _decode_rle(mask: np.ndarray, rle: dict[str, Any], left: int, top: int, width: int, height: int) -> None:
    """Decode RLE with a bounding box into a mask of its size."""
    window = slice(top, top + height), slice(left, left + width)
    mask[window] = coco.decode(rle)[window]  # copying only the box is faster: decoded masks are column-major


def _decode_rle_reduced(
    mask: np.ndarray, rle: dict[str, Any], left: int, top: int, width: int, height: int
) -> None:
    """Decode RLE with a bounding box into a smaller mask, from the pixels at the centers of the new ones.

    The full mask is never decoded, which would take most of the time for large photos.
    """
    rows, columns = (nearest_indices(old, new) for old, new in zip(rle["size"], mask.shape, strict=True))
    first_row, end_row = np.searchsorted(rows, (top, top + height))
    first_column, end_column = np.searchsorted(columns, (left, left + width))
    offsets = columns[first_column:end_column] * rle["size"][0] + rows[first_row:end_row, None]
    ends = run_lengths(rle["counts"]).cumsum()  # ends of the column-major runs, outside and inside in turn
    mask[first_row:end_row, first_column:end_column] = np.searchsorted(ends, offsets, side="right") % 2


class CocoDataset(InstanceDataset):
    """Images and instances of one COCO annotation file.

    Masks may be polygons or RLE, compressed or not. Crowds, and instances with "ignore", are kept and
    marked. Instances are left out if they have no mask, their area is 0 or less, their box is outside of the
    image or thinner than a pixel, or their mask is empty. Instances of categories that are not in
    ``classes`` are dropped.

    Args:
        images: Folder of the images.
        annotations: Annotation file, or its content. It covers all its categories in every image, except that
            the entry "labelled_category_ids" of an image lists the categories covered there.
        classes: Class names in the order of the labels. Classes that the file lacks count as not labeled.
            Defaults to the categories of the file in the order of their ids.
        augment: Augmentation; see ``InstanceDataset``, also for the following arguments.
        seed: Seed of the augmentation.
        filter_empty: Whether to skip images without instances.
        longest: Greatest long side in pixels to which larger images are reduced while they are read.
        cache: Whether to keep all images decoded.

    Raises:
        DataError: A file or image is missing or damaged, contradicts itself or has none of the classes.
        ConfigError: A setting is out of range.
    """

    def __init__(
        self,
        images: str | os.PathLike[str],
        annotations: AnnotationSource,
        classes: Sequence[str] | None = None,
        *,
        augment: Augment | None = None,
        seed: int = 0,
        filter_empty: bool = True,
        longest: int | None = None,
        cache: bool = False,
    ) -> None:
        super().__init__(
            read_index(images, annotations, classes),
            augment=augment,
            seed=seed,
            filter_empty=filter_empty,
            longest=longest,
            cache=cache,
        )


def union(
    datasets: Sequence[InstanceDataset],
    *,
    classes: Sequence[str] | None = None,
    exclude: Collection[str] = frozenset(),
    augment: Augment | None = None,
    seed: int = 0,
    filter_empty: bool = True,
    longest: int | None = None,
    cache: bool = False,
) -> InstanceDataset:
    """Return several data sets as one that has each image once.

    An image of several data sets (the same file) gets the instances of all. A class that several data sets
    label in it is taken from the first. Classes that no data set labels in an image are ignored for it.
    Images that the data sets skip because they are empty are considered; their augmentation and cache are not
    used.

    Args:
        datasets: Data sets.
        classes: Class names in the order of the labels. Defaults to the classes of the data sets in order.
        exclude: File names of images to exclude, as in the annotation files (for example
            ``validation.file_names``). A name also excludes the file of that name in any folder.
        augment: Augmentation; see ``InstanceDataset``, also for the following arguments.
        seed: Seed of the augmentation.
        filter_empty: Whether to skip images without instances.
        longest: Greatest long side in pixels to which larger images are reduced while they are read.
        cache: Whether to keep all images decoded.

    Raises:
        DataError: No image is left, or two data sets give different sizes of an image.
        ConfigError: No data set is given, or a setting is out of range.
    """
    require(len(datasets) > 0, "union of no data sets: expected at least one.")
    require(not isinstance(exclude, str), f"exclude={exclude!r}: expected a set of file names, not one.")
    return InstanceDataset(
        merge_indices([dataset.index for dataset in datasets], classes, frozenset(exclude)),
        augment=augment,
        seed=seed,
        filter_empty=filter_empty,
        longest=longest,
        cache=cache,
    )


def make_generator(*numbers: int) -> Generator:
    """Return a CPU generator seeded with a hash of integers of at least 0."""
    seed = np.random.SeedSequence(numbers).generate_state(1, np.uint64)
    return Generator("cpu").manual_seed(int(seed[0]))


def read_pixels(path: str, height: int, width: int, longest: int | None = None) -> Tensor:
    """Read an image and check its size.

    Args:
        path: Image file.
        height: Expected height in pixels, after the EXIF orientation.
        width: Expected width in pixels, after the EXIF orientation.
        longest: Greatest long side of the output in pixels. Defaults to no limit.

    Returns:
        (3, height, width) uint8 RGB, reduced with the same aspect ratio if ``longest`` requires it.

    Raises:
        DataError: The image cannot be read or has another size.
    """
    scale = 1.0 if longest is None else min(longest / max(height, width), 1.0)
    try:
        pixels, size = load_reduced(path, scale)
    except ImageError as error:
        raise DataError(f"{path} cannot be read as an image of the training set: {error}") from error
    if size != (height, width):
        hint = " (Its EXIF orientation counts: annotate it upright.)" if _is_turned(path) else ""
        raise DataError(
            f"{path} has {size[0]} x {size[1]} pixels (height x width), but its annotations say "
            f"{height} x {width}: correct them or the image.{hint}"
        )
    planes = torch.from_numpy(pixels).permute(2, 0, 1)
    if scale == 1.0:
        return planes
    reduced = [max(round(height * scale), 1), max(round(width * scale), 1)]
    return F.resize(planes, reduced, antialias=True)


def _is_turned(path: str) -> bool:
    """Return whether the EXIF orientation of an image exchanges its height and width."""
    with Image.open(path) as image:
        return upright_size(image) != (image.height, image.width)
