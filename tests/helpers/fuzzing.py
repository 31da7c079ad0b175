"""Random hostile inputs, and the check of what a function may do with them.

    for rng in campaign(seed=1):
        content = mutate_json(valid_content, rng)
        with only_typed_errors(rng, watched=tmp_path) as outcome:
            read(content)

Each input depends only on the seed and its number, which a failure names: ``case(seed, number)`` repeats it.
"""

import copy
import os
import random
import sys
import time
import unicodedata
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from solo_infer.errors import SoloInferError

SEED = os.environ.get("SOLO_INFER_FUZZ_SEED", "0")  # another one gives other inputs in all campaigns
SECONDS = float(os.environ.get("SOLO_INFER_FUZZ_SECONDS", "1"))  # of each campaign
# Without that variable, every run tries the same inputs, however fast the machine is.
MAX_INPUTS = sys.maxsize if "SOLO_INFER_FUZZ_SECONDS" in os.environ else 100
MAX_SECONDS_OF_A_CALL = 2.0
MAX_MESSAGE = 1500  # characters
_VISITED = 4000  # parts of a document among which mutations are chosen

NUMBERS = (
    0,
    1,
    -1,
    2,
    0.0,
    -0.0,
    0.5,
    1.5,
    255,
    256,
    -(2**31),
    2**31 - 1,
    2**31,
    2**32,
    2**53 + 1,
    2**63,
    2**64,
)
ODD_NUMBERS = (
    float("nan"),
    float("inf"),
    -float("inf"),
    1e9,
    -3e9,
    1e300,
    5e-324,
    10**30,
    10**400,
    -(10**400),
)
TEXTS = (
    "",
    " ",
    "0",
    "1",
    "nan",
    "true",
    "null",
    "[]",
    "-1",
    "1e9",
    "x" * 300,
    "x" * 5000,
    "a/b\\c",
    "../../x",
)
ODD_TEXTS = (
    "\x00",
    "a\nb\r\x1b[31mred",
    "\x9b31m\x7f",
    "\u202egpj.exe",
    "\u2028\u2066",
    "\ud800",
    "\udc80",
    "\ufeff",
    "%s{0}%n",
    "e\u0301",
    "C:\\x\\y.jpg",
    "/etc/passwd",
    "~",
    "data:image/png;base64," + "A/" * 3000,
    "\U0001f600" * 100,
)
OTHERS = (None, True, False, [], {}, [[]], [{}], {"": None}, [None], [0, 1, 2, 3])


class Case(random.Random):
    """Random numbers of one input; ``name`` identifies it in failures."""

    name = ""


@dataclass
class Outcome:
    """Result of a call: its error if it raised one, and its duration in seconds."""

    error: SoloInferError | None = None
    seconds: float = 0.0


def case(seed, number):
    """Return the random numbers of an input of a campaign."""
    rng = Case(f"{SEED}/{seed}/{number}")
    rng.name = f"seed {seed!r}, input {number}" + (f", SOLO_INFER_FUZZ_SEED={SEED}" if SEED != "0" else "")
    return rng


def campaign(seed, seconds=SECONDS):
    """Yield the random numbers of one input after another until the time is over, or enough were tried."""
    end, number = time.monotonic() + seconds, 0
    while time.monotonic() < end and number < MAX_INPUTS:
        yield case(seed, number)
        number += 1


@contextmanager
def only_typed_errors(rng, watched=None, seconds=MAX_SECONDS_OF_A_CALL):
    """Require that a call succeeds or raises a ``SoloInferError``, which is kept, with a readable message.

    The call must end within ``seconds`` (of processor time on a busy machine), and must not change which
    files a folder holds.

    Args:
        rng: Random numbers of the input, as ``campaign`` yields them.
        watched: Folder in which no file may appear or disappear. Defaults to none.
        seconds: Longest permitted duration.
    """
    before = _files(watched)
    outcome = Outcome()
    start, cpu_start = time.perf_counter(), time.process_time()
    try:
        yield outcome
    except SoloInferError as error:
        outcome.error = error
    except Exception as error:
        raise AssertionError(f"{rng.name}: {type(error).__name__}: {str(error)[:500]}") from error
    outcome.seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    if (
        outcome.seconds > 10 * seconds or min(outcome.seconds, cpu_seconds) >= seconds
    ):  # not on a busy machine
        raise AssertionError(
            f"{rng.name}: took {outcome.seconds:.1f} s, {cpu_seconds:.1f} s of the processor"
        )
    assert _files(watched) == before, f"{rng.name}: files changed: {sorted(_files(watched) ^ before)[:5]}"
    if outcome.error is not None:
        problem = message_problem(str(outcome.error))
        assert not problem, f"{rng.name}: {problem}: {str(outcome.error)[:2000]!r}"


def message_problem(message):
    """Return the problem of an error message, "" if there is none."""
    if not message.strip():
        return "empty message"
    if len(message) >= MAX_MESSAGE:
        return f"message of {len(message)} characters"
    hidden = {
        char
        for char in message
        if char != "\n" and unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp")
    }
    return f"control characters {sorted(map(ascii, hidden))}" if hidden else ""


def _files(folder):
    return set() if folder is None else {str(path) for path in Path(folder).rglob("*")}


def mutate_json(value, rng, mutations=None):
    """Return a copy of a JSON value with some random changes; the original is not modified.

    Values change their type, become extreme, are nested, deleted, duplicated, exchanged or renamed.

    Args:
        value: JSON value.
        rng: Random numbers.
        mutations: Number of changes. Defaults to a few.
    """
    root = [copy.deepcopy(value)]
    for _ in range(mutations or rng.choice((1, 1, 1, 2, 3, 6))):
        places = _places(root, rng)
        container, key = rng.choice(places)
        rng.choice(_MUTATIONS)(container, key, places, rng)
        if not root:
            root = [copy.deepcopy(rng.choice(OTHERS))]
    return root[0]


def _places(root, rng):
    """Return (container, key) of the parts of a document, of at most ``_VISITED`` if there are more."""
    places, waiting = [], [root]
    while waiting and len(places) < _VISITED:
        container = waiting.pop(rng.randrange(len(waiting)))
        keys = list(container) if isinstance(container, dict) else range(len(container))
        places += [(container, key) for key in keys]
        waiting += [container[key] for key in keys if isinstance(container[key], dict | list)]
    return places


def any_value(rng):
    """Return a random value of any type."""
    return copy.deepcopy(rng.choice(rng.choice((NUMBERS, ODD_NUMBERS, TEXTS, ODD_TEXTS, OTHERS))))


def _replace(container, key, places, rng):
    container[key] = any_value(rng)


_CHANGES = (
    lambda number: number + 1,
    lambda number: number - 1,
    lambda number: -number,
    lambda number: number * 1000,
    lambda number: number / 7,
    lambda number: number * 1e6,
    lambda number: number + 0.25,
    float,
)


def _perturb(container, key, places, rng):
    value = container[key]
    if isinstance(value, bool) or not isinstance(value, int | float):
        return _retype(container, key, places, rng)
    change = rng.choice(_CHANGES)
    try:
        container[key] = change(value)
    except OverflowError:  # an integer beyond the range of float
        container[key] = -value


def _retype(container, key, places, rng):
    value = container[key]
    if isinstance(value, str):
        container[key] = rng.choice(
            (ascii(value), value + rng.choice(ODD_TEXTS), value[:-1], [value], len(value))
        )
    elif isinstance(value, dict):
        container[key] = rng.choice((list(value), list(value.values()), [value], str(value)[:100]))
    elif isinstance(value, list):
        container[key] = rng.choice(
            (dict(enumerate(map(str, value[:20]))), value[:-1], value[::-1], value * 2, [value])
        )
    else:
        container[key] = rng.choice((str(value), [value], {"value": value}, not value))


def _delete(container, key, places, rng):
    del container[key]


def _duplicate(container, key, places, rng):
    if isinstance(container, list):
        container.insert(key, copy.deepcopy(container[key]))
    else:
        container[str(key) + rng.choice(("", " ", "2", "\x00"))] = copy.deepcopy(container[key])


def _exchange(container, key, places, rng):
    other, other_key = rng.choice(places)
    container[key] = copy.deepcopy(other[other_key])


def _nest(container, key, places, rng):
    value = container[key]
    for _ in range(rng.choice((1, 2, 5, 200))):
        value = [value] if rng.random() < 0.8 else {"a": value}
    container[key] = value


def _rename(container, key, places, rng):
    if isinstance(container, dict):
        container[rng.choice(ODD_TEXTS + (str(key).upper(), str(key) + " "))] = container.pop(key)
    else:
        rng.shuffle(container)


_MUTATIONS = (
    _replace,
    _replace,
    _replace,
    _perturb,
    _perturb,
    _retype,
    _delete,
    _duplicate,
    _exchange,
    _nest,
    _rename,
)


def mutate_bytes(data, rng, mutations=None):
    """Return bytes with some random changes: flipped, inserted, removed, repeated or exchanged parts.

    Args:
        data: Bytes.
        rng: Random numbers.
        mutations: Number of changes. Defaults to a few.
    """
    data = bytearray(data)
    for _ in range(mutations or rng.choice((1, 1, 2, 4, 16))):
        start = rng.randrange(len(data) + 1)
        end = min(start + rng.choice((1, 1, 2, 4, 16, 200)), len(data))
        kind = rng.randrange(7)
        if kind == 0 and start < len(data):
            data[start] ^= 1 << rng.randrange(8)
        elif kind == 1 and start < len(data):
            data[start] = rng.choice(
                (0, 9, 10, 0x22, 0x2C, 0x5B, 0x5D, 0x7B, 0x7D, 0x7F, 0x80, 0xC3, 0xFE, 0xFF)
            )
        elif kind == 2:
            data[start:start] = rng.randbytes(rng.choice((1, 2, 8, 64)))
        elif kind == 3:
            del data[start:end]
        elif kind == 4:
            data[start:start] = data[start:end] * rng.choice((1, 2, 50))
        elif kind == 5:
            del data[start:]
        else:
            other = rng.randrange(len(data) + 1)
            data[start:end] = data[other : other + end - start]
    return bytes(data)
