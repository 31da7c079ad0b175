"""Batches of training images: which, in which order, and as the network takes them."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed
from torch.utils.data import DataLoader, Sampler

from solo_infer.config import PreprocessConfig
from solo_infer.errors import ConfigError
from solo_infer.models.solo.objective import Target
from solo_infer.training.dataset import InstanceDataset, make_generator
from solo_infer.training.sample import Sample

Batch = tuple[Tensor, list[Target]]


def collate(
    samples: Sequence[Sample], preprocessing: PreprocessConfig, size: tuple[int, int] | None = None
) -> Batch:
    """Normalize samples and pad them to one size, right and bottom.

    Args:
        samples: One or more.
        preprocessing: Its mean, std and size_divisor; images are not scaled.
        size: Height and width to pad to, in pixels; the largest of each, rounded up to a multiple of
            ``size_divisor``, if not given.

    Returns:
        Images (N, 3, H, W) float32, 0 in the padding, and their targets; masks are not padded.

    Raises:
        ConfigError: An image is larger than ``size``.
    """
    largest = tuple(max(sample.shape[axis] for sample in samples) for axis in (0, 1))
    height, width = preprocessing.padded_shape(*largest) if size is None else size
    if largest[0] > height or largest[1] > width:
        raise ConfigError(
            f"Images of up to {largest[0]} x {largest[1]} pixels (height x width) for a batch of "
            f"{height} x {width}: scale or crop them, or give a greater size."
        )
    mean, std = (torch.tensor(values)[:, None, None] for values in (preprocessing.mean, preprocessing.std))
    batch = torch.zeros(len(samples), 3, height, width)
    for padded, sample in zip(batch, samples, strict=True):
        place = padded[:, : sample.shape[0], : sample.shape[1]]
        place.copy_(sample.image.as_subclass(Tensor)).sub_(mean).div_(std)
    return batch, [_plain(sample.target) for sample in samples]


def _plain(target: Target) -> Target:
    """Return a target of ordinary tensors: those of torchvision would follow into every operation."""
    return {key: value.as_subclass(Tensor) for key, value in target.items()}  # type: ignore[return-value, attr-defined]


class EpochSampler(Sampler[list[tuple[int, int]]]):
    """Draws the batches of an epoch in a random order: lists of (epoch, index), for ``batch_sampler``.

    All processes draw the same batches, whatever their number, and each takes its part of every one. What is
    left over at the end of an epoch is left out; it is another part in each epoch.

    Args:
        length: Number of images.
        batch: Images of a batch, over all processes.
        seed: Of the order, at least 0.
        rank: Of this process.
        world_size: Number of processes; divides ``batch``.
        portrait: (length,) bool: images that are True and False do not share a batch, except for the last
            of an epoch, so that less is padded (mmdet's ``AspectRatioBatchSampler``).

    Raises:
        ConfigError: There is no whole batch, or it cannot be shared equally.
    """

    def __init__(
        self,
        length: int,
        batch: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        portrait: np.ndarray | None = None,
    ) -> None:
        if not 1 <= batch <= length:
            raise ConfigError(f"A batch of {batch} from {length} images: expected 1..{length}.")
        if batch % world_size or not 0 <= rank < world_size:
            raise ConfigError(
                f"A batch of {batch} for process {rank} of {world_size}: expected a multiple of the number "
                "of processes, which are counted from 0."
            )
        if seed < 0:
            raise ConfigError(f"seed={seed}: expected a whole number of at least 0.")
        if portrait is not None and len(portrait) != length:
            raise ConfigError(f"portrait says something of {len(portrait)} of {length} images.")
        self.length, self.batch, self.seed, self.rank, self.world_size = length, batch, seed, rank, world_size
        self.portrait = portrait
        self.set_epoch(0)

    def set_epoch(self, epoch: int, start_iteration: int = 0) -> None:
        """Choose the epoch, from 0, and how many of its batches are done already."""
        self.epoch, self.start_iteration = epoch, start_iteration

    def __len__(self) -> int:
        """Return the batches of a whole epoch, however many are done."""
        return self.length // self.batch

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        """Yield this process's part of each batch that is left of the epoch."""
        order = self._order()
        share = self.batch // self.world_size
        for iteration in range(self.start_iteration, len(self)):
            first = iteration * self.batch + self.rank * share
            yield [(self.epoch, int(index)) for index in order[first : first + share]]

    def _order(self) -> np.ndarray:
        """Return the images of an epoch, batch after batch."""
        generator = make_generator(self.seed, self.epoch)
        order = torch.randperm(self.length, generator=generator).numpy()
        if self.portrait is None:
            return order
        portrait = np.asarray(self.portrait, dtype=bool)[order]
        whole, rest = [], []
        for group in (order[portrait], order[~portrait]):
            count = len(group) // self.batch
            whole.append(group[: count * self.batch].reshape(count, self.batch))
            rest.append(group[count * self.batch :])
        batches = np.concatenate(whole)
        mixed = torch.randperm(len(batches), generator=generator).numpy()
        return np.concatenate([batches[mixed].ravel(), *rest])


class DatasetBatches:
    """The batches of a data set, loaded by worker processes: what ``solo_infer.training.trainer.fit`` takes.

    They depend on the data set, its seed and the arguments alone, not on the number of workers.

    Args:
        dataset: Images and instances.
        batch: Images of a batch, over all processes of ``torch.distributed``.
        preprocessing: Mean, std and size_divisor.
        seed: Of the order, at least 0.
        workers: Processes that load images for this one; 0 for none.
        size: Height and width of all batches in pixels; as needed by each, if not given.
        by_orientation: Do not mix portrait and landscape images.

    Raises:
        ConfigError: There is no whole batch.
    """

    def __init__(
        self,
        dataset: InstanceDataset,
        batch: int,
        preprocessing: PreprocessConfig,
        *,
        seed: int = 0,
        workers: int = 2,
        size: tuple[int, int] | None = None,
        by_orientation: bool = False,
    ) -> None:
        self.dataset, self.batch, self.seed, self.workers = dataset, batch, seed, workers
        self._collate = functools.partial(_packed_batch, preprocessing=preprocessing, size=size)
        shapes = dataset.shapes
        self._portrait = shapes[:, 0] > shapes[:, 1] if by_orientation else None
        self._length = len(self._sampler(0, 1))

    def __len__(self) -> int:
        """Return the batches of an epoch."""
        return self._length

    def epoch(self, epoch: int, start: int) -> Iterator[Batch]:
        """Yield this process's part of the batches of an epoch (from 0) after the first ``start``.

        Raises:
            ConfigError: The processes cannot share a batch equally.
            DataError: An image cannot be read.
        """
        joined = distributed.is_available() and distributed.is_initialized()
        sampler = self._sampler(*(distributed.get_rank(), distributed.get_world_size()) if joined else (0, 1))
        sampler.set_epoch(epoch, start)
        loader = DataLoader(
            self.dataset,
            batch_sampler=sampler,
            num_workers=self.workers,
            collate_fn=self._collate,
            pin_memory=torch.cuda.is_available(),
            generator=make_generator(self.seed),  # else it would take a number from the global one
        )
        for images, buffer, layout in loader:
            yield images, _unpacked(buffer, layout)

    def _sampler(self, rank: int, world_size: int) -> EpochSampler:
        return EpochSampler(len(self.dataset), self.batch, self.seed, rank, world_size, self._portrait)


# Which entry of which target, its dtype and its shape.
_Layout = list[tuple[int, str, torch.dtype, torch.Size]]


def _packed_batch(
    samples: Sequence[Sample], preprocessing: PreprocessConfig, size: tuple[int, int] | None
) -> tuple[Tensor, Tensor, _Layout]:
    """Return a batch whose targets are packed into one tensor of bytes.

    Each tensor that a worker hands over is an open file: hundreds in each batch would soon be too many.
    """
    images, targets = collate(samples, preprocessing, size)
    parts: list[tuple[int, str, Tensor]] = [
        (index, key, part)  # type: ignore[misc]  # mypy takes the values of a TypedDict for objects
        for index, target in enumerate(targets)
        for key, part in target.items()
    ]
    parts.sort(key=lambda entry: -entry[2].element_size())  # so that each is aligned
    buffer = torch.cat(
        [
            part.flatten().clone(memory_format=torch.contiguous_format).view(torch.uint8)
            for _, _, part in parts
        ]
    )
    return images, buffer, [(index, key, part.dtype, part.shape) for index, key, part in parts]


def _unpacked(buffer: Tensor, layout: _Layout) -> list[Target]:
    targets: dict[int, Any] = {}
    start = 0
    for index, key, dtype, shape in layout:
        end = start + math.prod(shape) * dtype.itemsize  # pinning makes lists of shapes in torch 2.1
        targets.setdefault(index, {})[key] = buffer[start:end].view(dtype).view(shape)
        start = end
    return [targets[index] for index in sorted(targets)]
