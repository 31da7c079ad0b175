"""A pickle machine that makes plain data and calls nothing that a pickle names.

Python's own unpickler, with whatever list of allowed globals, still lets a pickle call methods of what is
allowed (``__setstate__``, ``__setitem__``), make a memo as large as the largest index it mentions, and
crash the interpreter by hashing a deep tuple. Here opcodes, as ``pickletools`` decodes them, only move
values between a stack, a memo, lists, tuples and dicts. A global that the caller does not know becomes an
``OpaqueObject`` object. Time and memory are proportional to the length of the pickle.
"""

from __future__ import annotations

import pickle
import pickletools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import IO, Any, cast

MAX_OPCODES = 1_000_000  # some 10,000 make a checkpoint; beyond this one is only meant to keep us busy
_MAX_LINE = 1 << 16  # characters in a line of the oldest, textual opcodes
_MAX_NAME = 1000  # characters in the name of a global
_MAX_ARGUMENTS = 16

_LITERALS = frozenset(
    "INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT NONE "
    "STRING BINSTRING SHORT_BINSTRING UNICODE SHORT_BINUNICODE BINUNICODE BINUNICODE8 "
    "BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8".split()
)


class OpaqueObject:
    """Stands for an object of an unknown class or function: takes whatever a pickle does to it.

    Attributes:
        name: Its module and name, e.g. "os.system".
    """

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return f"<inert {self.name}>"


@dataclass(frozen=True)
class AllowedCallable:
    """A global that a pickle may call; ``make`` must check its arguments and be quick."""

    make: Callable[..., Any]


def load(
    stream: IO[bytes],
    size: int,
    known: Mapping[str, object],
    load_persistent: Callable[[Any], Any],
) -> Any:
    """Return what the pickle at the stream's position holds, and leave the stream behind its end.

    Args:
        stream: Buffered.
        size: Bytes in the stream: nothing longer is ever asked of it.
        known: {"module name": a ``AllowedCallable`` or a value}; all other globals are inert.
        load_persistent: Gets each persistent id, of any type, and returns the value it stands for.

    Raises:
        UnpicklingError: It uses opcodes against their purpose, or is no pickle. A damaged pickle may as
            well raise EOFError, LookupError, TypeError, ValueError or struct.error.
    """
    machine = _Machine(known, load_persistent)
    bounded = cast(IO[bytes], _Bounded(stream, size))
    for count, (opcode, argument, _) in enumerate(pickletools.genops(bounded)):
        if opcode.name == "STOP":
            return machine.stack.pop()
        if count == MAX_OPCODES:
            raise pickle.UnpicklingError(f"a pickle of more than {MAX_OPCODES} steps")
        machine.step(opcode.name, argument)
    raise EOFError("the pickle has no end")


class _Bounded:
    """Keeps a length that a pickle pretends from being allocated."""

    def __init__(self, stream: IO[bytes], size: int) -> None:
        self._stream, self._size = stream, size

    def read(self, count: int) -> bytes:
        return self._stream.read(min(count, self._size))

    def readline(self) -> bytes:
        return self._stream.readline(_MAX_LINE)


class _Machine:
    """The state between two opcodes; methods named after opcodes get the opcode's argument."""

    def __init__(self, known: Mapping[str, object], load_persistent: Callable[[Any], Any]) -> None:
        self.known = known
        self.load_persistent = load_persistent
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []  # for each open mark, the stack that lies under it
        self.memo: dict[int, Any] = {}

    def step(self, name: str, argument: Any) -> None:
        """Do what one opcode says."""
        if name in _LITERALS:
            self.stack.append(argument)
            return
        action = _ACTIONS.get(name)
        if action is None:
            raise pickle.UnpicklingError(f"the opcode {name}, which no checkpoint uses")
        action(self, argument)

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop_to_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.below.pop()
        return items

    def pop_last(self, count: int) -> list[Any]:
        return [self.stack.pop() for _ in range(count)][::-1]

    def mark(self, _: None) -> None:
        self.below.append(self.stack)
        self.stack = []

    def pop(self, _: None) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self.pop_to_mark()

    def drop_to_mark(self, _: None) -> None:
        self.pop_to_mark()

    def put(self, index: int | None) -> None:
        self.memo[len(self.memo) if index is None else index] = self.stack[-1]

    def append(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is list:
            target.extend(items)
        elif not isinstance(target, OpaqueObject):
            raise pickle.UnpicklingError(f"items for a {type(target).__name__}")

    def set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is dict:
            pairs = zip(items[::2], items[1::2], strict=True)
            target.update((key, value) for key, value in pairs if _is_plain(key))
        elif not isinstance(target, OpaqueObject):
            raise pickle.UnpicklingError(f"keys for a {type(target).__name__}")

    def make_dict(self, _: None) -> None:
        items = self.pop_to_mark()
        self.push({})
        self.set_items(items)

    def make_set(self, _: None) -> None:
        self.pop_to_mark()
        self.push(_SET)

    def add_to_set(self, _: None) -> None:
        self.pop_to_mark()
        if not isinstance(self.stack[-1], OpaqueObject):
            raise pickle.UnpicklingError("members for what is no set")

    def find(self, name: str) -> Any:
        """Return a global by its "module name"."""
        return self.known[name] if name in self.known else OpaqueObject(name[:_MAX_NAME].replace(" ", "."))

    def stack_global(self, _: None) -> None:
        module, name = self.pop_last(2)
        if not (type(module) is type(name) is str and len(module) + len(name) < _MAX_NAME):
            raise pickle.UnpicklingError("a global without a sensible name")
        self.push(self.find(f"{module} {name}"))

    def call(self, function: Any, arguments: Any) -> None:
        if isinstance(function, OpaqueObject):
            self.push(function)
            return
        if not isinstance(function, AllowedCallable) or type(arguments) is not tuple:
            raise pickle.UnpicklingError(f"a call of a {type(function).__name__}")
        if len(arguments) > _MAX_ARGUMENTS:
            raise pickle.UnpicklingError(f"a call with {len(arguments)} arguments")
        self.push(function.make(*arguments))

    def call_named(self, name: str) -> None:
        self.call(self.find(name), tuple(self.pop_to_mark()))

    def call_marked(self, _: None) -> None:
        function, *arguments = self.pop_to_mark()
        self.call(function, tuple(arguments))

    def call_with_keywords(self, _: None) -> None:
        kind, _arguments, _keywords = self.pop_last(3)
        if not isinstance(kind, OpaqueObject):
            raise pickle.UnpicklingError("keyword arguments for what takes none")
        self.push(kind)

    def build(self, _: None) -> None:
        """Drop the state of an object: no attribute of anything is ever set."""
        self.stack.pop()
        if not isinstance(self.stack[-1], OpaqueObject | dict):
            raise pickle.UnpicklingError(f"a state for a {type(self.stack[-1]).__name__}")

    def persistent(self, _: None) -> None:
        self.push(self.load_persistent(self.stack.pop()))


def _is_plain(key: Any) -> bool:
    """Tell whether hashing and printing a key is quick and safe; entries with others are dropped."""
    if type(key) is int:
        return key.bit_length() <= 64
    return key is None or type(key) in (str, bytes, bool, float)


_SET = OpaqueObject("builtins.set")

_ACTIONS: dict[str, Callable[[_Machine, Any], None]] = {
    "PROTO": lambda machine, _: None,
    "FRAME": lambda machine, _: None,
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    "EMPTY_LIST": lambda machine, _: machine.push([]),
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    "EMPTY_SET": lambda machine, _: machine.push(_SET),
    "MARK": _Machine.mark,
    "POP": _Machine.pop,
    "POP_MARK": _Machine.drop_to_mark,
    "DUP": lambda machine, _: machine.push(machine.stack[-1]),
    "PUT": _Machine.put,
    "BINPUT": _Machine.put,
    "LONG_BINPUT": _Machine.put,
    "MEMOIZE": _Machine.put,
    "GET": lambda machine, index: machine.push(machine.memo[index]),
    "BINGET": lambda machine, index: machine.push(machine.memo[index]),
    "LONG_BINGET": lambda machine, index: machine.push(machine.memo[index]),
    "LIST": lambda machine, _: machine.push(machine.pop_to_mark()),
    "TUPLE": lambda machine, _: machine.push(tuple(machine.pop_to_mark())),
    "TUPLE1": lambda machine, _: machine.push(tuple(machine.pop_last(1))),
    "TUPLE2": lambda machine, _: machine.push(tuple(machine.pop_last(2))),
    "TUPLE3": lambda machine, _: machine.push(tuple(machine.pop_last(3))),
    "APPEND": lambda machine, _: machine.append(machine.pop_last(1)),
    "APPENDS": lambda machine, _: machine.append(machine.pop_to_mark()),
    "SETITEM": lambda machine, _: machine.set_items(machine.pop_last(2)),
    "SETITEMS": lambda machine, _: machine.set_items(machine.pop_to_mark()),
    "DICT": _Machine.make_dict,
    "FROZENSET": _Machine.make_set,
    "ADDITEMS": _Machine.add_to_set,
    "GLOBAL": lambda machine, name: machine.push(machine.find(name)),
    "STACK_GLOBAL": _Machine.stack_global,
    "REDUCE": lambda machine, _: machine.call(*machine.pop_last(2)),
    "NEWOBJ": lambda machine, _: machine.call(*machine.pop_last(2)),
    "NEWOBJ_EX": _Machine.call_with_keywords,
    "INST": _Machine.call_named,
    "OBJ": _Machine.call_marked,
    "BUILD": _Machine.build,
    "BINPERSID": _Machine.persistent,
}
