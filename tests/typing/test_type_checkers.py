"""The script of a user passes the strictest modes of mypy and pyright."""

import importlib.util
import inspect
import json
import shutil
import subprocess
import sys
from typing import get_type_hints

import pytest
from helpers.paths import ROOT

from solo_infer import Result
from solo_infer.results.plot_options import PlotOptions

FOLDER = ROOT / "tests" / "typing"
SCRIPTS = ("user_script.py", "faulty_script.py")
FAULTY = FOLDER / "faulty_script.py"
EXPECTED = {
    number for number, line in enumerate(FAULTY.read_text().splitlines(), 1) if line.endswith("# error")
}


def check(*command, folder):
    process = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=500, cwd=folder)
    return process.returncode, process.stdout + process.stderr


@pytest.fixture
def mypy(tmp_path):
    if importlib.util.find_spec("mypy") is None:
        pytest.skip("mypy is not installed")
    (tmp_path / "mypy.ini").write_text(
        f"[mypy]\nmypy_path = {ROOT}\n[mypy-solo_infer.*]\nfollow_imports = silent\n"
        "[mypy-pycocotools.*,torchvision.*,tqdm.*]\nignore_missing_imports = True\n"
    )
    options = ["--strict", "--config-file", tmp_path / "mypy.ini", "--cache-dir", ROOT / ".mypy_cache"]
    paths = [FOLDER / name for name in SCRIPTS]
    return lambda: check(sys.executable, "-m", "mypy", *options, *paths, folder=tmp_path)


@pytest.fixture
def pyright(tmp_path):
    if shutil.which("pyright") is None or shutil.which("node") is None:
        pytest.skip("pyright or node is not installed")
    settings = {
        "include": ["."],
        "extraPaths": [str(ROOT)],
        "typeCheckingMode": "strict",
        "pythonVersion": "3.10",
    }
    for name in SCRIPTS:
        shutil.copy(FOLDER / name, tmp_path)
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(settings))

    def run(name):
        _, output = check(
            "pyright", "--outputjson", "-p", tmp_path, "--pythonpath", sys.executable, folder=tmp_path
        )
        try:
            found = json.loads(output[output.find("{") :])["generalDiagnostics"]
        except ValueError:
            pytest.skip(f"pyright does not run here: {output[-200:]}")
        errors = [item for item in found if item["file"].endswith(name) and item["severity"] == "error"]
        return [(item["range"]["start"]["line"] + 1, item["message"]) for item in errors]

    return run


@pytest.mark.soak
def test_mypy(mypy):
    _, output = mypy()
    assert "user_script.py" not in output, output
    lines = {
        int(line.split(":")[1]) for line in output.splitlines() if line.count(":") > 2 and "error:" in line
    }
    assert lines == EXPECTED, output


def test_pyright(pyright):
    assert pyright("user_script.py") == []
    assert {line for line, _ in pyright("faulty_script.py")} == EXPECTED


def test_options_of_save_are_those_of_plot():
    parameters = inspect.signature(Result.plot).parameters
    assert list(get_type_hints(PlotOptions)) == [name for name in parameters if name != "self"]
    annotations = {name: item.annotation for name, item in parameters.items() if name != "self"}
    assert {name: hint.__forward_arg__ for name, hint in PlotOptions.__annotations__.items()} == annotations
