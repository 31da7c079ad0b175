"""Training images and instances from COCO-format files, one file or several that label different classes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from pycocotools import mask as coco
from torch import Generator, Tensor
from torch.utils.data import Dataset
from torchvision.transforms.v2 import functional as kernels

from solo_infer.config.categories import Categories
from solo_infer.data.exif import upright_size
from solo_infer.data.images import load_image
from solo_infer.errors import ConfigError, DataError, ImageError
from solo_infer.ops.rle import run_lengths
from solo_infer.training.annotation_index import Index, merge, read_index
from solo_infer.training.sample import Sample, bounds, centers, make_sample

Augment = Callable[[Sample, Generator, Callable[[Generator], Sample]], Sample]


class InstanceDataset(Dataset[Sample]):
    """Images and instances for training, by index or by (epoch, index).

    What augmentation makes of an image depends on the seed, the epoch and the index alone, never on the
    process or on what came before. Masks are decoded image by image.

    Args:
        index: The annotations.
        augment: Changes a sample, by a generator and a function that draws any other sample: an
            ``Augmentation``.
        seed: Of augmentation, at least 0.
        filter_empty: Leave out images without instances (mmdet's ``filter_empty_gt``). Images that are
            labelled but empty teach what is no object: set False to keep them. Images that none of the
            classes is labelled in are always left out.
        longest: Images with a longer side, in pixels, are shrunk to it as they are read, JPEG while it is
            decoded. Saves most of the time that photos far larger than the network's input take.
        cache: Decode all images now and keep them, 3 bytes a pixel; forked workers share them.

    Attributes:
        classes: Class names in the order of the labels.

    Raises:
        DataError: No image is left, or (with ``cache``) one cannot be read.
        ConfigError: A setting is out of range.
    """

    def __init__(
        self,
        index: Index,
        *,
        augment: Augment | None = None,
        seed: int = 0,
        filter_empty: bool = True,
        longest: int | None = None,
        cache: bool = False,
    ) -> None:
        for name, value, least in (("seed", seed, 0), ("longest", longest, 1)):
            if value is not None and value < least:
                raise ConfigError(f"{name}={value!r}: expected a whole number of at least {least}.")
        self.index, self.augment, self.seed, self.longest = index, augment, seed, longest
        self.classes = index.classes
        self._chosen = np.flatnonzero(index.sizes > 0 if filter_empty else index.labelled.any(axis=1))
        if not len(self._chosen):
            raise DataError(
                f"None of {len(index)} images has an instance of {', '.join(self.classes)}: choose other "
                "classes or images (filter_empty=False keeps images without instances)."
            )
        self._cached = self._read_all() if cache else None

    def __len__(self) -> int:
        return len(self._chosen)

    def __getitem__(self, key: int | tuple[int, int]) -> Sample:
        """Return the sample of an index or (epoch, index), augmented.

        Raises:
            DataError: Its image has gone, cannot be decoded or is of another size than annotated.
        """
        epoch, index = key if isinstance(key, tuple) else (0, key)
        sample = self.load(index)
        if self.augment is None:
            return sample
        return self.augment(sample, make_generator(self.seed, epoch, index), self._draw)

    @property
    def categories(self) -> Categories:
        """The classes with the annotation files' ids; numbered from 1 where these contradict each other."""
        return Categories(self.classes, self.index.category_ids)

    @property
    def shapes(self) -> np.ndarray:
        """Height and width of each image in pixels, as annotated, (n, 2) int32."""
        return self.index.shapes[self._chosen]

    @property
    def file_names(self) -> frozenset[str]:
        """File names of all images, also of those left out for being empty: for ``exclude`` of ``union``."""
        return frozenset(self.index.name(image) for image in range(len(self.index)))

    def load(self, index: int) -> Sample:
        """Return the sample of an index without augmentation.

        Raises:
            DataError: As ``dataset[index]``.
        """
        image = int(self._chosen[index])
        pixels = self._read(image) if self._cached is None else self._cached[index]
        masks = self._masks(image, pixels.shape[-2], pixels.shape[-1])
        instances, covered = self.index.instances(image), self.index.labelled[image]
        return make_sample(
            pixels,
            masks,
            bounds(masks),
            torch.from_numpy(self.index.labels[instances.start : instances.stop].copy()),
            torch.from_numpy(self.index.iscrowd[instances.start : instances.stop].copy()),
            None if covered.all() else torch.from_numpy(np.flatnonzero(covered)),
        )

    def _draw(self, generator: Generator) -> Sample:
        return self.load(int(torch.randint(len(self), (), generator=generator)))

    def _read(self, image: int) -> Tensor:
        height, width = self.index.shapes[image].tolist()
        return read_pixels(self.index.path(image), height, width, self.longest)

    def _read_all(self) -> list[Tensor]:
        from tqdm import tqdm

        shown = tqdm(self._chosen, desc="reading images", unit="image", delay=2, disable=None)
        return [self._read(int(image)) for image in shown]

    def _masks(self, image: int, height: int, width: int) -> Tensor:
        """Return the masks (n, height, width) bool of an image, which may have been shrunk."""
        size = self.index.shapes[image].tolist()
        encoded = [{"size": size, "counts": self.index.counts[i]} for i in self.index.instances(image)]
        masks = np.zeros((len(encoded), height, width), dtype=bool)
        if encoded:
            decode = _decode_into if [height, width] == size else _sample_into
            for mask, rle, window in zip(masks, encoded, coco.toBbox(encoded).astype(np.int64), strict=True):
                decode(mask, rle, *window)
        return torch.from_numpy(masks)


def _decode_into(mask: np.ndarray, rle: dict[str, Any], left: int, top: int, width: int, height: int) -> None:
    """Write RLE with these bounds into a mask of its size."""
    window = slice(top, top + height), slice(left, left + width)
    mask[window] = coco.decode(rle)[window]  # only there: what was decoded is stored by columns


def _sample_into(mask: np.ndarray, rle: dict[str, Any], left: int, top: int, width: int, height: int) -> None:
    """Write RLE with these bounds into a smaller mask: the pixels under the centers of the new ones.

    It is never decoded as a whole, which for large photos would take longer than all else.
    """
    rows, columns = (centers(old, new) for old, new in zip(rle["size"], mask.shape, strict=True))
    first_row, end_row = np.searchsorted(rows, (top, top + height))
    first_column, end_column = np.searchsorted(columns, (left, left + width))
    places = columns[first_column:end_column] * rle["size"][0] + rows[first_row:end_row, None]
    ends = run_lengths(rle["counts"]).cumsum()  # of the runs outside and inside, in turn, by columns
    mask[first_row:end_row, first_column:end_column] = np.searchsorted(ends, places, side="right") % 2


class CocoDataset(InstanceDataset):
    """The images and instances of one COCO annotation file.

    Masks may be polygons or RLE, compressed or not; crowds are marked as such. Instances without area, with
    a box outside of the image or with an empty mask are skipped. Instances of other categories than
    ``classes`` are dropped.

    Args:
        images: The folder that the file names of the annotations start from.
        annotations: The file. Its labels cover all its categories, unless an image record tells the covered
            ones in "labelled_category_ids".
        classes: Class names in the order of the labels; the file's categories in the order of their ids if
            not given. Classes that the file lacks count as not labelled.
        augment: As all further arguments: see ``InstanceDataset``.
        seed: Of augmentation.
        filter_empty: Leave out images without instances.
        longest: Shrink larger images as they are read, to this long side in pixels.
        cache: Keep all images decoded.

    Raises:
        DataError: A file or image is missing or damaged, contradicts itself or has none of the classes.
        ConfigError: A setting is out of range.
    """

    def __init__(
        self,
        images: Path,
        annotations: Path,
        classes: Sequence[str] | None = None,
        *,
        augment: Augment | None = None,
        seed: int = 0,
        filter_empty: bool = True,
        longest: int | None = None,
        cache: bool = False,
    ) -> None:
        super().__init__(
            read_index(Path(images), Path(annotations), classes),
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
    """Return several data sets as one, each image once.

    An image that several of them hold (the same file) has the labels of all. A class that several of them
    label in it is taken from the first. Classes that none of them labels in it teach nothing there. What the
    sets left out for being empty is considered too; their own augmentation and cache are not.

    Args:
        datasets: The data sets.
        classes: Class names in the order of the labels; those of the sets in turn, if not given.
        exclude: File names of images to leave out, as the annotation files write them (so
            ``validation.file_names``); a name also excludes the file of that name in any folder.
        augment: As all further arguments: see ``InstanceDataset``.
        seed: Of augmentation.
        filter_empty: Leave out images without instances.
        longest: Shrink larger images as they are read, to this long side in pixels.
        cache: Keep all images decoded.

    Raises:
        DataError: No image is left, or two sets give an image different sizes.
        ConfigError: There is no data set, or a setting is out of range.
    """
    if not datasets:
        raise ConfigError("union of no data sets: expected at least one.")
    if isinstance(exclude, str):
        raise ConfigError(f"exclude={exclude!r}: expected a set of file names, not one.")
    return InstanceDataset(
        merge([dataset.index for dataset in datasets], classes, frozenset(exclude)),
        augment=augment,
        seed=seed,
        filter_empty=filter_empty,
        longest=longest,
        cache=cache,
    )


def make_generator(*numbers: int) -> Generator:
    """Return a generator on the CPU whose seed is mixed from whole numbers of at least 0."""
    mixed = np.random.SeedSequence(numbers).generate_state(1, np.uint64)
    return Generator().manual_seed(int(mixed[0]))


def read_pixels(path: str, height: int, width: int, longest: int | None = None) -> Tensor:
    """Read an image that must have a given size.

    Args:
        path: The file.
        height: Expected, in pixels, after its EXIF orientation.
        width: Likewise.
        longest: Shrink it, keeping the ratio, if its long side is longer, in pixels.

    Returns:
        (3, height, width) uint8 RGB, or smaller.

    Raises:
        DataError: It cannot be read or has another size.
    """
    scale = 1.0 if longest is None else min(longest / max(height, width), 1.0)
    try:
        pixels, found = _decode(path, scale)
    except (ImageError, OSError, Image.DecompressionBombError) as error:
        raise DataError(f"{path} cannot be read as an image of the training set: {error}") from error
    if found != (height, width):
        turned = " (Its EXIF orientation counts: annotate it upright.)" if found == (width, height) else ""
        raise DataError(
            f"{path} has {found[0]} x {found[1]} pixels (height x width), but its annotations say "
            f"{height} x {width}: correct them or the image.{turned}"
        )
    planes = torch.from_numpy(pixels).permute(2, 0, 1)
    if scale == 1.0:
        return planes
    shape = [max(round(height * scale), 1), max(round(width * scale), 1)]
    return kernels.resize(planes, shape, antialias=True)


def _decode(path: str, scale: float) -> tuple[np.ndarray, tuple[int, int]]:
    """Decode an image and return its pixels and its full size (height, width), both upright.

    JPEG files are decoded at 1/2, 1/4 or 1/8 of their size where that is at least ``scale``.
    """
    with Image.open(path) as image:
        if scale == 1.0 or image.format != "JPEG":
            pixels = load_image(path).pixels
            return pixels, (pixels.shape[0], pixels.shape[1])
        size = upright_size(image)
        image.draft("RGB", (int(image.width * scale) + 1, int(image.height * scale) + 1))
        return load_image(image).pixels, size
