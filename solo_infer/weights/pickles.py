"""Read PyTorch checkpoints without ever running code from them.

``torch.load`` is not used: what its safe mode refuses or lets through differs between the supported
versions. Both of PyTorch's formats (zip archives, and the older stream of pickles) are read by an
unpickler that knows how to make plain containers and tensors and nothing else. Every other global that
a pickle names (mmengine's log buffers, but as well ``os.system``) becomes an inert object, which takes any
call and does nothing. The data of tensors is checked against the size of the file before it is allocated.
"""

from __future__ import annotations

import collections
import io
import math
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, cast

import torch
from torch import Tensor

from solo_infer.errors import CheckpointError

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001

_STORAGE_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}

# What a damaged or hostile pickle makes the unpickler raise.
_PICKLE_ERRORS = (
    pickle.UnpicklingError,
    EOFError,
    AttributeError,
    ImportError,
    IndexError,
    KeyError,
    TypeError,
    ValueError,
    OverflowError,
    RecursionError,
    MemoryError,
    struct.error,
)


class Inert:
    """Stands for an object of an unknown class: accepts whatever a pickle does to it, keeps nothing."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Inert:
        """Take any arguments."""
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __call__(self, *args: Any, **kwargs: Any) -> Inert:
        """Take any call."""
        return self

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, item: Any) -> None:
        """Ignore an item."""

    def extend(self, items: Any) -> None:
        """Ignore items."""

    def add(self, item: Any) -> None:
        """Ignore an item."""


class _Storage:
    """A flat run of numbers, whose bytes are read when the pickle is done."""

    def __init__(self, dtype: torch.dtype, count: int) -> None:
        self.data = torch.empty(count, dtype=dtype)

    @property
    def nbytes(self) -> int:
        return self.data.numel() * self.data.element_size()

    def fill(self, stream: IO[bytes]) -> None:
        if self.nbytes == 0:
            return
        view = memoryview(self.data.view(torch.uint8).numpy())  # type: ignore[arg-type]
        done = 0
        while done < len(view):
            count = cast(io.RawIOBase, stream).readinto(view[done:])
            if not count:
                raise CheckpointError(f"the data of a tensor ends after {done} of {len(view)} bytes")
            done += count


class _Unpickler(pickle.Unpickler):
    """Makes containers, tensors and inert objects; ``load_storage`` gets each persistent id."""

    def __init__(self, stream: IO[bytes], load_storage: Callable[[tuple[Any, ...]], _Storage]) -> None:
        super().__init__(stream, encoding="utf-8")
        self._load_storage = load_storage

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if module == "torch._utils" and name in ("_rebuild_tensor", "_rebuild_tensor_v2"):
            return _rebuild_tensor
        if module == "torch._utils" and name == "_rebuild_parameter":
            return _rebuild_parameter
        if module in ("torch", "torch.storage") and name in _STORAGE_DTYPES:
            return _STORAGE_DTYPES[name]
        if (module, name) == ("torch", "Size"):
            return tuple
        # A class of its own each time: a pickle may set attributes on it.
        return type(name.rpartition(".")[2] or "Unknown", (Inert,), {"__module__": "inert"})

    def persistent_load(self, pid: Any) -> _Storage:
        if not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage":
            raise pickle.UnpicklingError(f"unknown persistent id {pid!r:.80}")
        return self._load_storage(pid)


def _rebuild_tensor(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> Tensor:
    """Make a tensor over a storage, inside its bounds."""
    if not isinstance(storage, _Storage):
        raise pickle.UnpicklingError("a tensor without a storage")
    size, stride = tuple(size), tuple(stride)
    numbers = (offset, *size, *stride)
    if len(size) != len(stride) or not all(type(n) is int and n >= 0 for n in numbers):
        raise pickle.UnpicklingError(f"a tensor of size {size}, stride {stride}, offset {offset}")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if math.prod(size) and last >= storage.data.numel():
        raise pickle.UnpicklingError(f"a tensor of size {size} that reaches beyond its data")
    return torch.as_strided(storage.data, size, stride, offset)


def _rebuild_parameter(data: Any, *rest: Any) -> Any:
    return data


def read_pickled(path: Path) -> Any:
    """Return the contents of a ``.pth`` or ``.pt`` file: containers, numbers, text, tensors on the CPU.

    Raises:
        CheckpointError: The file is empty, truncated, damaged or no PyTorch checkpoint.
    """
    try:
        with path.open("rb") as stream:
            start = stream.read(4)
            stream.seek(0)
            if start == b"PK\x03\x04":
                return _read_zip(stream)
            return _read_legacy(stream)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}.") from error
    except CheckpointError as error:
        raise CheckpointError(f"{path} is damaged or cut off: {error}. Fetch the file again.") from error
    except (zipfile.BadZipFile, NotImplementedError, *_PICKLE_ERRORS) as error:
        cause = f"{type(error).__name__}: {error}"
        raise CheckpointError(
            f"{path} is no PyTorch checkpoint or damaged ({cause:.200}). Expected a .pth file of mmdet or of "
            "SOLO's authors, or .safetensors. If it was downloaded, fetch it again."
        ) from error


def _dtype_and_count(pid: tuple[Any, ...], available: int) -> tuple[torch.dtype, int]:
    """Check a persistent id's type and length against the bytes there are."""
    dtype, count = pid[1], pid[4]
    if not isinstance(dtype, torch.dtype):
        raise pickle.UnpicklingError("a storage of an unsupported type")
    if type(count) is not int or not 0 <= count * dtype.itemsize <= available:
        raise CheckpointError(f"a tensor of {count} numbers, but only {available} bytes are there")
    return dtype, count


def _read_zip(stream: IO[bytes]) -> Any:
    """Read a zip archive: ``<name>/data.pkl`` and one stored file ``<name>/data/<key>`` a storage."""
    with zipfile.ZipFile(stream) as archive:
        members = {member.filename: member for member in archive.infolist()}
        pickles = [name for name in members if name.endswith("/data.pkl") and name.count("/") == 1]
        if len(pickles) != 1:
            raise pickle.UnpicklingError("a zip archive without one data.pkl")
        folder = pickles[0].removesuffix("data.pkl")
        if f"{folder}constants.pkl" in members:
            raise pickle.UnpicklingError("a TorchScript program, not a checkpoint")
        byte_order = members.get(f"{folder}byteorder")
        if byte_order is not None and archive.read(byte_order) != b"little":
            raise pickle.UnpicklingError("a big-endian checkpoint")
        storages: dict[str, _Storage] = {}

        def load_storage(pid: tuple[Any, ...]) -> _Storage:
            key = str(pid[2])
            if key not in storages:
                member = members[f"{folder}data/{key}"]
                if member.compress_type != zipfile.ZIP_STORED:
                    raise pickle.UnpicklingError("a compressed storage")
                storages[key] = _Storage(*_dtype_and_count(pid, member.file_size))
                with archive.open(member) as data:
                    storages[key].fill(data)
            return storages[key]

        return _Unpickler(io.BytesIO(archive.read(pickles[0])), load_storage).load()


def _read_legacy(stream: IO[bytes]) -> Any:
    """Read the older format: five pickles (magic, protocol, system, contents, keys), then raw data."""
    size = stream.seek(0, io.SEEK_END)
    stream.seek(0)
    storages: dict[str, _Storage] = {}

    def no_storage(pid: tuple[Any, ...]) -> _Storage:
        raise pickle.UnpicklingError("a storage outside of the contents")

    def load_storage(pid: tuple[Any, ...]) -> _Storage:
        key = str(pid[2])
        if key not in storages:
            storages[key] = _Storage(*_dtype_and_count(pid, size))
        if len(pid) > 5 and pid[5] is not None:
            return _storage_view(storages[key], pid[5])
        return storages[key]

    if size == 0:
        raise EOFError("the file is empty")
    magic = _Unpickler(stream, no_storage).load()
    protocol = _Unpickler(stream, no_storage).load()
    if magic != LEGACY_MAGIC or protocol != LEGACY_PROTOCOL:
        raise pickle.UnpicklingError("it does not start as PyTorch's files do")
    _Unpickler(stream, no_storage).load()  # byte order and type sizes of the writer
    contents = _Unpickler(stream, load_storage).load()
    keys = _Unpickler(stream, no_storage).load()
    for key in keys:
        storage = storages[str(key)]
        (count,) = struct.unpack("<q", stream.read(8))
        if count != storage.data.numel():
            raise CheckpointError(f"storage {key} has {count} numbers instead of {storage.data.numel()}")
        storage.fill(stream)
    if unread := set(storages) - {str(key) for key in keys}:
        raise CheckpointError(f"{len(unread)} storages have no data")
    return contents


def _storage_view(storage: _Storage, view: tuple[Any, ...]) -> _Storage:
    """Return the part of a storage that a view (key, offset, length) names."""
    _, offset, count = view
    if not (type(offset) is type(count) is int and 0 <= offset <= offset + count <= storage.data.numel()):
        raise pickle.UnpicklingError(f"a view of {count} numbers at {offset} beyond its storage")
    part = _Storage(storage.data.dtype, 0)
    part.data = storage.data[offset : offset + count]
    return part
