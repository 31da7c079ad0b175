"""The unpickler returns plain data and runs no code of a pickle."""

from __future__ import annotations

import argparse
import builtins
import collections
import copyreg
import datetime
import enum
import io
import os
import pickle
import pickletools
import subprocess
import sys
from collections import OrderedDict
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.checkpoint_files import foreign_object, number, text
from helpers.pickle_attacks import attacks

from solo_infer.weights.pickles import unpickler
from solo_infer.weights.pickles.unpickler import MAX_OPCODES, AllowedCallable, OpaqueObject

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)
ALLOWED: dict[str, object] = {
    "collections OrderedDict": AllowedCallable(dict),
    "torch count": AllowedCallable(lambda *arguments: len(arguments)),
    "torch float": "a value",
}
REFUSALS = (pickle.UnpicklingError, EOFError, LookupError, TypeError, ValueError)


def load(data: bytes) -> Any:
    return unpickler.load(io.BytesIO(data), len(data), ALLOWED, lambda pid: ("persistent", pid))


# --- Supported pickles


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    "value",
    [
        None,
        [True, False, 0, 1, 255, 256, 65536, -1, 2**31, -(2**63), 10**30],
        [0.0, -1.5, 1e300, float("inf")],
        ["", "a", "ü\n\\ 𝔘", "x" * 300],
        ((), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)),
        {"a": [1, {"b": (2, [3])}], 4: None, None: "n", 1.5: "f", True: "t"},
        list(range(3000)),
        {str(key): key for key in range(3000)},
        [[]] * 3,
    ],
)
def test_plain_data_of_every_protocol(value: Any, protocol: int) -> None:
    loaded = load(pickle.dumps(value, protocol))
    assert loaded == value
    assert type(loaded) is type(value)


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_bytes(protocol: int) -> None:
    value = [b"", b"abc", b"x" * 300, bytearray(b"mutable") if protocol == 5 else b""]
    assert load(pickle.dumps(value, protocol)) == value


@pytest.mark.parametrize("protocol", PROTOCOLS[1:])
def test_shared_and_recursive_objects_stay_so(protocol: int) -> None:
    shared: list[Any] = [1]
    first, second = load(pickle.dumps([shared, shared], protocol))
    assert first is second
    shared.append(shared)
    loaded = load(pickle.dumps(shared, protocol))
    assert loaded[1] is loaded


@pytest.mark.parametrize("protocol", PROTOCOLS[2:])
def test_ordered_dict_is_a_dict(protocol: int) -> None:
    loaded = load(pickle.dumps(OrderedDict(b=1, a=2), protocol))
    assert type(loaded) is dict
    assert list(loaded.items()) == [("b", 1), ("a", 2)]


def test_attributes_of_a_dict_are_dropped() -> None:
    data = b"ccollections\nOrderedDict\n)R" + text("a") + b"K\x01s}" + text("items") + b"K\x02sb."
    assert pickle.loads(data).items == 2
    assert list(load(data).items()) == [("a", 1)]


def test_stream_is_left_at_the_end_of_the_pickle() -> None:
    stream = io.BytesIO(pickle.dumps([1]) + pickle.dumps("next") + b"rest")
    loaded = [unpickler.load(stream, 100, {}, lambda pid: pid) for _ in range(2)]
    assert loaded == [[1], "next"]
    assert stream.read() == b"rest"


def test_persistent_ids_are_passed_to_the_caller() -> None:
    assert load(b"(" + text("a") + number(1) + b"tQ.") == ("persistent", ("a", 1))


class Color(enum.Enum):
    RED = 1


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_unknown_objects_are_opaque(protocol: int, monkeypatch: pytest.MonkeyPatch) -> None:
    history = foreign_object(monkeypatch, "mmengine.logging", "HistoryBuffer", data=[1, 2])
    unknown = {
        "history": history,
        "array": np.arange(3.0),
        "scalar": np.float32(1),
        "dtype": np.dtype("f4"),
        "time": datetime.datetime(2021, 8, 24),
        "path": Path("a/b"),
        "fraction": Fraction(1, 2),
        "namespace": argparse.Namespace(a=1),
        "enum": Color.RED,
        "counter": collections.Counter("abc"),
        "default": collections.defaultdict(list, a=[1]),
        "deque": collections.deque([1, 2]),
        "set": {1, 2},
        "frozen": frozenset([1]),
        "complex": 1j,
        "class": OrderedDict,
        "function": os.path.join,
        "range": range(3),
    }
    loaded = load(pickle.dumps({**unknown, "plain": 1}, protocol))
    assert loaded.pop("plain") == 1
    assert loaded.pop("class") is ALLOWED["collections OrderedDict"]
    opaque = {name for name, value in loaded.items() if isinstance(value, OpaqueObject)}
    assert opaque == set(unknown) - {"class"}
    assert loaded["history"].name in ("mmengine.logging.HistoryBuffer", "copy_reg._reconstructor")


@pytest.mark.parametrize("call", [b"(NNtR", b"(NNt\x81", b"0(ctorch\ncount\nNNo", b"0(NNitorch\ncount\n"])
def test_allowed_functions_are_called(call: bytes) -> None:
    assert load(b"ctorch\ncount\n" + call + b".") == 2


def test_unhashable_and_slow_keys_are_dropped() -> None:
    entries = [
        (b"(K\x01t", "a tuple"),
        (b"]", "a list"),
        (b"cos\nsystem\n", "opaque"),
        (number(1 << 2000), "a huge number"),
        (number(7), "kept"),
    ]
    data = b"}(" + b"".join(key + text(value) for key, value in entries) + b"u."
    assert load(data) == {7: "kept"}


# --- Attacks


@pytest.fixture
def marker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Path of a file that an attack creates."""
    path = tmp_path / "ran"
    (tmp_path / "tripwire.py").write_text(f"open({str(path)!r}, 'w').close()")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tripwire", raising=False)
    return path


def check_that_nothing_runs(data: bytes, marker: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Load a pickle that creates the marker when Python loads it."""
    try:
        pickle.loads(data)
    except AttributeError:
        assert b"tripwire" in data
    assert marker.exists(), "the attack does not work with Python"
    marker.unlink()
    sys.modules.pop("tripwire", None)

    def refuse(*args: object, **kwargs: object) -> None:
        raise BaseException("something ran")

    functions = [(os, "system"), (os, "popen"), (subprocess, "Popen"), (builtins, "eval"), (builtins, "exec")]
    with monkeypatch.context() as patch:
        for owner, name in functions:
            patch.setattr(owner, name, refuse)
        loaded = load(data)
    assert not marker.exists()
    assert "tripwire" not in sys.modules
    return loaded


@pytest.mark.parametrize(
    ("name", "protocol"),
    [
        (name, protocol)
        for name in attacks("")
        for protocol in (0, 2, pickle.HIGHEST_PROTOCOL)
        if protocol or not name.startswith("__new__")  # protocol 0 has no opcode for it
    ],
)
def test_calls_are_not_executed(
    name: str, protocol: int, marker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = pickle.dumps(attacks(str(marker))[name], protocol)
    assert isinstance(check_that_nothing_runs(data, marker, monkeypatch), OpaqueObject)
    attack = attacks(str(marker))[name]
    data = pickle.dumps({"state_dict": {"w": attack}, "plain": [attack, 1]}, protocol)
    loaded = check_that_nothing_runs(data, marker, monkeypatch)
    assert isinstance(loaded["state_dict"]["w"], OpaqueObject)
    assert loaded["plain"][1] == 1


@pytest.mark.parametrize(
    "data",
    [
        b"(V{shell}\nios\nsystem\n.",
        b"(cos\nsystem\nV{shell}\no.",
        b"ctripwire\nanything\n.",
        b"Vtripwire\nVanything\n\x93.",
        b"\x80\x04Vpathlib\nVPath.touch\n\x93(cpathlib\nPath\n(V{path}\ntRtR.",
        b"cos\nsystem\n(V{shell}\ntR0(lp0\n.",
    ],
    ids=["INST", "OBJ", "GLOBAL", "STACK_GLOBAL", "dotted", "dropped"],
)
def test_older_and_newer_opcodes_call_nothing(
    data: bytes, marker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = data.replace(b"{shell}", f"touch {marker}".encode()).replace(b"{path}", str(marker).encode())
    check_that_nothing_runs(data, marker, monkeypatch)


@pytest.mark.parametrize("opcode", [b"\x82\x01", b"\x83\x01\x00", b"\x84\x01\x00\x00\x00"])
def test_registered_extensions_are_refused(
    opcode: bytes, marker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copyreg.add_extension("os", "system", 1)
    try:
        with pytest.raises(pickle.UnpicklingError, match="opcode EXT"):
            check_that_nothing_runs(opcode + f"(Vtouch {marker}\ntR.".encode(), marker, monkeypatch)
    finally:
        copyreg.remove_extension("os", "system", 1)


# --- Refused pickles


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b".",
        b"N",
        b"0.",
        b"1.",
        b"t.",
        b"R.",
        b"b.",
        b"Q.",
        b"h\x00.",
        b"2.",
        b"q\x00.",
        b"<html>.",
        b"K\x01)R.",
        b"(K\x01t)R.",
        b"ccollections\nOrderedDict\nNR.",
        b"ccollections\nOrderedDict\n]R.",
        b"ccollections\nOrderedDict\n)}\x92.",
        b"ccollections\nOrderedDict\n}b.",
        b"ccollections\nOrderedDict\nN}N\x86b.",
        b"ctorch\nfloat\n)R.",
        b"ctorch\nfloat\n}b.",
        b"ctorch\nfloat\nK\x01a.",
        b"ctorch\nfloat\nK\x01K\x02s.",
        b"ctorch\nfloat\n(K\x01\x90.",
        b"ctorch\ncount\n(" + b"N" * 17 + b"tR.",
        b"K\x01}b.",
        b")}b.",
        b"]}b.",
        b")K\x01a.",
        b")K\x01K\x02s.",
        b"}K\x01a.",
        b"](K\x01K\x02u.",
        b"}(K\x01u.",
        b"K\x01K\x02\x93.",
        b"V" + b"m" * 600 + b"\nV" + b"n" * 600 + b"\n\x93.",
        b"Pname\n.",
        b"\x97.",
        b"\x98.",
        b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7fabc.",
        b"\x8d\xff\xff\xff\xff\xff\xff\xff\xffabc.",
        b"B\xff\xff\xff\x7fabc.",
        b"X\xff\xff\xff\xffabc.",
        b"T\xff\xff\xff\xffabc.",
        b"\x8b\xff\xff\xff\x7fabc.",
        b"X\x02\x00\x00\x00\xff\xfe.",
        b"I not a number\n.",
        b"I" + b"1" * 100_000 + b"\n.",
        b"V" + b"a" * 100_000 + b"\n.",
    ],
)
def test_invalid_pickle_is_refused(data: bytes) -> None:
    with pytest.raises(REFUSALS):
        load(data)


def test_stack_below_a_mark_is_not_accessible() -> None:
    with pytest.raises(IndexError):
        load(b"K\x01(\x85.")


@pytest.mark.parametrize("index", [0, 255, 2**31, 2**32 - 1])
def test_large_memo_index_allocates_nothing(index: int) -> None:
    raw = index.to_bytes(4, "little")
    assert load(b"K\x07r" + raw + b"0j" + raw + b".") == 7


def test_frame_lengths_are_ignored() -> None:
    assert load(b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7fK\x07.") == 7


@pytest.mark.parametrize(
    "data",
    [
        b"]" * 50_000 + b"a" * 49_999 + b".",
        b")" + b"\x85" * 100_000 + b".",
        b"}" + b")" + b"\x85" * 100_000 + b"K\x01s.",
        b"(" * 50_000 + b"t" * 50_000 + b".",
        b"]q\x00" + b"h\x00a" * 50_000 + b".",
    ],
    ids=["lists", "tuples", "tuples as key", "marks", "itself"],
)
def test_deep_nesting_is_supported(data: bytes) -> None:
    assert type(load(data)) in (list, tuple, dict)


def test_overlong_pickle_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert MAX_OPCODES >= 1_000_000
    monkeypatch.setattr(unpickler, "MAX_OPCODES", 1000)
    assert load(b"N0" * 499 + b"N.") is None
    with pytest.raises(pickle.UnpicklingError, match="more than 1000 opcodes"):
        load(b"N0" * 501 + b"N.")


def test_names_of_opaque_objects_are_short() -> None:
    loaded = load(b"c" + b"m" * 50_000 + b"\n" + b"n" * 50_000 + b"\n.")
    assert isinstance(loaded, OpaqueObject)
    assert len(repr(loaded)) < 1100


@pytest.mark.parametrize("seed", range(4))
def test_random_bytes_end_in_a_value_or_a_refusal(seed: int) -> None:
    rng = np.random.default_rng(seed)
    opcodes = bytes(sorted(ord(opcode.code) for opcode in pickletools.opcodes))
    refused = 0
    for _ in range(1500):
        length = int(rng.integers(1, 40))
        data = bytes(rng.choice(list(opcodes), length).astype(np.uint8)) + b"."
        try:
            load(data)
        except REFUSALS + (AttributeError, OverflowError):
            refused += 1
    assert 0 < refused
