"""Read PyTorch checkpoints without ever running code from them.

``torch.load`` is not used: what its safe mode refuses or lets through differs between the supported
versions. Both of PyTorch's formats (zip archives, and the older stream of pickles) are read by a pickle
machine that makes plain containers and tensors and nothing else. Every other global that a pickle names
(mmengine's log buffers, but as well ``os.system``) becomes an inert object. All data of tensors together is
checked against the size of the file before it is allocated.
"""

from __future__ import annotations

import io
import math
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, cast

import torch
from torch import Tensor

from solo_infer.errors import CheckpointError
from solo_infer.weights.pickles import unpickler
from solo_infer.weights.pickles.unpickler import AllowedCallable, OpaqueObject

__all__ = ["OpaqueObject", "read_pickled"]

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
_MAX_DIMENSIONS = 32
_MAX_BYTES = 2**63 - 1  # what PyTorch can count

# What a damaged or hostile file makes pickletools, zipfile, PyTorch and the code below raise.
_DAMAGE = (
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    LookupError,
    AttributeError,
    TypeError,
    ValueError,
    ArithmeticError,
    RuntimeError,
    MemoryError,
    Warning,  # pickletools decodes escapes, whose warnings a program may have made errors
)

_Stream = IO[bytes]


def read_pickled(path: Path) -> Any:
    """Return the contents of a ``.pth`` or ``.pt`` file: containers, numbers, text, tensors on the CPU.

    Dicts of any kind come as ``dict``, objects of unknown classes as ``OpaqueObject``. Tensors may share memory.

    Raises:
        CheckpointError: The file is missing, empty, truncated, damaged or no PyTorch checkpoint.
    """
    try:
        if not path.is_file():
            raise CheckpointError(f"{path} is no file. Expected a checkpoint, such as a .pth of mmdet.")
        with path.open("rb") as stream:
            size = stream.seek(0, io.SEEK_END)
            stream.seek(0)
            if size == 0:
                raise EOFError("the file is empty")
            is_zip = stream.read(4) == b"PK\x03\x04"
            stream.seek(0)
            return _read_zip(stream, size) if is_zip else _read_legacy(stream, size)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}.") from error
    except _DAMAGE as error:
        cause = " ".join(f"{type(error).__name__}: {error}".split())
        raise CheckpointError(
            f"{path} is no PyTorch checkpoint, or it is damaged or cut off ({cause:.200}). Expected a .pth "
            "file of mmdet or of SOLO's authors, or .safetensors. If it was downloaded, fetch it again."
        ) from error


class _Storage:
    """A flat run of numbers, which tensors may view before its bytes are read."""

    def __init__(self, data: Tensor) -> None:
        self.data = data

    @property
    def nbytes(self) -> int:
        return self.data.numel() * self.data.element_size()

    def fill(self, stream: _Stream) -> None:
        if self.nbytes == 0:
            return
        view = memoryview(self.data.view(torch.uint8).numpy())  # type: ignore[arg-type]
        done = 0
        while done < len(view):
            count = cast(io.RawIOBase, stream).readinto(view[done:])
            if not count:
                raise EOFError(f"the data of a tensor ends after {done} of {len(view)} bytes")
            done += count


class _Storages:
    """The storages of a file by key: together they cannot be larger than the file."""

    def __init__(self, size: int, on_new: Callable[[str, _Storage], None]) -> None:
        self.left = size
        self.on_new = on_new
        self.by_key: dict[str, _Storage] = {}

    def load(self, pid: Any) -> _Storage:
        """Return what a persistent id ("storage", dtype, key, device, count[, view]) stands for."""
        if not (type(pid) is tuple and len(pid) in (5, 6) and type(pid[0]) is str and pid[0] == "storage"):
            raise pickle.UnpicklingError("a persistent id that is of no storage")
        _, dtype, key, _, count = pid[:5]
        if not isinstance(dtype, torch.dtype):
            raise pickle.UnpicklingError("a storage of an unsupported type")
        key = _storage_key(key)
        if not _is_count(count):
            raise pickle.UnpicklingError(f"storage {key} without a sensible length")
        if key not in self.by_key:
            self._make(key, dtype, count)
        storage = self.by_key[key]
        if storage.data.dtype != dtype or storage.data.numel() != count:
            raise pickle.UnpicklingError(f"storage {key} is described in two ways")
        return storage if len(pid) == 5 or pid[5] is None else _part(storage, pid[5])

    def _make(self, key: str, dtype: torch.dtype, count: int) -> None:
        nbytes = count * dtype.itemsize
        if nbytes > self.left:
            raise EOFError(f"storage {key} of {nbytes} bytes, of which the file has at most {self.left}")
        self.left -= nbytes
        storage = _Storage(torch.empty(count, dtype=dtype))
        self.on_new(key, storage)
        self.by_key[key] = storage


def _storage_key(key: Any) -> str:
    if not (type(key) is str and len(key) < 100 or type(key) is int and key.bit_length() <= 64):
        raise pickle.UnpicklingError("a storage without a sensible key")
    return str(key)


def _is_count(number: Any) -> bool:
    return type(number) is int and 0 <= number <= _MAX_BYTES


def _part(storage: _Storage, view: Any) -> _Storage:
    """Return the part of a storage that a view (key, offset, count) names."""
    if not (type(view) is tuple and len(view) == 3 and _is_count(view[1]) and _is_count(view[2])):
        raise pickle.UnpicklingError("a view of a storage of an unknown kind")
    _, offset, count = view
    if offset + count > storage.data.numel():
        raise pickle.UnpicklingError(f"a view of {count} numbers at {offset} beyond its storage")
    return _Storage(storage.data[offset : offset + count])


def _rebuild_tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Tensor:
    """Make a tensor over a storage, inside its bounds."""
    if not isinstance(storage, _Storage):
        raise pickle.UnpicklingError("a tensor without a storage")
    if not (type(size) is type(stride) is tuple and len(size) == len(stride) <= _MAX_DIMENSIONS):
        raise pickle.UnpicklingError("a tensor without a sensible shape")
    if not all(_is_count(number) for number in (offset, *size, *stride)):
        raise pickle.UnpicklingError("a tensor with a negative or huge size, stride or offset")
    count = math.prod(size)
    if count * storage.data.element_size() > _MAX_BYTES:
        raise pickle.UnpicklingError(f"a tensor of size {size}")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if (count and last >= storage.data.numel()) or offset > storage.data.numel():
        raise pickle.UnpicklingError(f"a tensor of size {size} that reaches beyond its data")
    return torch.as_strided(storage.data, size, stride, storage.data.storage_offset() + offset)


def _rebuild_parameter(data: Any, *_: Any) -> Tensor:
    if not isinstance(data, Tensor):
        raise pickle.UnpicklingError("a parameter without a tensor")
    return data


def _rebuild_from_type(rebuild: Any, _kind: Any, arguments: Any, _state: Any) -> Tensor:
    """Make a tensor that had attributes, without these."""
    if rebuild is not _TENSOR or type(arguments) is not tuple:
        raise pickle.UnpicklingError("a tensor of an unknown kind")
    return _rebuild_tensor(*arguments)


def _ordered_dict(items: Any = None) -> dict[Any, Any]:
    """Make a dict, empty or, as Python 2 wrote it, of a list of pairs."""
    if items is None:
        return {}
    # A list and nothing else: to iterate over a tensor may take all memory there is.
    if type(items) is not list or not all(map(_is_named_value, items)):
        raise pickle.UnpicklingError("an ordered dict of other things than named values")
    made = {pair[0]: pair[1] for pair in items}
    items.clear()  # so that no pickle has us copy the same long list a million times
    return made


def _is_named_value(pair: Any) -> bool:
    return type(pair) in (list, tuple) and len(pair) == 2 and type(pair[0]) is str


def _same(kind: type) -> AllowedCallable:
    """Return a constructor that takes one value of a type for what it is."""

    def check(value: Any) -> Any:
        if type(value) is not kind:
            raise pickle.UnpicklingError(f"a {type(value).__name__} where a {kind.__name__} belongs")
        return value

    return AllowedCallable(check)


_TENSOR = AllowedCallable(_rebuild_tensor)

_KNOWN: dict[str, object] = {
    "collections OrderedDict": AllowedCallable(_ordered_dict),
    "mmengine.config.config ConfigDict": _same(dict),
    "torch Size": _same(tuple),
    "torch._utils _rebuild_tensor": _TENSOR,
    "torch._utils _rebuild_tensor_v2": _TENSOR,
    "torch._utils _rebuild_parameter": AllowedCallable(_rebuild_parameter),
    "torch._utils _rebuild_parameter_with_state": AllowedCallable(_rebuild_parameter),
    "torch._tensor _rebuild_from_type_v2": AllowedCallable(_rebuild_from_type),
    **{f"torch {name}": dtype for name, dtype in _STORAGE_DTYPES.items()},
    **{f"torch.storage {name}": dtype for name, dtype in _STORAGE_DTYPES.items()},
}


def _read_zip(stream: _Stream, size: int) -> Any:
    """Read a zip archive: ``<name>/data.pkl`` and one stored file ``<name>/data/<key>`` a storage."""
    with zipfile.ZipFile(stream) as archive:
        members = {member.filename: member for member in archive.infolist()}
        if len(members) != len(archive.infolist()):
            raise pickle.UnpicklingError("a zip archive in which two members have one name")
        pickles = [name for name in members if name.endswith("/data.pkl") and name.count("/") == 1]
        if len(pickles) != 1:
            raise pickle.UnpicklingError("a zip archive without one data.pkl")
        folder = pickles[0].removesuffix("data.pkl")
        if f"{folder}constants.pkl" in members:
            raise pickle.UnpicklingError("a TorchScript program, not a checkpoint")

        def read(name: str) -> bytes:
            return archive.read(_stored(members, name, size))

        def fill(key: str, storage: _Storage) -> None:
            member = _stored(members, f"{folder}data/{key}", size)
            if member.file_size != storage.nbytes:
                raise EOFError(f"{member.file_size} bytes for storage {key} instead of {storage.nbytes}")
            with archive.open(member) as data:
                storage.fill(data)

        if f"{folder}byteorder" in members and read(f"{folder}byteorder") != b"little":
            raise pickle.UnpicklingError("a big-endian checkpoint")
        contents = io.BytesIO(read(pickles[0]))
        return unpickler.load(contents, size, _KNOWN, _Storages(size, fill).load)


def _stored(members: dict[str, zipfile.ZipInfo], name: str, size: int) -> zipfile.ZipInfo:
    """Return a member of an archive that is there, uncompressed and no larger than the archive."""
    if name not in members:
        raise pickle.UnpicklingError(f"a zip archive without {name:.100}")
    member = members[name]
    if member.compress_type != zipfile.ZIP_STORED or member.file_size > size:
        raise pickle.UnpicklingError(f"a zip archive in which {name:.100} is compressed")
    return member


def _read_legacy(stream: _Stream, size: int) -> Any:
    """Read the older format: five pickles (magic, protocol, system, contents, keys), then raw data."""

    def no_storage(pid: Any) -> None:
        raise pickle.UnpicklingError("a storage outside of the contents")

    def load_plain() -> Any:
        return unpickler.load(stream, size, {}, no_storage)

    if load_plain() != LEGACY_MAGIC or load_plain() != LEGACY_PROTOCOL:
        raise pickle.UnpicklingError("it does not start as PyTorch's files do")
    system = load_plain()
    if not isinstance(system, dict) or system.get("little_endian") is False:
        raise pickle.UnpicklingError("a big-endian checkpoint")
    storages = _Storages(size, lambda key, storage: None)
    contents = unpickler.load(stream, size, _KNOWN, storages.load)
    keys = load_plain()
    _fill_all(storages.by_key, keys, stream)
    return contents


def _fill_all(storages: dict[str, _Storage], keys: Any, stream: _Stream) -> None:
    """Read the raw data, which follows in the order of the keys: a count, then the numbers."""
    if type(keys) is not list:
        raise pickle.UnpicklingError("no list of storages after the contents")
    empty = dict(storages)
    for key in map(_storage_key, keys):
        if key not in empty:
            raise pickle.UnpicklingError(f"the data of storage {key}, which is unknown or was read before")
        storage = empty.pop(key)
        (count,) = struct.unpack("<q", stream.read(8))
        if count != storage.data.numel():
            raise EOFError(f"storage {key} has {count} numbers instead of {storage.data.numel()}")
        storage.fill(stream)
    if empty:
        raise EOFError(f"{len(empty)} storages have no data")
