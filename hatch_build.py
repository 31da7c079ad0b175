"""Builds the compiled kernels of the package where there is a compiler for them.

A wheel with them is for Linux on x86-64. Without them it is for any system, and operations of torch take
their place. ``SOLO_INFER_BUILD_KERNELS=0`` leaves them out, ``1`` makes a failure an error.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

_FOLDER = Path("solo_infer", "ops", "native")
_OPTIONS = ["-std=c++17", "-O3", "-fno-exceptions", "-fno-rtti", "-fPIC", "-shared", "-Wall"]
# The instructions that torch requires for the capabilities of the same names.
_AVX2 = ["-mavx2", "-mfma"]
_AVX512 = [*_AVX2, "-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mprefer-vector-width=512"]
_INSTRUCTION_SETS = {"avx2": _AVX2, "avx512": _AVX512}
_VARIABLE = "SOLO_INFER_BUILD_KERNELS"


class KernelBuildHook(BuildHookInterface):  # type: ignore[type-arg]
    """Compiles one library for each set of instructions into the package."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile the libraries and add them to the wheel."""
        choice = os.environ.get(_VARIABLE, "auto")
        if choice not in ("0", "1", "auto"):
            raise ValueError(f"{_VARIABLE} is {choice!r}; expected 0, 1 or auto")
        for library in Path(self.root, _FOLDER).glob("*.so"):
            library.unlink()
        if choice == "0":
            return
        try:
            libraries = _compile(Path(self.root))
        except (OSError, RuntimeError) as error:
            if choice == "1":
                raise
            self.app.display_warning(
                f"The kernels are not compiled, predictions on a CPU are slower: {error}"
            )
            return
        build_data["artifacts"] += [path.as_posix() for path in libraries]
        build_data["pure_python"] = False
        build_data["tag"] = "py3-none-linux_x86_64"


def _compile(root: Path) -> list[Path]:
    """Compile the libraries, and return their paths from the root."""
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        raise RuntimeError(f"there are none for {sys.platform} on {platform.machine()}")
    compiler = os.environ.get("CXX") or next(filter(shutil.which, ("c++", "g++", "clang++")), None)
    if compiler is None:
        raise RuntimeError("there is no C++ compiler")
    with ThreadPoolExecutor() as pool:  # of compilers, which are processes
        return list(pool.map(partial(_compile_library, root, compiler), _INSTRUCTION_SETS))


def _compile_library(root: Path, compiler: str, name: str) -> Path:
    """Compile the library for one set of instructions, and return its path from the root."""
    library = _FOLDER / f"kernels_{name}.so"
    sources = sorted(map(str, (root / _FOLDER).glob("*.cpp")))
    with tempfile.TemporaryDirectory(dir=root / _FOLDER) as folder:
        built = Path(folder, library.name)
        command = [*compiler.split(), *_OPTIONS, *_INSTRUCTION_SETS[name], "-o", str(built), *sources]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
        built.replace(root / library)
    return library
