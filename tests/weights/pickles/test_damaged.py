"""Damaged and malicious files end in CheckpointError, with little time and memory."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import subprocess
import sys
import tarfile
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.checkpoint_files import legacy_file, number, storage, tensor, text, zip_file
from helpers.paths import ROOT
from weights.pickles.test_reader import ONE_TENSOR, RAW, STORAGES, read, refusal, saved

from solo_infer.errors import CheckpointError
from solo_infer.weights.checkpoint import read_checkpoint
from solo_infer.weights.pickles import reader
from solo_infer.weights.pickles.reader import read_pickled

SMALL = {
    "meta": {"CLASSES": ("cat", "dog"), "epoch": 12, "time": 1.5},
    "state_dict": OrderedDict(
        {
            "conv.weight": torch.arange(8.0).reshape(2, 4),
            "half": torch.ones(3).half(),
            "count": torch.tensor(7),
        }
    ),
    "optimizer": {"state": {0: {"momentum": torch.zeros(2)}}, "groups": [{"lr": 0.1, "params": [0, 1]}]},
}
as_either = pytest.mark.parametrize("as_zip", [False, True], ids=["legacy", "zip"])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.pth"


pytestmark = pytest.mark.filterwarnings("ignore:invalid escape sequence")


def outcome(path: Path, data: bytes) -> Any:
    """Return the contents, or the CheckpointError; any other exception fails the test."""
    path.write_bytes(data)
    try:
        return read_pickled(path)
    except CheckpointError as error:
        return error


# --- Damage


@as_either
def test_file_truncated_anywhere_is_refused(path: Path, as_zip: bool) -> None:
    whole = saved(SMALL, as_zip)
    assert set(read(path, whole)) == set(SMALL)
    cuts = {*range(0, len(whole), 5), *range(300), *range(len(whole) - 300, len(whole))}
    for length in cuts:
        assert isinstance(outcome(path, whole[:length]), CheckpointError), length


@as_either
@pytest.mark.parametrize("keep", [0.0, 0.01, 0.1, 0.5, 0.9, 0.999])
def test_truncated_large_file_is_refused(path: Path, keep: float, as_zip: bool) -> None:
    whole = saved({"state_dict": {"w": torch.zeros(300, 1000)}}, as_zip)
    refusal(path, whole[: int(len(whole) * keep)])


@as_either
def test_changed_bytes_are_read_or_refused(path: Path, as_zip: bool) -> None:
    whole = saved(SMALL, as_zip)
    rng = random.Random(0)
    refused = 0
    for _ in range(1000):
        data = bytearray(whole)
        for _ in range(rng.choice((1, 1, 2, 8))):
            data[rng.randrange(len(data))] = rng.randrange(256)
        refused += isinstance(outcome(path, bytes(data)), CheckpointError)
    assert 120 < refused < 1000


@as_either
def test_moved_and_repeated_bytes_are_read_or_refused(path: Path, as_zip: bool) -> None:
    whole = saved(SMALL, as_zip)
    rng = random.Random(1)
    refused = 0
    for _ in range(500):
        start, end, to = sorted(rng.randrange(len(whole)) for _ in range(3))
        piece = whole[start : min(end, start + 200)]
        rest = whole[:start] + whole[end:] if rng.random() < 0.5 else whole
        refused += isinstance(outcome(path, rest[:to] + piece + rest[to:]), CheckpointError)
    assert 80 < refused < 500


def test_changed_pickles_are_read_or_refused(path: Path) -> None:
    """Every change hits opcodes, because the checksums are those of the changed pickle."""
    with zipfile.ZipFile(io.BytesIO(saved(SMALL, True))) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    folder = next(name for name in members if name.endswith("data.pkl")).removesuffix("data.pkl")
    raw = {key.removeprefix(f"{folder}data/"): data for key, data in members.items() if "/data/" in key}
    contents = members[f"{folder}data.pkl"]
    rng = random.Random(2)
    refused = 0
    for _ in range(1000):
        data = bytearray(contents)
        for _ in range(rng.choice((1, 2, 4))):
            data[rng.randrange(len(data))] = rng.randrange(256)
        refused += isinstance(outcome(path, zip_file(bytes(data), raw)), CheckpointError)
    assert 120 < refused < 1000


@as_either
def test_changed_models_are_refused(path: Path, as_zip: bool) -> None:
    whole = saved(SMALL, as_zip)
    rng = random.Random(3)
    for _ in range(30):
        data = bytearray(whole)
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
        with pytest.raises(CheckpointError):
            read_checkpoint(path)


def test_flipped_bits_of_data_in_a_zip_are_noticed(path: Path) -> None:
    weights = torch.rand(1000)
    whole = saved({"w": weights}, True)
    start = whole.index(weights.numpy().tobytes())
    for offset in (0, 1999, 3999):
        data = bytearray(whole)
        data[start + offset] ^= 1
        assert "CRC" in refusal(path, bytes(data))


# --- Other files


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0",
        b"PK",
        b"PK\x03\x04",
        b"PK\x05\x06" + bytes(18),
        b"<!doctype html><html><body>404</body></html>",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        bytes(100_000),
        b"\x80\x02" * 1000,
        pickle.dumps({"a": 1}),
        pickle.dumps({"model": {"w": torch.zeros(2)}}),
    ],
)
def test_other_files_are_refused(path: Path, data: bytes) -> None:
    assert "Expected a .pth" in refusal(path, data)


def test_oldest_format_in_a_tar_is_refused(path: Path) -> None:
    with tarfile.open(path, "w") as archive:
        for name in ("sys_info", "pickle", "tensors", "storages"):
            archive.addfile(tarfile.TarInfo(name), io.BytesIO())
    refusal(path, path.read_bytes())


def test_paths_that_are_not_files_are_refused(tmp_path: Path) -> None:
    paths = [tmp_path, tmp_path / "missing.pth"]
    if hasattr(os, "mkfifo"):
        paths.append(tmp_path / "pipe.pth")
        os.mkfifo(paths[-1])  # opening it would wait forever
    for path in paths:
        with pytest.raises(CheckpointError, match="is not a file"):
            read_pickled(path)
        with pytest.raises(CheckpointError):
            read_checkpoint(path)


def test_unreadable_file_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.write_bytes(zip_file(ONE_TENSOR, STORAGES))

    def refuse(*args: object, **kwargs: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(CheckpointError, match="cannot be read: .*Permission denied"):
        read_pickled(path)
    with pytest.raises(CheckpointError, match="cannot be read: .*Permission denied"):
        read_checkpoint(path)


def test_programming_errors_are_not_reported_as_damage(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> None:
        raise AssertionError("a bug")

    monkeypatch.setattr(reader, "_read_zip", fail)
    path.write_bytes(zip_file(ONE_TENSOR, STORAGES))
    with pytest.raises(AssertionError, match="a bug"):
        read_pickled(path)


# --- Malicious archives


def archive_of(*members: tuple[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return stream.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        archive_of(),
        archive_of(("data.pkl", ONE_TENSOR), ("data/0", RAW)),
        archive_of(("a/data.pkl", ONE_TENSOR), ("b/data.pkl", ONE_TENSOR), ("a/data/0", RAW)),
        archive_of(("a/b/data.pkl", ONE_TENSOR), ("a/b/data/0", RAW)),
        archive_of(("a/data.pkl", ONE_TENSOR)),
        archive_of(("a/data.pkl", ONE_TENSOR), ("b/data/0", RAW)),
        archive_of(("a/data.pkl", ONE_TENSOR), ("a/data/0", RAW[:-1])),
        archive_of(("a/data.pkl", ONE_TENSOR), ("a/data/0", RAW + b"\0")),
        archive_of(("a/data.pkl", ONE_TENSOR), ("a/data/0/", b"")),
        archive_of(("a/data.pkl", b""), ("a/data/0", RAW)),
        archive_of(("a/data.pkl", ONE_TENSOR), ("a/data/0", RAW), ("a/constants.pkl", b"")),
        archive_of(("a/data.pkl", ONE_TENSOR), ("a/data/0", RAW), compression=zipfile.ZIP_DEFLATED),
        archive_of(("a/data.pkl", ONE_TENSOR), ("a/data/0", RAW), compression=zipfile.ZIP_BZIP2),
        archive_of(("a/data.pkl", ONE_TENSOR), ("a/data/0", RAW), compression=zipfile.ZIP_LZMA),
        archive_of(("a/data.pkl", archive_of(("a/data.pkl", ONE_TENSOR)))),
        archive_of(("word/document.xml", b"<xml>")),
    ],
)
def test_other_archives_are_refused(path: Path, data: bytes) -> None:
    refusal(path, data)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_members_of_one_name_are_refused(path: Path) -> None:
    pair = (("a/data/0", RAW), ("a/data/0", bytes(16)))
    assert "the same name" in refusal(path, archive_of(("a/data.pkl", ONE_TENSOR), *pair))


def test_members_elsewhere_are_never_written(path: Path) -> None:
    outside = ("../evil", b"x"), ("/tmp/evil", b"x"), ("a/../../evil", b"x")
    data = archive_of(("a/data.pkl", ONE_TENSOR), ("a/data/0", RAW), *outside)
    assert read(path, data)["w"].shape == (4,)
    assert sorted(item.name for item in path.parent.rglob("*")) == ["model.pth"]


def test_encrypted_archive_is_refused(path: Path) -> None:
    data = bytearray(zip_file(ONE_TENSOR, STORAGES))
    for signature, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        start = -1
        while (start := data.find(signature, start + 1)) >= 0:
            data[start + flags] |= 1
    assert "encrypted" in refusal(path, bytes(data))


# --- Time and memory


def twice(index: int) -> bytes:
    """Return opcodes that push the same memorized value two times."""
    return b"h" + bytes([index]) + b"h" + bytes([index])


def put(index: int) -> bytes:
    return b"q" + bytes([index])


LAUGHING_TUPLE = b")q\x00" + b"".join(twice(i) + b"\x86" + put(i + 1) for i in range(100))

BOMBS = {
    "long string": b"X\xff\xff\xff\x7f",
    "long bytes": b"\x8e" + (2**40).to_bytes(8, "little"),
    "longer bytes": b"\x8e" + (2**33).to_bytes(8, "little"),
    "long number": b"\x8b\xff\xff\xff\x7f",
    "long array": b"\x96" + (2**33).to_bytes(8, "little"),
    "long frame": b"\x95" + (2**62).to_bytes(8, "little"),
    "memo": b"Nr\xff\xff\xff\xff" + b"Np4294967295\n",
    "number in text": b"I" + b"9" * 3_000_000 + b"\n",
    "huge storage": storage(count=2**31),
    "many storages": b"](" + b"".join(storage(str(key), 2**26) for key in range(64)) + b"e",
    "name of a global": text("m" * 10**6) + b"q\x002" * 50 + b"\x93" * 50,
    "names of globals": text("m" * 10**6) + b"q\x00" + b"h\x00h\x00\x93" * 10_000,
    "expanded tensor": tensor((2**31, 2**20), (0, 0)),
    "tensor as a list": b"ctorch\nSize\n(" + tensor((2**40,), (0,)) + b"tR",
    "tensor as a dict": b"ccollections\nOrderedDict\n(" + tensor((2**40, 2), (0, 0)) + b"tR",
    "tensor as a size": b"ctorch._utils\n_rebuild_tensor_v2\n("
    + storage()
    + number(0)
    + tensor((2**40,), (0,)) * 2
    + b"tR",
    "tensor as a count": storage().replace(number(4), tensor((2**40,), (0,))),
    "tensor assigned to": tensor((2**40,), (0,)) + b"K\x00K\x01s",
    "classes": b"}("
    + text("mask_head.conv_cls.weight")
    + tensor((2**40, 0, 3, 3), (1, 1, 1, 1))
    + text("backbone.conv1.weight")
    + tensor()
    + b"u",
    "more classes": b"}("
    + text("mask_head.conv_cls.weight")
    + tensor((2**40, 256, 3, 3), (0, 0, 0, 0))
    + text("backbone.conv1.weight")
    + tensor()
    + b"u",
    "depth": b"}("
    + b"".join(text(f"mask_head.cls_convs.{i}.gn.bias") + tensor((32,), (0,)) for i in range(3000))
    + text("backbone.conv1.weight")
    + tensor()
    + b"u",
    "one tensor of many names": b"}("
    + tensor((1, 2**20), (0, 0))
    + b"q\x000"
    + b"".join(text(str(i)) + b"h\x00" for i in range(10_000))
    + b"u",
    "laughs": b"]q\x00Na" + b"".join(b"](" + twice(i) + b"e" + put(i + 1) for i in range(100)),
    "laughing key": LAUGHING_TUPLE + b"}hdNs",
    "laughing id": LAUGHING_TUPLE + b"Q",
    "deep tuple as key": b"})" + b"\x85" * 200_000 + b"Ns",
}

LIMITED = """
import json, resource, sys
from pathlib import Path
import torch, safetensors.torch
from solo_infer.errors import CheckpointError
from solo_infer.models import build_network
from solo_infer.config import PRESETS
from solo_infer.weights.checkpoint import read_checkpoint

build_network(PRESETS["solo_r50"].architecture, device="meta")
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (256 << 20), resource.RLIM_INFINITY))
results = {}
for path in sorted(Path(sys.argv[1]).iterdir()):
    try:
        read_checkpoint(path)
        results[path.name] = "read"
    except CheckpointError as error:
        results[path.name] = str(error)
print(json.dumps(results))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs the memory limits of Linux")
def test_bombs_take_little_time_and_memory(tmp_path: Path) -> None:
    for name, contents in BOMBS.items():
        storages = STORAGES if b"storage" in contents else {}
        for name_of_format, build in (("legacy", legacy_file), ("zip", zip_file)):
            (tmp_path / f"{name}.{name_of_format}.pth").write_bytes(
                build(b"\x80\x02" + contents + b".", storages)
            )
    deflated = zip_file(ONE_TENSOR, {"0": bytes(50_000_000)}, zipfile.ZIP_DEFLATED)
    (tmp_path / "zip bomb.pth").write_bytes(deflated)
    deflated = zip_file(b"N0" * 25_000_000 + b"N.", None, zipfile.ZIP_DEFLATED)
    (tmp_path / "pickle bomb.pth").write_bytes(deflated)
    process = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert process.returncode == 0, process.stderr
    results = json.loads(process.stdout)
    assert len(results) == 2 * len(BOMBS) + 2
    for name, message in results.items():
        assert message != "read", name
        assert "MemoryError" not in message and "alloc" not in message, (name, message)
        assert len(message) < 3000
