"""Reader of PyTorch checkpoints that runs no code from them.

Both of PyTorch's formats are supported: zip archives, and the older stream of pickles. The pickles are
interpreted by ``unpickler``, which creates only plain containers and tensors. Every other global that a
pickle names (mmengine's log buffers, but also ``os.system``) becomes an ``OpaqueObject``. The size of all
tensor data is checked against the size of the file before memory is allocated.
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
from solo_infer.runtime.messages import shortened
from solo_infer.weights.pickles import unpickler
from solo_infer.weights.pickles.unpickler import AllowedCallable

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
_MAX_BYTES = 2**63 - 1  # PyTorch counts in int64

# Raised by pickletools, zipfile, PyTorch and this module for a damaged or hostile file.
_DAMAGE_ERRORS = (
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
    Warning,  # of pickletools about escapes, in a program that turns warnings into errors
)

_Stream = IO[bytes]


def read_pickled(path: Path) -> Any:
    """Return the contents of a ``.pth`` or ``.pt`` file: containers, numbers, text, tensors on the CPU.

    All dicts become ``dict``, and objects of unknown classes ``OpaqueObject``. Tensors may share memory.

    Raises:
        CheckpointError: The file is missing, empty, truncated, damaged or not a PyTorch checkpoint.
    """
    try:
        if not path.is_file():
            raise CheckpointError(f"{path} is not a file. Expected a checkpoint, such as a .pth of mmdet.")
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
    except _DAMAGE_ERRORS as error:
        cause = shortened(f"{type(error).__name__}: {error}")
        raise CheckpointError(
            f"{path} is not a PyTorch checkpoint, or it is damaged or truncated ({cause}). Expected a "
            ".pth file of mmdet or an original implementation, or .safetensors. Download it again if needed."
        ) from error


class _Storage:
    """A flat array of numbers. Tensors may view it before its bytes are read."""

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
    """Storages of a file by key. Together, they cannot be larger than the file."""

    def __init__(self, size: int, on_new: Callable[[str, _Storage], None]) -> None:
        self.remaining = size
        self.on_new = on_new
        self.by_key: dict[str, _Storage] = {}

    def load(self, pid: Any) -> _Storage:
        """Return the storage of a persistent id ("storage", dtype, key, device, count[, view])."""
        if not (type(pid) is tuple and len(pid) in (5, 6) and type(pid[0]) is str and pid[0] == "storage"):
            raise pickle.UnpicklingError("a persistent id that does not name a storage")
        _, dtype, key, _, count = pid[:5]
        if not isinstance(dtype, torch.dtype):
            raise pickle.UnpicklingError("a storage of an unsupported type")
        key = _storage_key(key)
        if not _is_count(count):
            raise pickle.UnpicklingError(f"storage {key} without a valid length")
        if key not in self.by_key:
            self._allocate(key, dtype, count)
        storage = self.by_key[key]
        if storage.data.dtype != dtype or storage.data.numel() != count:
            raise pickle.UnpicklingError(f"storage {key} has two descriptions")
        return storage if len(pid) == 5 or pid[5] is None else _storage_view(storage, pid[5])

    def _allocate(self, key: str, dtype: torch.dtype, count: int) -> None:
        nbytes = count * dtype.itemsize
        if nbytes > self.remaining:
            raise EOFError(f"storage {key} of {nbytes} bytes, of which the file has at most {self.remaining}")
        self.remaining -= nbytes
        storage = _Storage(torch.empty(count, dtype=dtype, device="cpu"))
        self.on_new(key, storage)
        self.by_key[key] = storage


def _storage_key(key: Any) -> str:
    if not (type(key) is str and len(key) < 100 or type(key) is int and key.bit_length() <= 64):
        raise pickle.UnpicklingError("a storage without a valid key")
    return str(key)


def _is_count(number: Any) -> bool:
    return type(number) is int and 0 <= number <= _MAX_BYTES


def _storage_view(storage: _Storage, view: Any) -> _Storage:
    """Return the part of a storage that a view (key, offset, count) selects."""
    if not (type(view) is tuple and len(view) == 3 and _is_count(view[1]) and _is_count(view[2])):
        raise pickle.UnpicklingError("an invalid view of a storage")
    _, offset, count = view
    if offset + count > storage.data.numel():
        raise pickle.UnpicklingError(f"a view of {count} numbers at {offset} beyond its storage")
    return _Storage(storage.data[offset : offset + count])


def _rebuild_tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Tensor:
    """Return a tensor that views a storage, within its bounds."""
    if not isinstance(storage, _Storage):
        raise pickle.UnpicklingError("a tensor without a storage")
    if not (type(size) is type(stride) is tuple and len(size) == len(stride) <= _MAX_DIMENSIONS):
        raise pickle.UnpicklingError("a tensor without a valid shape")
    if not all(_is_count(number) for number in (offset, *size, *stride)):
        raise pickle.UnpicklingError("a tensor with a negative or huge size, stride or offset")
    count = math.prod(size)
    if count * storage.data.element_size() > _MAX_BYTES:
        raise pickle.UnpicklingError(f"a tensor of size {size}")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if (count and last >= storage.data.numel()) or offset > storage.data.numel():
        raise pickle.UnpicklingError(f"a tensor of size {size} that exceeds its data")
    return torch.as_strided(storage.data, size, stride, storage.data.storage_offset() + offset)


def _rebuild_parameter(data: Any, *_: Any) -> Tensor:
    if not isinstance(data, Tensor):
        raise pickle.UnpicklingError("a parameter without a tensor")
    return data


def _rebuild_from_type(rebuild: Any, _type: Any, arguments: Any, _state: Any) -> Tensor:
    """Return a tensor that was saved with attributes, without them."""
    if rebuild is not _ALLOWED_REBUILD or type(arguments) is not tuple:
        raise pickle.UnpicklingError("a tensor of an unknown type")
    return _rebuild_tensor(*arguments)


def _ordered_dict(items: Any = None) -> dict[Any, Any]:
    """Return a dict: an empty one, or one of a list of pairs (as Python 2 pickles it)."""
    if items is None:
        return {}
    # Only a list: iterating over an expanded tensor could exhaust the memory.
    if type(items) is not list or not all(map(_is_named_value, items)):
        raise pickle.UnpicklingError("an ordered dict whose items are not named values")
    values = {pair[0]: pair[1] for pair in items}
    items.clear()  # so that a pickle cannot make us copy one long list a million times
    return values


def _is_named_value(pair: Any) -> bool:
    return type(pair) in (list, tuple) and len(pair) == 2 and type(pair[0]) is str


def _identity(expected: type) -> AllowedCallable:
    """Return a constructor that returns its argument, which must be of a type."""

    def check(value: Any) -> Any:
        if type(value) is not expected:
            raise pickle.UnpicklingError(f"a {type(value).__name__} instead of a {expected.__name__}")
        return value

    return AllowedCallable(check)


_ALLOWED_REBUILD = AllowedCallable(_rebuild_tensor)

_ALLOWED_GLOBALS: dict[str, object] = {
    "collections OrderedDict": AllowedCallable(_ordered_dict),
    "mmengine.config.config ConfigDict": _identity(dict),
    "torch Size": _identity(tuple),
    "torch._utils _rebuild_tensor": _ALLOWED_REBUILD,
    "torch._utils _rebuild_tensor_v2": _ALLOWED_REBUILD,
    "torch._utils _rebuild_parameter": AllowedCallable(_rebuild_parameter),
    "torch._utils _rebuild_parameter_with_state": AllowedCallable(_rebuild_parameter),
    "torch._tensor _rebuild_from_type_v2": AllowedCallable(_rebuild_from_type),
    **{f"torch {name}": dtype for name, dtype in _STORAGE_DTYPES.items()},
    **{f"torch.storage {name}": dtype for name, dtype in _STORAGE_DTYPES.items()},
}


def _read_zip(stream: _Stream, size: int) -> Any:
    """Read a zip archive: ``<name>/data.pkl``, and one uncompressed ``<name>/data/<key>`` per storage."""
    with zipfile.ZipFile(stream) as archive:
        members = {member.filename: member for member in archive.infolist()}
        if len(members) != len(archive.infolist()):
            raise pickle.UnpicklingError("a zip archive in which two members have the same name")
        pickles = [name for name in members if name.endswith("/data.pkl") and name.count("/") == 1]
        if len(pickles) != 1:
            raise pickle.UnpicklingError("a zip archive without one data.pkl")
        folder = pickles[0].removesuffix("data.pkl")
        if f"{folder}constants.pkl" in members:
            raise pickle.UnpicklingError("a TorchScript program, not a checkpoint")

        def read(name: str) -> bytes:
            return archive.read(_uncompressed(members, name, size))

        def fill(key: str, storage: _Storage) -> None:
            member = _uncompressed(members, f"{folder}data/{key}", size)
            if member.file_size != storage.nbytes:
                raise EOFError(f"{member.file_size} bytes for storage {key} instead of {storage.nbytes}")
            with archive.open(member) as data:
                storage.fill(data)

        if f"{folder}byteorder" in members and read(f"{folder}byteorder") != b"little":
            raise pickle.UnpicklingError("a big-endian checkpoint")
        contents = io.BytesIO(read(pickles[0]))
        return unpickler.load(contents, size, _ALLOWED_GLOBALS, _Storages(size, fill).load)


def _uncompressed(members: dict[str, zipfile.ZipInfo], name: str, size: int) -> zipfile.ZipInfo:
    """Return a member of an archive; it must exist, be uncompressed and not exceed the archive."""
    if name not in members:
        raise pickle.UnpicklingError(f"a zip archive without {name:.100}")
    member = members[name]
    if member.compress_type != zipfile.ZIP_STORED or member.file_size > size:
        raise pickle.UnpicklingError(f"a zip archive in which {name:.100} is compressed")
    return member


def _read_legacy(stream: _Stream, size: int) -> Any:
    """Read the older format: five pickles (magic, protocol, system, contents, keys) and raw data."""

    def no_storage(pid: Any) -> None:
        raise pickle.UnpicklingError("a storage outside the contents")

    def load_plain() -> Any:
        return unpickler.load(stream, size, {}, no_storage)

    if load_plain() != LEGACY_MAGIC or load_plain() != LEGACY_PROTOCOL:
        raise pickle.UnpicklingError("the file does not start like a PyTorch checkpoint")
    system = load_plain()
    if not isinstance(system, dict) or system.get("little_endian") is False:
        raise pickle.UnpicklingError("a big-endian checkpoint")
    storages = _Storages(size, lambda key, storage: None)
    contents = unpickler.load(stream, size, _ALLOWED_GLOBALS, storages.load)
    keys = load_plain()
    _fill_all(storages.by_key, keys, stream)
    return contents


def _fill_all(storages: dict[str, _Storage], keys: Any, stream: _Stream) -> None:
    """Read the raw data in the order of the keys: for each storage a count, then the numbers."""
    if type(keys) is not list:
        raise pickle.UnpicklingError("no list of storages after the contents")
    unfilled = dict(storages)
    for key in map(_storage_key, keys):
        if key not in unfilled:
            raise pickle.UnpicklingError(f"data of storage {key}, which is unknown or was read before")
        storage = unfilled.pop(key)
        (count,) = struct.unpack("<q", stream.read(8))
        if count != storage.data.numel():
            raise EOFError(f"storage {key} has {count} numbers instead of {storage.data.numel()}")
        storage.fill(stream)
    if unfilled:
        raise EOFError(f"{len(unfilled)} storages have no data")
