"""Loading of batches by worker processes, which ends with an error rather than a hang.

``torch.utils.data.DataLoader`` loses a batch that a worker cannot send, for example because the shared memory
of a container is full, and then waits for it forever. Here a worker packs each batch itself: into shared
memory if there is enough of it, else into the message. Errors are sent in place of the batch.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.reduction import ForkingPickler
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Generator
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from solo_infer.errors import SoloInferError, TrainingError
from solo_infer.runtime.messages import describe_error

logger = logging.getLogger(__name__)

SHARED_MEMORY = "/dev/shm"  # file system of shared memory on Linux
_POLL_SECONDS = 5.0  # between two looks at the workers
_MAX_POLLS = 120  # without a batch
_TIMED_OUT, _WORKER = "DataLoader timed out", "DataLoader worker"  # beginnings of torch's messages
_REMEDY = (
    "Give the processes more memory (in Docker: --shm-size=2g and a higher --memory), or load with fewer "
    "processes: --workers 0 loads the images in the training process."
)


class Loaded(Protocol):
    """A loaded batch."""

    @property
    def nbytes(self) -> int:
        """Size of its tensors in bytes."""

    def pin_memory(self) -> Any:
        """Return a copy in page-locked memory."""


LoadedT = TypeVar("LoadedT", bound=Loaded)
Key = TypeVar("Key")


def load_batches(
    load: Callable[[list[Key]], LoadedT], sampler: Sampler[list[Key]], workers: int, generator: Generator
) -> Iterator[LoadedT]:
    """Yield the batches of a sampler in order, in page-locked memory if CUDA is available.

    Args:
        load: Function that loads a batch, given its keys.
        sampler: Keys of each batch.
        workers: Number of worker processes; 0 loads in this process.
        generator: Source of the seeds of the workers, which keeps the global random state as it is.

    Raises:
        TrainingError: A worker died, could not be started, or delivered nothing for ten minutes.
    """
    pins = torch.cuda.is_available()
    if workers == 0:
        for keys in sampler:
            batch = load(keys)
            yield batch.pin_memory() if pins else batch
        return
    loader = DataLoader(
        _Keys(),
        batch_sampler=sampler,
        num_workers=workers,
        collate_fn=_Sender(load),
        pin_memory=pins,
        generator=generator,
        timeout=_POLL_SECONDS,
    )
    is_warned = False
    for parcel in _receive(loader):
        if not is_warned and not parcel.is_shared:
            is_warned = True
            logger.warning(
                "%s has too little free memory for the batches: workers send them through pipes, which is "
                "slower. In Docker, --shm-size=2g gives more.",
                SHARED_MEMORY,
            )
        yield parcel.open()


@contextlib.contextmanager
def worker_errors() -> Iterator[None]:
    """Raise ``TrainingError`` where torch reports a dead worker process, which it does at any time."""
    try:
        yield
    except RuntimeError as error:
        if not str(error).startswith(_WORKER):
            raise
        raise TrainingError(
            f"A process that loads images ended before its batch was complete ({error}). {_REMEDY}"
        ) from error


class _Keys(Dataset[Any]):
    """Data set of any keys, each of which is its own item."""

    def __getitem__(self, key: Any) -> Any:
        return key


@dataclass(frozen=True)
class _Sender(Generic[Key, LoadedT]):
    """Function that a worker calls for each batch."""

    load: Callable[[list[Key]], LoadedT]

    def __call__(self, keys: list[Key]) -> _Parcel:
        """Return the batch of some keys, or the error of loading it, ready to be sent."""
        try:
            batch = self.load(keys)
        except Exception as error:
            return _Parcel(_pack_error(error))
        workers = getattr(get_worker_info(), "num_workers", 1)
        if _free_shared_memory() > (workers + 1) * batch.nbytes:  # all workers may send at the same time
            with contextlib.suppress(RuntimeError, OSError):  # full after all, or too many open files
                return _Parcel(bytes(ForkingPickler.dumps(batch)))
        return _Parcel(pickle.dumps(batch), is_shared=False)


@dataclass(frozen=True)
class _Parcel:
    """A packed batch or error on its way from a worker.

    Attributes:
        content: Pickled ``Loaded`` or ``_WorkerError``.
        is_shared: Whether its tensors are in shared memory rather than in ``content``.
    """

    content: bytes
    is_shared: bool = True

    def open(self) -> Any:
        """Return the batch, or raise the error."""
        try:
            item = pickle.loads(self.content)
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
            raise TrainingError(
                f"A batch cannot be taken over from the process that loaded it ({describe_error(error)}). "
                f"{_REMEDY}"
            ) from error
        if isinstance(item, _WorkerError):
            raise item.error from item.cause
        return item

    def pin_memory(self) -> _Pinned:
        """Return the opened parcel in page-locked memory; called by a thread of ``DataLoader``."""
        try:
            return _Pinned(self.open().pin_memory(), None, self.is_shared)
        except Exception as error:
            return _Pinned(None, error, self.is_shared)


@dataclass(frozen=True)
class _Pinned:
    """An opened parcel: a batch in page-locked memory, or an error."""

    batch: Any
    error: Exception | None
    is_shared: bool

    def open(self) -> Any:
        """Return the batch, or raise the error."""
        if self.error is not None:
            raise self.error
        return self.batch


@dataclass(frozen=True)
class _WorkerError:
    """An error of a worker, and the reason to show with it."""

    error: Exception
    cause: Exception | None


class WorkerTraceback(Exception):
    """Traceback of an unexpected error in a worker process, shown as the cause of the error."""


def _pack_error(error: Exception) -> bytes:
    cause = None if isinstance(error, SoloInferError) else WorkerTraceback(traceback.format_exc())
    try:
        content = pickle.dumps(_WorkerError(error, cause))
        pickle.loads(content)
        return content
    except Exception:  # an error of a class that cannot be pickled
        return pickle.dumps(_WorkerError(TrainingError(describe_error(error)), cause))


def _free_shared_memory() -> float:
    """Return the free shared memory in bytes; infinite on systems that do not limit it."""
    try:
        status = os.statvfs(SHARED_MEMORY)
    except (OSError, AttributeError):
        return float("inf")
    return float(status.f_bavail * status.f_frsize)


def _receive(loader: Iterable[Any]) -> Iterator[Any]:
    """Yield the items of a ``DataLoader`` with a timeout, waiting for each through several timeouts."""
    try:
        items = iter(loader)
    except (OSError, AssertionError) as error:  # limits of the system; daemonic processes have no children
        raise TrainingError(f"The worker processes cannot be started ({error}). {_REMEDY}") from error
    polls = 0
    while True:
        try:
            with worker_errors():
                item = next(items)
        except StopIteration:
            return
        except RuntimeError as error:
            polls += 1
            if not str(error).startswith(_TIMED_OUT):
                raise
            if polls == _MAX_POLLS:
                raise TrainingError(
                    f"The worker processes delivered no batch within {_MAX_POLLS * _POLL_SECONDS:.0f} "
                    f"seconds. {_REMEDY}"
                ) from error
        else:
            polls = 0
            yield item
