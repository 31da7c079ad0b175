"""Both of PyTorch's formats are read bit for bit, refused if damaged, and never executed."""

from __future__ import annotations

import io
import pickle
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.checkpoint_files import (
    FORMATS,
    dumped,
    legacy_file,
    number,
    numbers,
    storage,
    tensor,
    text,
    zip_file,
)
from helpers.paths import DATA, ROOT
from helpers.pickle_attacks import attacks

from solo_infer.diagnostics import procedural_weights
from solo_infer.errors import CheckpointError
from solo_infer.weights.checkpoint import read_checkpoint
from solo_infer.weights.pickles.reader import read_pickled
from solo_infer.weights.pickles.unpickler import OpaqueObject

RAW = np.arange(4, dtype="<f4").tobytes()
STORAGES = {"0": RAW}
ONE_TENSOR = b"\x80\x02}" + text("w") + tensor() + b"s."
both_formats = pytest.mark.parametrize("build", FORMATS.values(), ids=FORMATS)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.pth"


def read(path: Path, data: bytes) -> Any:
    path.write_bytes(data)
    return read_pickled(path)


def refusal(path: Path, data: bytes) -> str:
    """Return why a file is refused; the reason must not be a lack of memory."""
    path.write_bytes(data)
    with pytest.raises(CheckpointError) as error:
        read_pickled(path)
    with pytest.raises(CheckpointError):
        read_checkpoint(path)
    message = str(error.value)
    assert str(path) in message and len(message) < len(str(path)) + 500
    assert "MemoryError" not in message and "alloc" not in message
    return message


def saved(value: Any, as_zip: bool) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream, _use_new_zipfile_serialization=as_zip)
    return stream.getvalue()


# --- Supported contents

DTYPES = (
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
)


@pytest.mark.parametrize("as_zip", [False, True], ids=["legacy", "zip"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_tensor_of_every_dtype(path: Path, dtype: torch.dtype, as_zip: bool) -> None:
    expected = (torch.arange(24) % 7 - 3).to(torch.uint8 if dtype == torch.uint8 else dtype).reshape(2, 3, 4)
    tensor = read(path, saved({"w": expected}, as_zip))["w"]
    assert tensor.dtype == dtype and torch.equal(tensor, expected)


@pytest.mark.parametrize("as_zip", [False, True], ids=["legacy", "zip"])
def test_tensors_of_every_layout(path: Path, as_zip: bool) -> None:
    base = torch.arange(60.0).reshape(3, 4, 5)
    marked = torch.nn.Parameter(torch.arange(3.0))
    marked.note = "an attribute"  # type: ignore[attr-defined]
    noted = torch.arange(5.0)
    noted.note = "an attribute"  # type: ignore[attr-defined]
    tensors = {
        "scalar": torch.tensor(3.5),
        "empty": torch.zeros(0, 3),
        "transposed": base.permute(2, 0, 1),
        "strided": base[:, ::2, 1:4],
        "offset": base[1, 2],
        "shared": base,
        "channels_last": torch.arange(24.0).reshape(1, 2, 3, 4).to(memory_format=torch.channels_last),
        "expanded": torch.tensor([1.0, 2.0]).expand(3, 2),
        "parameter": torch.nn.Parameter(torch.arange(4.0)),
        "frozen": torch.nn.Parameter(torch.arange(4.0), requires_grad=False),
        "marked": marked,
        "noted": noted,
        "buffer": torch.nn.Buffer(torch.ones(2)) if hasattr(torch.nn, "Buffer") else torch.ones(2),
    }
    loaded = read(path, saved(tensors, as_zip))
    assert list(loaded) == list(tensors)
    for name, expected in tensors.items():
        assert torch.equal(loaded[name], expected), name
        assert type(loaded[name]) is torch.Tensor and not loaded[name].requires_grad
        assert loaded[name].stride() == expected.stride()
    assert loaded["shared"].data_ptr() == loaded["transposed"].data_ptr()


def test_tensor_saved_on_cuda_is_read_on_the_cpu(path: Path) -> None:
    contents = ONE_TENSOR.replace(text("cpu"), text("cuda:0"))
    for build in FORMATS.values():
        assert read(path, build(contents, STORAGES))["w"].tolist() == [0.0, 1.0, 2.0, 3.0]


def test_globals_of_every_torch_version(path: Path) -> None:
    for storage_type in ("torch\nFloatStorage", "torch.storage\nFloatStorage"):
        contents = b"}" + text("w") + tensor(source=storage(storage_type=storage_type)) + b"s."
        assert read(path, zip_file(contents, STORAGES))["w"].tolist() == [0.0, 1.0, 2.0, 3.0]
    size = b"ctorch\nSize\n(" + numbers(2, 2) + b"tR"
    first = b"ctorch._utils\n_rebuild_tensor\n(" + storage() + number(0) + size + numbers(1, 2) + b"tR"
    assert read(path, legacy_file(first + b".", STORAGES)).tolist() == [[0.0, 2.0], [1.0, 3.0]]


def test_view_of_a_storage_in_the_oldest_files(path: Path) -> None:
    whole = storage()[:-2]
    view = whole + b"(" + text("view") + number(1) + number(2) + b"ttQ"
    contents = b"]" + tensor((2,), source=view) + b"a" + tensor() + b"a."
    loaded = read(path, legacy_file(contents, STORAGES))
    assert [item.tolist() for item in loaded] == [[1.0, 2.0], [0.0, 1.0, 2.0, 3.0]]


def test_ordered_dict_of_pairs_as_python_2_wrote_it(path: Path) -> None:
    pairs = b"](" + text("a") + b"K\x01\x86]" + text("b") + b"aK\x02aeq\x00"
    call = b"ccollections\nOrderedDict\n("
    assert read(path, zip_file(call + pairs + b"tR.")) == {"a": 1, "b": 2}
    # The list is emptied: copying it a million times would take too long.
    again = b"(" + call + pairs + b"tR" + call + b"h\x00tRt."
    assert read(path, zip_file(again)) == ({"a": 1, "b": 2}, {})
    for wrong in (b"K\x01", text("ab"), b"]K\x01a", b"]" + text("ab") + b"a", b"])a", b"]K\x01K\x02\x86a"):
        refusal(path, zip_file(call + wrong + b"tR."))


def test_dict_of_mmengine(path: Path) -> None:
    call = b"cmmengine.config.config\nConfigDict\n(}" + text("classes") + text("cat") + b"stR"
    assert read(path, zip_file(call + b".")) == {"classes": "cat"}


@pytest.mark.parametrize("name", ["mmdet2", "mmdet2_zip", "mmdet3", "mmdet3_published"])
def test_files_of_mmdet_and_mmengine(name: str) -> None:
    content = read_pickled(DATA / f"checkpoint_{name}.pth")
    expected_entries = {"meta", "state_dict"}
    expected_entries |= {"optimizer"} if name in ("mmdet2_zip", "mmdet3") else set()
    expected_entries |= {"message_hub", "param_schedulers"} if name == "mmdet3" else set()
    assert set(content) == expected_entries
    assert len(content["state_dict"]) == 9
    for key, loaded in content["state_dict"].items():
        # The 3.x files were trained for four steps with a learning rate of 1e-9.
        expected = torch.from_numpy(procedural_weights.tensor(key, tuple(loaded.shape), "solo_r50"))
        tolerance = 0 if name.startswith("mmdet2") or not loaded.is_floating_point() else 1e-8
        torch.testing.assert_close(loaded, expected, rtol=0, atol=tolerance)
    meta = content["meta"]
    names = meta["CLASSES"] if name.startswith("mmdet2") else meta["dataset_meta"]["classes"]
    assert len(names) == 80 and names[0] == "person"
    if name == "mmdet3":
        buffers = content["message_hub"]["log_scalars"].values()
        assert {buffer.name for buffer in buffers} == {"mmengine.logging.history_buffer.HistoryBuffer"}


def test_torch_load_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise BaseException("torch.load was called")

    monkeypatch.setattr(torch, "load", refuse)
    monkeypatch.setattr(pickle, "Unpickler", refuse)
    for name in ("mmdet2", "mmdet3"):
        assert read_pickled(DATA / f"checkpoint_{name}.pth")["state_dict"]
    sources = {path.name: path.read_text() for path in (ROOT / "solo_infer").rglob("*.py")}
    users = {name for name, text in sources.items() if "torch.load(" in text or "pickle.load" in text}
    assert users == {"worker_processes.py"}  # batches of its own processes, nothing from a file


# --- Attacks


@both_formats
@pytest.mark.parametrize("name", attacks(""))
def test_attack_in_a_checkpoint_does_not_run(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, build: Any
) -> None:
    (tmp_path / "tripwire.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tripwire", raising=False)
    attack = dumped(attacks(str(tmp_path / "ran"))[name])[2:-1]
    beside = b"\x80\x02}(" + text("state_dict") + ONE_TENSOR[2:-1] + text("optimizer") + attack + b"u."
    loaded = read(path, build(beside, STORAGES))
    assert loaded["state_dict"]["w"].tolist() == [0.0, 1.0, 2.0, 3.0]
    assert isinstance(loaded["optimizer"], OpaqueObject)
    assert isinstance(read(path, build(b"\x80\x02" + attack + b".")), OpaqueObject)
    for contents in (
        attack,
        b"}" + text("state_dict") + attack + b"s",
        b"}" + attack + ONE_TENSOR[2:-1] + b"s",
        b"ctorch._utils\n_rebuild_tensor_v2\n" + attack + b"R",
        tensor(source=attack),
        b"ctorch._utils\n_rebuild_parameter\n(" + attack + b"tR",
        b"ctorch._tensor\n_rebuild_from_type_v2\n(" + attack + attack + b")}tR",
        attack + b"Q",
        b"(" + text("storage") + attack + text("0") + text("cpu") + number(4) + b"tQ",
        b"(" + text("storage") + b"ctorch\nFloatStorage\n" + attack + text("cpu") + number(4) + b"tQ",
    ):
        path.write_bytes(build(b"\x80\x02" + contents + b".", STORAGES))
        with pytest.raises(CheckpointError):
            read_checkpoint(path)
    assert not (tmp_path / "ran").exists()
    assert "tripwire" not in sys.modules


def test_attack_outside_the_contents_is_refused(path: Path, tmp_path: Path) -> None:
    attack = dumped(attacks(str(tmp_path / "ran"))["os.system"])
    whole = legacy_file(ONE_TENSOR, STORAGES)
    for header in whole.split(b".", 3)[:3]:
        refusal(path, whole.replace(header + b".", attack, 1))
    refusal(path, legacy_file(ONE_TENSOR, STORAGES, keys=attacks(str(tmp_path / "ran"))["os.system"]))
    refusal(path, attack)
    assert not (tmp_path / "ran").exists()


# --- Refused contents


def rebuild(*arguments: bytes) -> bytes:
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + b"".join(arguments) + b"tR"


HUGE = 2**62
BAD_CONTENTS = {
    "size beyond the data": tensor((5,)),
    "offset beyond the data": tensor((4,), offset=1),
    "offset beyond the data, empty": tensor((0,), offset=5),
    "stride beyond the data": tensor((2,), (4,)),
    "negative size": tensor((-1,)),
    "negative stride": tensor((2,), (-1,), offset=3),
    "negative offset": tensor((1,), offset=-1),
    "huge offset": tensor((1,), offset=HUGE),
    "overflowing offset": tensor((1,), offset=2**64),
    "overflowing size": tensor((2**32, 2**32), (0, 0)),
    "overflowing size, empty": tensor((0, 2**64), (1, 1)),
    "overflowing stride": tensor((3,), (HUGE,)),
    "many dimensions": tensor((1,) * 33, (1,) * 33),
    "lengths that differ": tensor((2, 2), (1,)),
    "size of text": rebuild(storage(), number(0), b"(" + text("4") + b"t", numbers(1), b"\x89}"),
    "size of floats": rebuild(storage(), number(0), b"(G" + b"\0" * 8 + b"t", numbers(1), b"\x89}"),
    "size of booleans": rebuild(storage(), number(0), b"(\x88t", numbers(1), b"\x89}"),
    "size that is a list": rebuild(storage(), number(0), b"]K\x01a", b"]K\x01a", b"\x89}"),
    "size that is a tensor": rebuild(storage(), number(0), tensor(), tensor(), b"\x89}"),
    "too few arguments": rebuild(storage()),
    "no storage": rebuild(b"K\x00", number(0), numbers(1), numbers(1)),
    "a tensor for a storage": rebuild(tensor(), number(0), numbers(1), numbers(1)),
    "many arguments": rebuild(storage(), number(0), numbers(4), numbers(1), b"N" * 20),
    "parameter of a number": b"ctorch._utils\n_rebuild_parameter\n(K\x01tR",
    "size of a tensor": b"ctorch\nSize\n(" + tensor() + b"tR",
    "ConfigDict of a tensor": b"cmmengine.config.config\nConfigDict\n(" + tensor() + b"tR",
    "kind of itself": b"ctorch._tensor\n_rebuild_from_type_v2\nq\x00(h\x00K\x01)}tR",
    "state for a tensor": tensor() + b"(" + storage() + number(0) + numbers(HUGE) + numbers(1) + b"tb",
    "attributes for a tensor": tensor() + b"}" + text("data") + tensor() + b"sb",
    "items for a tensor": tensor() + b"K\x00K\x01s",
    "more for a tensor": tensor() + b"K\x01a",
    "attributes for a storage": storage() + b"}" + text("data") + tensor() + b"sb",
    "attributes for a function": b"ctorch._utils\n_rebuild_tensor_v2\nN}" + text("__defaults__") + b"Ns\x86b",
    "attributes for a dtype": b"ctorch\nFloatStorage\nN}" + text("itemsize") + b"K\x00s\x86b",
    "attributes for a class": b"ctorch\nSize\nN}" + text("x") + b"K\x00s\x86b",
    "call of a dtype": b"ctorch\nFloatStorage\n)R",
    "call of a tensor": tensor() + b")R",
    "call of a storage": storage() + b")R",
    "new dtype": b"ctorch\nFloatStorage\n)\x81",
    "id that is text": text("storage") + b"Q",
    "id that is a tensor": tensor() + b"Q",
    "id that is a list": b"]" + text("storage") + b"aQ",
    "id that is empty": b")Q",
    "id of a tensor in a tuple": b"(" + tensor() * 5 + b"tQ",
    "id of a module": b"(" + text("module") + b"cos\nsystem\n" + text("a") * 3 + b"tQ",
    "id in text": b"Pstorage\n",
    "storage of an unknown type": storage(storage_type="torch\nQUInt8Storage"),
    "storage of untyped bytes": storage(storage_type="torch.storage\nUntypedStorage"),
    "storage of a negative length": storage(count=-1),
    "storage of a huge length": storage(count=2**60),
    "storage of an overflowing length": storage(count=2**62 + 1),
    "storage longer than the file": storage(count=10_000),
    "storage longer than its data": storage(count=5),
    "storage shorter than its data": storage(count=3),
    "storage of another type": tensor() + storage(storage_type="torch\nIntStorage"),
    "storage that is not there": storage(key="1"),
    "storage elsewhere": storage(key="../data.pkl"),
    "storage of a long name": storage(key="0" * 1000),
    "storage keyed by a list": storage().replace(text("0"), b"]"),
    "storage keyed by a huge number": storage().replace(text("0"), b"\x8a\xc8" + b"\x01" * 200),
    "nothing": b"0",
    "extension": b"\x82\x01",
}


@both_formats
@pytest.mark.parametrize("contents", BAD_CONTENTS.values(), ids=BAD_CONTENTS)
def test_bad_contents_are_refused(path: Path, contents: bytes, build: Any) -> None:
    assert read(path, build(ONE_TENSOR, STORAGES))["w"].shape == (4,)
    refusal(path, build(b"\x80\x02" + contents + b".", STORAGES))


@both_formats
def test_views_of_views_beyond_the_storage_are_refused(path: Path, build: Any) -> None:
    for view in ([1, 4], [-1, 2], [0, HUGE], [0, -1]):
        pid = storage()[:-2] + b"(" + text("view") + number(view[0]) + number(view[1]) + b"ttQ"
        refusal(path, build(tensor((1,), source=pid) + b".", STORAGES))
    for view in (b"}", text("view"), numbers(1, 2), tensor()):
        refusal(path, build(tensor((1,), source=storage()[:-2] + view + b"tQ") + b".", STORAGES))


@both_formats
def test_storages_together_are_no_larger_than_the_file(path: Path, build: Any) -> None:
    raw = bytes(400_000)
    many = b"](" + b"".join(storage(key=str(key), count=100_000) for key in range(100)) + b"e."
    message = refusal(path, build(many, {"0": raw}))
    assert "of which the file has at most" in message or "without model/data/1" in message


def test_wrong_list_of_storages_is_refused(path: Path) -> None:
    two = b"](" + storage("a") + storage("b") + b"e."
    storages = {"a": RAW, "b": RAW}
    assert len(read(path, legacy_file(two, storages))) == 2
    wrong = (["a"], ["a", "a"], ["a", "c"], ["a", None], ["a", [1]], "ab", 5, {"a": 1}, [], ["a", "b", "b"])
    for keys in wrong:
        refusal(path, legacy_file(two, storages, keys=keys))
    whole = legacy_file(two, storages)
    refusal(path, whole.replace((4).to_bytes(8, "little"), (2**62).to_bytes(8, "little")))
    refusal(path, whole.replace((4).to_bytes(8, "little"), (-1).to_bytes(8, "little", signed=True)))


def test_other_machines_and_versions_are_refused(path: Path) -> None:
    whole = legacy_file(ONE_TENSOR, STORAGES)
    little = text("little_endian") + b"q\x02\x88"
    assert little in whole
    assert "big-endian" in refusal(path, whole.replace(little, little[:-1] + b"\x89"))
    refusal(path, whole.replace(dumped(1001), dumped(1002)))
    big = zip_file(ONE_TENSOR, STORAGES).replace(b"little", b"bigger")
    refusal(path, big)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        stream = io.BytesIO()
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), stream)
    assert "TorchScript" in refusal(path, stream.getvalue())
