"""Doctor reports of machines with broken packages, collected in a process of its own.

Run as a script, it reads a list of cases as JSON and prints one outcome per case. A case is {module: error},
where the error is [name of the type, message], or "absent" for a package that is not installed. All other
packages are stubs, so that nothing real is imported.
"""

import builtins
import importlib.metadata
import json
import os
import subprocess
import sys
import traceback
from types import ModuleType

VERSIONS = {"torch": "2.1.2", "torchvision": "0.16.2", "numpy": "1.26.4", "pillow": "10.0.0"}
PACKAGE_OF = {"PIL": "pillow", "huggingface_hub": "huggingface-hub"}


class Stub(ModuleType):
    """Module whose attributes are functions that return a stub."""

    __path__ = ()
    __file__ = "/site-packages/stub.py"

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *args, **kwargs: Stub(name)


class Finder:
    """Import stubs, and raise the errors of a case."""

    def __init__(self, case):
        self.case = case

    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        error = self.case.get(top)
        if error == "absent":
            raise ModuleNotFoundError(f"No module named {top!r}", name=top)
        if error is not None:
            raise getattr(builtins, error[0])(error[1])
        if top in STUBBED:
            return importlib.machinery.ModuleSpec(name, self)
        return None

    def create_module(self, spec):
        return Stub(spec.name)

    def exec_module(self, module):
        pass


STUBBED = ("torch", "torchvision", "numpy", "PIL", "huggingface_hub", "safetensors", "pycocotools", "tqdm")
STUBBED += ("filelock", "triton")


def describe(case):
    """Return the report of a case, its text, and the traceback of an error."""
    for name in [name for name in sys.modules if name.partition(".")[0] in STUBBED]:
        del sys.modules[name]
    finder = Finder(case)
    absent = {PACKAGE_OF.get(name, name) for name, error in case.items() if error == "absent"}

    def version(package):
        if package in absent:
            raise importlib.metadata.PackageNotFoundError(package)
        return VERSIONS.get(package, "1.0")

    importlib.metadata.version, original = version, importlib.metadata.version
    sys.meta_path.insert(0, finder)
    try:
        from solo_infer.diagnostics.doctor import collect_report, format_report

        report = collect_report()
        return {"report": report, "text": format_report(report), "traceback": ""}
    except BaseException:
        return {"report": None, "text": "", "traceback": traceback.format_exc()}
    finally:
        sys.meta_path.remove(finder)
        importlib.metadata.version = original


def describe_machines(cases):
    """Return the outcomes of cases."""
    process = subprocess.run(
        [sys.executable, __file__],
        input=json.dumps(cases),
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "SOLO_INFER_OFFLINE": "1"},
    )
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout)


if __name__ == "__main__":
    print(json.dumps([describe(case) for case in json.load(sys.stdin)]))
