"""Batches of training samples: their order, their loading and their collation."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler

from solo_infer.config import PreprocessConfig
from solo_infer.errors import ConfigError, TrainingError
from solo_infer.models.target import Target
from solo_infer.runtime.distributed import rank_and_world_size
from solo_infer.runtime.messages import first_line
from solo_infer.training.dataset import InstanceDataset, make_generator
from solo_infer.training.run_start import fingerprint
from solo_infer.training.sample import Sample
from solo_infer.training.torch_state import is_out_of_memory
from solo_infer.training.worker_processes import load_batches

Batch = tuple[Tensor, list[Target]]


def collate(
    samples: Sequence[Sample], preprocessing: PreprocessConfig, size: tuple[int, int] | None = None
) -> Batch:
    """Normalize samples and pad them at the right and bottom to one size.

    Args:
        samples: One or more samples.
        preprocessing: Settings of the model, of which mean, std and ``size_divisor`` are used. Images are not
            scaled.
        size: Height and width of the batch in pixels. Defaults to the greatest height and width of the
            samples, rounded up to multiples of ``size_divisor``.

    Returns:
        Images (N, 3, H, W) float32 with zeros in the padding, and N targets, whose masks are not padded.

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
    mean, std = (
        torch.tensor(values, dtype=torch.float32, device="cpu")[:, None, None]
        for values in (preprocessing.mean, preprocessing.std)
    )
    batch = torch.zeros(len(samples), 3, height, width, dtype=torch.float32, device="cpu")
    for padded, sample in zip(batch, samples, strict=True):
        image = padded[:, : sample.shape[0], : sample.shape[1]]
        image.copy_(sample.image.as_subclass(Tensor)).sub_(mean).div_(std)
    return batch, [_without_subclasses(sample.target) for sample in samples]


def _without_subclasses(target: Target) -> Target:
    """Return a target of plain tensors; torchvision's subclasses slow down every operation on them."""
    return {key: value.as_subclass(Tensor) for key, value in target.items()}  # type: ignore[return-value, attr-defined]


@dataclass(frozen=True)
class PackedTargets:
    """Targets of a batch in one tensor, to be sent from a worker process.

    Each tensor that a worker sends keeps a file open. A batch has hundreds, which would exceed the limit of
    open files.

    Attributes:
        buffer: (bytes,) uint8, all tensors one after the other.
        layout: Index of the target, key, dtype and shape of each tensor in the buffer.
        count: Number of targets.
    """

    buffer: Tensor
    layout: list[tuple[int, str, torch.dtype, torch.Size]]
    count: int

    @classmethod
    def pack(cls, targets: Sequence[Target]) -> PackedTargets:
        """Pack targets."""
        entries: list[tuple[int, str, Tensor]] = [
            (index, key, tensor)  # type: ignore[misc]  # mypy takes the values of a TypedDict for objects
            for index, target in enumerate(targets)
            for key, tensor in target.items()
        ]
        entries.sort(key=lambda entry: -entry[2].element_size())  # keeps every tensor aligned
        flat = [tensor.flatten().clone(memory_format=torch.contiguous_format) for _, _, tensor in entries]
        buffer = torch.cat([tensor.view(torch.uint8) for tensor in flat])
        layout = [(index, key, tensor.dtype, tensor.shape) for index, key, tensor in entries]
        return cls(buffer, layout, len(targets))

    def unpack(self) -> list[Target]:
        """Return the targets, as views of the buffer."""
        targets: list[Any] = [{} for _ in range(self.count)]
        start = 0
        for index, key, dtype, shape in self.layout:
            end = start + math.prod(shape) * dtype.itemsize
            targets[index][key] = self.buffer[start:end].view(dtype).view(shape)
            start = end
        return targets

    def pin_memory(self) -> PackedTargets:
        """Return a copy in page-locked memory."""
        return PackedTargets(self.buffer.pin_memory(), self.layout, self.count)


class EpochSampler(Sampler[list[tuple[int, int]]]):
    """Random order of the batches of an epoch; each batch is a list of (epoch, index).

    All processes draw the same batches, regardless of their number, and each takes its share of every batch.
    The remainder of an epoch that does not fill a batch is dropped; it differs from epoch to epoch.

    Args:
        length: Number of images.
        batch_size: Images per batch, over all processes.
        seed: Seed of the order, at least 0.
        rank: Rank of this process.
        world_size: Number of processes; must divide ``batch_size``.
        portrait: (length,) bool. Images with different values do not share a batch, which reduces padding
            (mmdet's ``AspectRatioBatchSampler``). The last batch of an epoch may be mixed.

    Raises:
        ConfigError: The images do not fill a batch, or it cannot be divided among the processes.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        portrait: np.ndarray | None = None,
    ) -> None:
        if not 1 <= batch_size <= length:
            raise ConfigError(f"A batch of {batch_size} from {length} images: expected 1..{length}.")
        if batch_size % world_size or not 0 <= rank < world_size:
            raise ConfigError(
                f"A batch of {batch_size} for process {rank} of {world_size}: expected a multiple of the "
                "number of processes, and a rank from 0."
            )
        if seed < 0:
            raise ConfigError(f"seed={seed}: expected an integer of at least 0.")
        if portrait is not None and len(portrait) != length:
            raise ConfigError(
                f"portrait has {len(portrait)} values: expected one for each of {length} images."
            )
        self.length, self.batch_size, self.seed = length, batch_size, seed
        self.rank, self.world_size, self.portrait = rank, world_size, portrait
        self.set_epoch(0)

    def set_epoch(self, epoch: int, start_iteration: int = 0) -> None:
        """Select an epoch, from 0, and the first of its batches to yield."""
        self.epoch, self.start_iteration = epoch, start_iteration

    def __len__(self) -> int:
        """Return the number of batches of a whole epoch, regardless of ``start_iteration``."""
        return self.length // self.batch_size

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        """Yield the share of this process of each remaining batch."""
        order = self._order()
        share = self.batch_size // self.world_size
        for iteration in range(self.start_iteration, len(self)):
            first = iteration * self.batch_size + self.rank * share
            yield [(self.epoch, int(index)) for index in order[first : first + share]]

    def _order(self) -> np.ndarray:
        """Return the indices of the images of the epoch, batch after batch."""
        generator = make_generator(self.seed, self.epoch)
        order = torch.randperm(self.length, dtype=torch.int64, generator=generator, device="cpu").numpy()
        if self.portrait is None:
            return order
        portrait = np.asarray(self.portrait, dtype=bool)[order]
        full_batches, remainders = [], []
        for group in (order[portrait], order[~portrait]):
            count = len(group) // self.batch_size
            full_batches.append(group[: count * self.batch_size].reshape(count, self.batch_size))
            remainders.append(group[count * self.batch_size :])
        batches = np.concatenate(full_batches)
        shuffled = torch.randperm(len(batches), dtype=torch.int64, generator=generator, device="cpu").numpy()
        return np.concatenate([batches[shuffled].ravel(), *remainders])


class DatasetBatches:
    """Batches of a data set, loaded by worker processes, for ``solo_infer.training.fit``.

    They depend only on the data set, its seed and the arguments, not on the number of workers.

    Args:
        dataset: Images and instances.
        batch_size: Images per batch, over all processes of ``torch.distributed``.
        preprocessing: Settings of the model; see ``collate``.
        seed: Seed of the order, at least 0.
        workers: Number of worker processes; 0 loads the images in this process.
        size: Height and width of all batches in pixels. Defaults to the size that each batch needs.
        by_orientation: Whether to keep portrait and landscape images in separate batches.

    Raises:
        ConfigError: The images do not fill a batch.
    """

    def __init__(
        self,
        dataset: InstanceDataset,
        batch_size: int,
        preprocessing: PreprocessConfig,
        *,
        seed: int = 0,
        workers: int = 2,
        size: tuple[int, int] | None = None,
        by_orientation: bool = False,
    ) -> None:
        self.dataset, self.batch_size, self.seed, self.workers = dataset, batch_size, seed, workers
        self._load = functools.partial(_load_batch, dataset=dataset, preprocessing=preprocessing, size=size)
        shapes = dataset.shapes
        self._portrait = shapes[:, 0] > shapes[:, 1] if by_orientation else None
        self._length = len(self._sampler(0, 1))

    def __len__(self) -> int:
        """Return the number of batches of an epoch."""
        return self._length

    def epoch(self, epoch: int, start: int) -> Iterator[Batch]:
        """Yield the share of this process of the batches of an epoch (from 0), without the first ``start``.

        Raises:
            ConfigError: The batches cannot be divided among the processes.
            DataError: An image cannot be read.
            TrainingError: A worker process died, could not be started, or delivered nothing for ten minutes.
        """
        sampler = self._sampler(*rank_and_world_size())
        sampler.set_epoch(epoch, start)
        # A generator of its own: torch would otherwise advance the global one.
        for batch in load_batches(self._load, sampler, self.workers, make_generator(self.seed)):
            yield batch.images, batch.targets.unpack()

    def fingerprint(self) -> dict[str, Any]:
        """Return JSON-ready values that change with the images and annotations of the data set."""
        return fingerprint(self.dataset.index)

    def _sampler(self, rank: int, world_size: int) -> EpochSampler:
        return EpochSampler(len(self.dataset), self.batch_size, self.seed, rank, world_size, self._portrait)


@dataclass(frozen=True)
class PackedBatch:
    """A batch whose tensors are few, to be sent from a worker process.

    Attributes:
        images: (N, 3, H, W) float32.
        targets: Targets of the images.
    """

    images: Tensor
    targets: PackedTargets

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.images.nbytes + self.targets.buffer.nbytes

    def pin_memory(self) -> PackedBatch:
        """Return a copy in page-locked memory."""
        return PackedBatch(self.images.pin_memory(), self.targets.pin_memory())


def _load_batch(
    keys: Sequence[tuple[int, int]],
    dataset: InstanceDataset,
    preprocessing: PreprocessConfig,
    size: tuple[int, int] | None,
) -> PackedBatch:
    """Return the batch of the keys (epoch, index) of a data set."""
    try:
        images, targets = collate([dataset[key] for key in keys], preprocessing, size)
        return PackedBatch(images, PackedTargets.pack(targets))
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise TrainingError(
            f"A batch of {len(keys)} images does not fit into memory ({first_line(error)}): use a smaller "
            "batch, crop or scale."
        ) from error
