"""Objects whose unpickling by Python runs arbitrary code."""

from __future__ import annotations

import builtins
import functools
import os
import subprocess
from pathlib import Path
from typing import Any


class Reduced:
    """Object that is pickled as a call; it is callable itself."""

    def __init__(self, *call: Any) -> None:
        self.reduced = call

    def __reduce__(self) -> Any:
        return self.reduced

    def __call__(self) -> None:
        """Do nothing; pickle requires a callable."""


class Opening:
    """Class that creates a file in every method that a pickle can call."""

    def __new__(cls, path: str = "") -> Any:
        if path:
            Path(path).touch()
        return object.__new__(cls)

    def __getnewargs__(self) -> tuple[str]:
        return (self.path,)

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, str):
            Path(state).touch()

    def append(self, path: str) -> None:
        Path(path).touch()

    def extend(self, paths: list[str]) -> None:
        Path(paths[0]).touch()

    def __setitem__(self, path: str, value: Any) -> None:
        Path(path).touch()


class OpeningByKeyword(Opening):
    def __getnewargs_ex__(self) -> tuple[tuple[()], dict[str, str]]:
        return (), {"path": self.path}


def attacks(path: str) -> dict[str, Any]:
    """Return objects whose unpickling by Python creates a file, or imports "tripwire", which creates it."""
    shell, python = f"touch {path}", f"open({path!r}, 'w').close()"
    system = Reduced(getattr, (Reduced(builtins.__import__, ("os",)), "system"))
    by_new, by_keyword = object.__new__(Opening), object.__new__(OpeningByKeyword)
    by_new.path = by_keyword.path = path
    return {
        "os.system": Reduced(os.system, (shell,)),
        "subprocess": Reduced(subprocess.check_call, (["touch", path],)),
        "eval": Reduced(eval, (python,)),
        "exec": Reduced(exec, (python,)),
        "open": Reduced(open, (path, "w")),
        "import": Reduced(builtins.__import__, ("tripwire",)),
        "getattr chain": Reduced(system, (shell,)),
        "partial": Reduced(functools.partial(os.system, shell), ()),
        "map": Reduced(list, (Reduced(map, (os.system, [shell])),)),
        "method": Reduced(Path.touch, (Path(path),)),
        "__new__": by_new,
        "__new__ with keywords": by_keyword,
        "__setstate__": Reduced(Opening, (), path),
        "append": Reduced(Opening, (), None, iter([path])),
        "extend": Reduced(Opening, (), None, iter([path, path])),
        "__setitem__": Reduced(Opening, (), None, None, iter([(path, 1)])),
    }
