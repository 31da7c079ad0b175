"""Interpreter of pickles that creates plain data and calls only what its caller allows.

Python's unpickler is not safe with any list of allowed globals: a pickle can still call methods of allowed
objects (``__setstate__``, ``__setitem__``), allocate a memo of the size of the largest index in it, and crash
the interpreter by hashing a deep tuple. Here the opcodes, as decoded by ``pickletools``, only move values
between a stack, a memo, lists, tuples and dicts. A global that the caller does not allow becomes an
``OpaqueObject``. Time and memory are proportional to the length of the pickle.
"""

from __future__ import annotations

import pickle
import pickletools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import IO, Any, cast

MAX_OPCODES = 1_000_000  # a checkpoint has about 10,000
_MAX_LINE = 1 << 16  # characters in a line of a textual opcode (protocol 0)
_MAX_NAME = 1000  # characters in the name of a global
_MAX_ARGUMENTS = 16

_LITERALS = frozenset(
    "INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT NONE "
    "STRING BINSTRING SHORT_BINSTRING UNICODE SHORT_BINUNICODE BINUNICODE BINUNICODE8 "
    "BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8".split()
)


class OpaqueObject:
    """Placeholder for a global that is not allowed, and for its instances; ignores calls and state.

    Attributes:
        name: Module and name of the global, e.g. "os.system".
    """

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return f"<opaque {self.name}>"


@dataclass(frozen=True)
class AllowedCallable:
    """A global that a pickle may call.

    Attributes:
        function: Function that is called instead. It must check its arguments and take little time.
    """

    function: Callable[..., Any]


def load(
    stream: IO[bytes],
    size: int,
    allowed: Mapping[str, object],
    load_persistent: Callable[[Any], Any],
) -> Any:
    """Return the value of the pickle at the position of a stream; leave the stream at its end.

    Args:
        stream: Buffered binary stream.
        size: Size of the stream in bytes. Reads are limited to it.
        allowed: {"module name": ``AllowedCallable`` or value}; all other globals become an ``OpaqueObject``.
        load_persistent: Function from a persistent id, of any type, to its value.

    Raises:
        UnpicklingError: The data is not a pickle, or it misuses opcodes. A damaged pickle may also raise
            EOFError, LookupError, TypeError, ValueError or struct.error.
    """
    unpickler = _SafeUnpickler(allowed, load_persistent)
    bounded = cast(IO[bytes], _BoundedStream(stream, size))
    for count, (opcode, argument, _) in enumerate(pickletools.genops(bounded)):
        if opcode.name == "STOP":
            return unpickler.stack.pop()
        if count == MAX_OPCODES:
            raise pickle.UnpicklingError(f"a pickle of more than {MAX_OPCODES} opcodes")
        unpickler.step(opcode.name, argument)
    raise EOFError("the pickle has no end")


class _BoundedStream:
    """Limits reads, so that a length in a pickle cannot allocate more than the file has."""

    def __init__(self, stream: IO[bytes], size: int) -> None:
        self._stream, self._size = stream, size

    def read(self, count: int) -> bytes:
        return self._stream.read(min(count, self._size))

    def readline(self) -> bytes:
        return self._stream.readline(_MAX_LINE)


class _SafeUnpickler:
    """State between two opcodes. The methods that implement opcodes take the argument of the opcode."""

    def __init__(self, allowed: Mapping[str, object], load_persistent: Callable[[Any], Any]) -> None:
        self.allowed = allowed
        self.load_persistent = load_persistent
        self.stack: list[Any] = []
        self.mark_stack: list[list[Any]] = []  # for each open mark, the stack below it
        self.memo: dict[int, Any] = {}

    def step(self, name: str, argument: Any) -> None:
        """Execute one opcode."""
        if name in _LITERALS:
            self.stack.append(argument)
            return
        action = _ACTIONS.get(name)
        if action is None:
            raise pickle.UnpicklingError(f"the opcode {name}, which checkpoints do not use")
        action(self, argument)

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop_to_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.mark_stack.pop()
        return items

    def pop_last(self, count: int) -> list[Any]:
        return [self.stack.pop() for _ in range(count)][::-1]

    def mark(self, _: None) -> None:
        self.mark_stack.append(self.stack)
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
            raise pickle.UnpicklingError("members for a value that is not a set")

    def find(self, name: str) -> Any:
        """Return a global by its "module name"."""
        if name in self.allowed:
            return self.allowed[name]
        return OpaqueObject(name[:_MAX_NAME].replace(" ", "."))

    def stack_global(self, _: None) -> None:
        module, name = self.pop_last(2)
        if not (type(module) is type(name) is str and len(module) + len(name) < _MAX_NAME):
            raise pickle.UnpicklingError("a global without a valid name")
        self.push(self.find(f"{module} {name}"))

    def call(self, target: Any, arguments: Any) -> None:
        if isinstance(target, OpaqueObject):
            self.push(target)
            return
        if not isinstance(target, AllowedCallable) or type(arguments) is not tuple:
            raise pickle.UnpicklingError(f"a call of a {type(target).__name__}")
        if len(arguments) > _MAX_ARGUMENTS:
            raise pickle.UnpicklingError(f"a call with {len(arguments)} arguments")
        self.push(target.function(*arguments))

    def call_named(self, name: str) -> None:
        self.call(self.find(name), tuple(self.pop_to_mark()))

    def call_marked(self, _: None) -> None:
        target, *arguments = self.pop_to_mark()
        self.call(target, tuple(arguments))

    def call_with_keywords(self, _: None) -> None:
        target, _arguments, _keywords = self.pop_last(3)
        if not isinstance(target, OpaqueObject):
            raise pickle.UnpicklingError("keyword arguments for a class that takes none")
        self.push(target)

    def build(self, _: None) -> None:
        """Drop the state of an object; attributes are never set."""
        self.stack.pop()
        if not isinstance(self.stack[-1], OpaqueObject | dict):
            raise pickle.UnpicklingError(f"a state for a {type(self.stack[-1]).__name__}")

    def persistent(self, _: None) -> None:
        self.push(self.load_persistent(self.stack.pop()))


def _is_plain(key: Any) -> bool:
    """Return whether a key can be hashed and printed quickly and safely; other entries are dropped."""
    if type(key) is int:
        return key.bit_length() <= 64
    return key is None or type(key) in (str, bytes, bool, float)


_SET = OpaqueObject("builtins.set")

_ACTIONS: dict[str, Callable[[_SafeUnpickler, Any], None]] = {
    "PROTO": lambda unpickler, _: None,
    "FRAME": lambda unpickler, _: None,
    "NEWTRUE": lambda unpickler, _: unpickler.push(True),
    "NEWFALSE": lambda unpickler, _: unpickler.push(False),
    "EMPTY_LIST": lambda unpickler, _: unpickler.push([]),
    "EMPTY_DICT": lambda unpickler, _: unpickler.push({}),
    "EMPTY_TUPLE": lambda unpickler, _: unpickler.push(()),
    "EMPTY_SET": lambda unpickler, _: unpickler.push(_SET),
    "MARK": _SafeUnpickler.mark,
    "POP": _SafeUnpickler.pop,
    "POP_MARK": _SafeUnpickler.drop_to_mark,
    "DUP": lambda unpickler, _: unpickler.push(unpickler.stack[-1]),
    "PUT": _SafeUnpickler.put,
    "BINPUT": _SafeUnpickler.put,
    "LONG_BINPUT": _SafeUnpickler.put,
    "MEMOIZE": _SafeUnpickler.put,
    "GET": lambda unpickler, index: unpickler.push(unpickler.memo[index]),
    "BINGET": lambda unpickler, index: unpickler.push(unpickler.memo[index]),
    "LONG_BINGET": lambda unpickler, index: unpickler.push(unpickler.memo[index]),
    "LIST": lambda unpickler, _: unpickler.push(unpickler.pop_to_mark()),
    "TUPLE": lambda unpickler, _: unpickler.push(tuple(unpickler.pop_to_mark())),
    "TUPLE1": lambda unpickler, _: unpickler.push(tuple(unpickler.pop_last(1))),
    "TUPLE2": lambda unpickler, _: unpickler.push(tuple(unpickler.pop_last(2))),
    "TUPLE3": lambda unpickler, _: unpickler.push(tuple(unpickler.pop_last(3))),
    "APPEND": lambda unpickler, _: unpickler.append(unpickler.pop_last(1)),
    "APPENDS": lambda unpickler, _: unpickler.append(unpickler.pop_to_mark()),
    "SETITEM": lambda unpickler, _: unpickler.set_items(unpickler.pop_last(2)),
    "SETITEMS": lambda unpickler, _: unpickler.set_items(unpickler.pop_to_mark()),
    "DICT": _SafeUnpickler.make_dict,
    "FROZENSET": _SafeUnpickler.make_set,
    "ADDITEMS": _SafeUnpickler.add_to_set,
    "GLOBAL": lambda unpickler, name: unpickler.push(unpickler.find(name)),
    "STACK_GLOBAL": _SafeUnpickler.stack_global,
    "REDUCE": lambda unpickler, _: unpickler.call(*unpickler.pop_last(2)),
    "NEWOBJ": lambda unpickler, _: unpickler.call(*unpickler.pop_last(2)),
    "NEWOBJ_EX": _SafeUnpickler.call_with_keywords,
    "INST": _SafeUnpickler.call_named,
    "OBJ": _SafeUnpickler.call_marked,
    "BUILD": _SafeUnpickler.build,
    "BINPERSID": _SafeUnpickler.persistent,
}
