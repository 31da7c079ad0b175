"""Random damage to checkpoints ends in a typed error or a readable file, with little time and memory."""

import json
import pickle
import pickletools
import resource
import struct
import time
import zipfile
from contextlib import contextmanager
from io import BytesIO

import pytest
import torch
from helpers.checkpoint_files import FORMATS, number, storage, tensor, text
from helpers.fuzzing import NUMBERS, TEXTS, campaign, mutate_bytes, mutate_json, only_typed_errors
from helpers.models import small_config, small_yolact_config
from helpers.pickle_attacks import attacks
from safetensors.torch import save

from solo_infer.weights.checkpoint import read_checkpoint, read_config
from solo_infer.weights.match_state_dict import build_empty_network
from solo_infer.weights.pickles.reader import read_pickled
from solo_infer.weights.pickles.unpickler import OpaqueObject

pytestmark = [pytest.mark.fuzz, pytest.mark.filterwarnings("ignore:invalid escape sequence")]

CPU_SECONDS = 2.0  # of one call
WALL_SECONDS = 60.0  # of one call, on a busy machine
BYTES = 2 << 30  # more memory than before a campaign
RAW = torch.arange(4.0).numpy().tobytes()
STATE_DICT = {
    "mask_head.conv_cls.weight": torch.zeros(3, 32, 3, 3),
    "backbone.layer1.0.conv1.weight": torch.ones(2, 2).half(),
    "neck.fpn_convs.0.conv.bias": torch.arange(4),
}
INTEGERS = [value for value in NUMBERS if isinstance(value, int)] + [10**30, -(10**30), 2**62, 7, 4]
PLAIN = (dict, list, tuple, str, bytes, bytearray, int, float, bool, type(None), torch.Tensor, OpaqueObject)


@contextmanager
def bounded_memory():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10 < BYTES


@contextmanager
def checked(rng, folder):
    """Require a typed error or success, within the limits, without a new file."""
    start = time.process_time()
    with only_typed_errors(rng, watched=folder, seconds=WALL_SECONDS) as outcome:
        yield outcome
    assert time.process_time() - start < CPU_SECONDS, rng.name


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Return valid and hostile checkpoint files of every format."""
    folder = tmp_path_factory.mktemp("attacks")
    contents = {"meta": {"CLASSES": ("cat", "dog"), "epoch": 12}, "state_dict": STATE_DICT, "x": [1.5, {2}]}
    files = [save(STATE_DICT, {"format": "pt"})]
    for is_zip in (False, True):
        stream = BytesIO()
        torch.save(contents, stream, _use_new_zipfile_serialization=is_zip)
        files.append(stream.getvalue())
    for attack in attacks(str(folder / "created")).values():
        for make in FORMATS.values():
            files.append(make(pickle.dumps({"state_dict": attack}, protocol=2)))
    yield files
    assert list(folder.iterdir()) == []


def values_of(contents):
    """Yield the values in the contents of a file."""
    waiting, seen = [contents], set()
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        yield value
        if isinstance(value, dict):
            waiting += [*value, *value.values()]
        elif isinstance(value, list | tuple):
            waiting += value


def read(data, path, rng):
    """Read a file, first as contents, then as a model."""
    path.write_bytes(data)
    with bounded_memory(), checked(rng, path.parent) as outcome:
        contents = read_pickled(path)
    if outcome.error is None:
        assert all(isinstance(value, PLAIN) for value in values_of(contents)), rng.name
        for value in values_of(contents):
            if isinstance(value, torch.Tensor) and value.numel() < 1 << 20:
                value.double().sum()  # reads every number: a tensor out of bounds would crash
    with bounded_memory(), checked(rng, path.parent) as outcome:
        read_checkpoint(path)
    assert outcome.error is not None, f"{rng.name}: three tensors are not a model"


def test_damaged_files(files, tmp_path):
    """Bit flips, cuts, splices, and changed headers of archives."""
    path = tmp_path / "model.pth"
    for rng in campaign("damage"):
        data = rng.choice(files)
        if rng.random() < 0.3:
            other = rng.choice(files)
            data = data[: rng.randrange(len(data))] + other[rng.randrange(len(other)) :]
        if rng.random() < 0.3:  # the headers are at the ends
            cut = min(200, len(data))
            data = mutate_bytes(data[:cut], rng) + data[cut:-cut] + mutate_bytes(data[-cut:], rng)
        elif rng.random() < 0.9:
            data = mutate_bytes(data, rng)
        read(data, path, rng)


def random_integer(rng):
    return rng.choice(INTEGERS) if rng.random() < 0.7 else rng.randrange(-9, 9)


def random_opcode(rng):
    """Return an opcode of any protocol with a random argument."""
    opcode = rng.choice(pickletools.opcodes)
    code, argument = opcode.code.encode("latin-1"), opcode.arg
    if argument is None:
        return code
    word = rng.choice(
        ("os system", "torch FloatStorage", "builtins eval", "0", "12", "True", "'x'", "x" * 99)
    )
    if argument.n == pickletools.UP_TO_NEWLINE:
        lines = 2 if argument.name == "stringnl_noescape_pair" else 1
        return code + b"".join(part.encode() + b"\n" for part in (word.split() * 2)[:lines])
    if argument.n > 0:
        return code + rng.choice(
            (rng.randbytes(argument.n), b"\0" * argument.n, b"\x01" + b"\0" * (argument.n - 1))
        )
    size = {pickletools.TAKEN_FROM_ARGUMENT1: 1}.get(argument.n, 8 if "8" in argument.name else 4)
    raw = word.encode()
    length = len(raw) if rng.random() < 0.8 else rng.choice((2**31 - 1, 2**32 - 1, 2**64 - 1, 255))
    return code + (length % 256**size).to_bytes(size, "little") + raw


def random_fragment(rng):
    """Return opcodes that push something of a checkpoint, with numbers that may be wrong."""
    kind = rng.randrange(6)
    if kind == 0:
        count = rng.randrange(4)
        size, stride = (tuple(random_integer(rng) for _ in range(count)) for _ in range(2))
        return tensor(size, stride, random_integer(rng) if rng.random() < 0.3 else 0)
    if kind == 1:
        name = rng.choice(("torch\nFloatStorage", "torch\nBoolStorage", "torch\nQInt8Storage", "os\nsystem"))
        return storage(rng.choice(("0", "1", "../0")), random_integer(rng), name)
    if kind == 2:
        return text(rng.choice(TEXTS)[:300])
    if kind == 3:
        return number(random_integer(rng))
    if kind == 4:  # an entry of a dict with a key of any type
        return rng.choice((b"}", b"(")) + rng.choice((number(3), text("a"), b"N", tensor())) + tensor() + b"s"
    return tensor()


def test_random_pickles(tmp_path):
    """Every opcode, storages and strides out of bounds, huge shapes, keys that are no strings."""
    path = tmp_path / "model.pth"
    for rng in campaign("pickles"):
        parts = [
            random_fragment(rng) if rng.random() < 0.6 else random_opcode(rng)
            for _ in range(rng.randrange(12))
        ]
        contents = b"\x80\x02" + b"".join(parts) + b"."
        if rng.random() < 0.5:  # a state dict of one tensor
            value = parts[0] if parts else tensor()
            contents = (
                b"\x80\x02}("
                + text("state_dict")
                + b"}("
                + rng.choice((text("a\n"), number(1)))
                + value
                + b"uu."
            )
        make = rng.choice(list(FORMATS.values()))
        data = make(contents, {"0": RAW})
        if rng.random() < 0.1:
            data = FORMATS["zip"](contents, {"0": RAW}, zipfile.ZIP_DEFLATED)
        read(data, path, rng)


def test_safetensors_headers(tmp_path):
    path = tmp_path / "model.safetensors"
    data = save(STATE_DICT, {"format": "pt"})
    length = struct.unpack("<Q", data[:8])[0]
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    for rng in campaign("safetensors"):
        changed = mutate_json(header, rng)
        raw = json.dumps(changed).encode("utf-8", "surrogatepass")
        size = len(raw) if rng.random() < 0.9 else rng.choice((0, 1, 2**31, 2**63, 2**64 - 1, len(raw) + 9))
        path.write_bytes(struct.pack("<Q", size) + raw + body)
        with bounded_memory(), checked(rng, tmp_path) as outcome:
            read_checkpoint(path)
        assert outcome.error is not None, rng.name


def test_configurations(tmp_path):
    """A configuration that is accepted is that of a network that can be built, or exceeds a stated limit."""
    path = tmp_path / "config.json"
    configs = [small_config("solo").to_dict(), small_yolact_config("original").to_dict()]
    for rng in campaign("configurations"):
        raw = json.dumps(mutate_json(rng.choice(configs), rng)).encode("utf-8", "surrogatepass")
        path.write_bytes(mutate_bytes(raw, rng) if rng.random() < 0.2 else raw)
        with checked(rng, tmp_path) as outcome:
            config = read_config(path)
        if outcome.error is None and rng.random() < 0.2:
            with bounded_memory(), checked(rng, tmp_path):
                network = build_empty_network(config.architecture, path)
                assert all(parameter.is_meta for parameter in network.parameters())
