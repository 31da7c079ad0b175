"""Packages that the library needs: whether they work, and how to repair those that do not.

No package is imported before it is checked, so that a report is possible where any of them is broken.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable, Mapping
from importlib import metadata
from types import ModuleType
from typing import Any

from solo_infer.runtime.messages import describe_error, shortened

MODULES = {
    "torch": "torch",
    "torchvision": "torchvision",
    "numpy": "numpy",
    "pillow": "PIL.Image",
    "huggingface-hub": "huggingface_hub",
    "safetensors": "safetensors.torch",
    "pycocotools": "pycocotools.mask",
    "tqdm": "tqdm",
    "filelock": "filelock",
}
PACKAGES = (*MODULES, "triton")

# Packages that cannot be imported without others.
_DEPENDENCIES = {
    "torch": ("numpy", "tqdm"),  # it does without them, unless their imports raise other errors
    "torchvision": ("torch", "numpy", "pillow"),
    "safetensors": ("torch", "numpy"),
    "pycocotools": ("numpy",),
    "huggingface-hub": ("tqdm", "filelock"),
}
_BY_DEPENDENCIES = sorted(MODULES, key=lambda package: len(_DEPENDENCIES.get(package, ())))
_NEEDS_TORCH = "not tried without torch"
_NUMPY_MISMATCH = re.compile(
    r"numpy\.dtype size changed|_ARRAY_API|Numpy is not available|numpy\.core\.multiarray"
    r"|compiled (?:using|against).*NumPy|module compiled against"
)
_MISSING_LIBRARY = re.compile(r"([\w.+-]+\.so[\w.]*): cannot open shared object file")
_MISSING_MODULE = re.compile(r"No module named '([\w.]+)'")
_CUDA_LIBRARY = re.compile(r"lib(?:cu|nv|nccl|c10_cuda|torch_cuda)")
_VENDOR = "Vendor builds of torch and torchvision are available from the vendor only."
_FROM_SAME_SOURCE = f"from the source that torch came from. {_VENDOR}"
_HIDDEN = "hides the installed package"


def describe_broken_package() -> str:
    """Return the package that keeps the library from working and its error, on one line, "" for none."""
    for package in _BY_DEPENDENCIES:
        state = try_import(MODULES[package])
        if state != "ok":  # and no package after it: see ``describe_imports``
            version = installed_version(package) or "not installed"
            return f"{package} ({version}) does not work: {shortened(state)}"
    return ""


def describe_imports() -> dict[str, str]:
    """Return for each required package "ok", or the reason why it cannot be imported.

    Packages that others need are imported first. If torch cannot be imported, those that import it are not
    tried: a second attempt may crash the process.
    """
    states: dict[str, str] = {}
    for package in _BY_DEPENDENCIES:
        needs_torch = "torch" in _DEPENDENCIES.get(package, ()) and states["torch"] != "ok"
        states[package] = _NEEDS_TORCH if needs_torch else try_import(MODULES[package])
    return {package: states[package] for package in MODULES}


def try_import(module: str) -> str:
    """Return "ok" for a module that can be imported and works, or the reason why not."""
    try:
        require_working(module, importlib.import_module(module))
    except Exception as error:  # incompatible binaries raise errors of many types
        return describe_error(error)
    return "ok"


def installed_version(package: str) -> str | None:
    """Return the version of a package, None if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def require_working(module: str, imported: ModuleType) -> None:
    """Check that an imported module works together with those imported before it.

    Raises:
        Exception: It does not; incompatible binaries raise errors of many types.
    """
    if hasattr(imported, "__path__") and getattr(imported, "__file__", None) is None:
        raise ImportError(f"the folder {next(iter(imported.__path__), '')} {_HIDDEN}")
    for attribute in _ATTRIBUTES.get(module, ()):
        if not hasattr(imported, attribute):
            path = getattr(imported, "__file__", "an unknown file")
            raise ImportError(f"{path} has no {module}.{attribute}: it is incomplete or {_HIDDEN}")
    if module in _CHECKS and "torch" in sys.modules:
        _CHECKS[module](imported)


def _run_nms(torchvision: Any) -> None:
    import torch

    box = torch.tensor([[0.0, 0.0, 1.0, 1.0]], dtype=torch.float32, device="cpu")
    torchvision.ops.nms(box, torch.ones(1, dtype=torch.float32, device="cpu"), 0.5)


def _convert_array(numpy: Any) -> None:
    import torch

    torch.from_numpy(numpy.zeros(1, numpy.float32)).numpy()


_CHECKS: dict[str, Callable[[Any], None]] = {"torchvision": _run_nms, "numpy": _convert_array}
# One attribute of each package that a stray file of the same name lacks.
_ATTRIBUTES = {
    "torch": ("Tensor", "nn"),
    "numpy": ("ndarray",),
    "PIL.Image": ("open",),
    "huggingface_hub": ("hf_hub_download",),
    "safetensors.torch": ("load_file",),
    "pycocotools.mask": ("decode",),
    "tqdm": ("tqdm",),
    "filelock": ("FileLock",),
}


def package_fix(package: str, imports: Mapping[str, str], versions: Mapping[str, str | None]) -> str:
    """Return how to repair a package.

    Args:
        package: Name of a package whose state is not "ok".
        imports: State of each package: "ok" or the error of its import.
        versions: Installed version of each package, None if it is not installed.
    """
    state, version = imports[package], versions.get(package)
    missing = _MISSING_MODULE.search(state)
    own_module = MODULES.get(package, package).partition(".")[0]
    if missing and version is None and missing[1].partition(".")[0] == own_module:
        return _install(package)
    broken = [name for name in _DEPENDENCIES.get(package, ()) if imports.get(name, "ok") != "ok"]
    if broken:
        return f"Repair {broken[0]} first, which {package} needs. Then run 'solo-infer doctor' again."
    if _HIDDEN in state:
        return "Rename or move that file or folder, or run the command in another directory."
    if package == "torchvision" and (fix := _torchvision_fix(state, versions)):
        return fix
    if _NUMPY_MISMATCH.search(state):
        return _numpy_fix(package, versions)
    if fix := _library_fix(package, state):
        return fix
    if missing and missing[1].partition(".")[0] != own_module:
        return f"Install the missing module: pip install {missing[1].partition('.')[0]}."
    if package in ("torch", "torchvision"):
        return f"Reinstall {package} {_FROM_SAME_SOURCE}"
    return f"Reinstall it: pip install --upgrade --force-reinstall --no-deps {package}."


def torchvision_mismatch(versions: Mapping[str, str | None]) -> str:
    """Return the versions of torchvision that fit the installed torch ("0.16"), "" if it is one of them."""
    torch = re.match(r"2\.(\d+)", versions.get("torch") or "")
    torchvision = re.match(r"0\.(\d+)", versions.get("torchvision") or "")
    # torchvision 0.15 was released with torch 2.0, and each release since with the next one.
    if not torch or not torchvision or int(torchvision[1]) == int(torch[1]) + 15:
        return ""
    return f"0.{int(torch[1]) + 15}"


def _install(package: str) -> str:
    if package in ("torch", "torchvision"):
        return f"Install it: see https://pytorch.org/get-started. {_VENDOR}"
    return f"Install it: pip install {package}."


def _torchvision_fix(state: str, versions: Mapping[str, str | None]) -> str:
    fitting = torchvision_mismatch(versions)
    if fitting:
        return (
            f"torch {versions['torch']} needs torchvision {fitting}: pip install 'torchvision=={fitting}.*', "
            f"{_FROM_SAME_SOURCE}"
        )
    if "torchvision::" in state or "undefined symbol" in state or "custom C++ ops" in state:
        return (
            f"This torchvision was built for another torch than {versions['torch']}, such as a CPU build for "
            f"a CUDA build: reinstall both, {_FROM_SAME_SOURCE}"
        )
    return ""


def _numpy_fix(package: str, versions: Mapping[str, str | None]) -> str:
    if package in ("numpy", "torch"):
        return (
            f"torch {versions.get('torch')} was built for another major version of NumPy: "
            "pip install 'numpy<2', or upgrade torch."
        )
    return (
        f"{package} and numpy {versions.get('numpy')} do not fit together: "
        f"pip install --upgrade --force-reinstall --no-deps {package}, or pip install 'numpy<2'."
    )


def _library_fix(package: str, state: str) -> str:
    """Return how to repair a package whose native libraries cannot be loaded, "" for other errors."""
    library = _MISSING_LIBRARY.search(state)
    if library and library[1].startswith("libcuda.so"):
        return "Install the driver of the card, which contains this library."
    if library and _CUDA_LIBRARY.match(library[1]):
        return (
            f"Reinstall {package} with its CUDA libraries (without --no-deps), or add the directory of "
            f"{library[1]} to LD_LIBRARY_PATH. {_VENDOR}"
        )
    if library:
        return (
            f"Install the system package that contains {library[1]}, or add its directory to LD_LIBRARY_PATH."
        )
    if "GLIBC" in state or "CXXABI" in state:
        return f"This build of {package} needs a newer operating system: install an older release of it."
    if "undefined symbol" in state:
        return f"Reinstall {package} together with torch, {_FROM_SAME_SOURCE}"
    if "DLL load failed" in state:
        return "Install the Microsoft Visual C++ Redistributable, then reinstall the package."
    return ""
