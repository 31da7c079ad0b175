"""Every command on a machine with a broken package: one line that names it, and no traceback."""

import json
import os
import subprocess
import sys

import pytest
import torch
import torchvision
from helpers.coco_sets import content, draw_images, write
from helpers.paths import ROOT

from solo_infer.segmenters import auto

pytest_plugins = ["helpers.command_line_fixtures"]

RUN_COMMANDS = """
import contextlib, io, json, os, sys
from solo_infer.cli.main import main
for arguments in json.load(sys.stdin):
    err = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(err):
        code = main(arguments)
    print(json.dumps([code, err.getvalue()]), flush=True)
os._exit(0)  # a torch of which the import has failed several times may crash at the end of the process
"""
# Source of a module that hides the installed one, by package.
BROKEN = {
    "torch": "raise OSError('libtorch_cpu.so: cannot open shared object file: No such file or directory')",
    "torchvision": "raise RuntimeError('operator torchvision::nms does not exist')",
    "numpy": "raise AttributeError('_ARRAY_API not found')",
    "pycocotools": "raise ValueError('numpy.dtype size changed, may indicate binary incompatibility')",
    "tqdm": "raise SystemError('initialization failed')",
}
USES = {  # commands that cannot do without the package
    "torch": "predict eval train benchmark convert export",
    "torchvision": "train",
    "numpy": "predict eval train benchmark",
    "pycocotools": "eval",
    "tqdm": "predict eval train",
}


@pytest.mark.parametrize("package", BROKEN)
def test_commands_name_the_package_and_the_doctor(package, tmp_path):
    values = content()
    draw_images(tmp_path / "images", values)
    images, annotations = str(tmp_path / "images"), str(write(tmp_path / "annotations.json", values))
    data = ["--model", "tiny", "--images", images, "--annotations", annotations, "--device", "cpu"]
    commands = {
        "predict": [f"{images}/3.png", "--model", "tiny", "--no-save", "--device", "cpu"],
        "eval": data,
        "train": [*data, "--output", str(tmp_path / "run"), "--epochs", "1", "--workers", "0"],
        "benchmark": [f"{images}/3.png", "--model", "tiny", "--runs", "1", "--warmup", "0"],
        "models": [],
        "info": ["missing.pth"],
        "download": ["tiny"],
        "convert": ["missing.pth", "--output", str(tmp_path / "converted")],
        "export": ["missing.pth", "--output", str(tmp_path / "x.onnx"), "--input-size", "64", "64"],
        "verify": ["--model", "missing.pth"],
    }
    outcomes = dict(zip(commands, run_commands(package, commands, tmp_path), strict=True))
    for command, (code, err) in outcomes.items():
        assert code in (0, 1) and "Traceback" not in err, (command, err)
        if command in USES[package].split() and command not in ("convert", "export"):
            assert code == 1, command
        if code == 1 and "missing.pth" not in err:
            last = err.splitlines()[-1]
            assert last.startswith(f"solo-infer: {package} (") and "'solo-infer doctor'" in last, err


def run_commands(package, commands, folder):
    """Return exit code and standard error of commands, run by one process with a broken package."""
    hidden = folder / "broken"
    hidden.mkdir()
    (hidden / f"{package}.py").write_text(BROKEN[package] + "\n")
    process = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", RUN_COMMANDS],
        input=json.dumps([[name, *arguments] for name, arguments in commands.items()]),
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": f"{hidden}{os.pathsep}{ROOT}", "SOLO_INFER_OFFLINE": "1"},
    )
    assert process.returncode == 0, process.stderr
    return [json.loads(line) for line in process.stdout.splitlines()]


@pytest.mark.parametrize(
    "package, owner, function, message",
    [
        ("numpy", torch, "from_numpy", "Numpy is not available"),
        ("torchvision", torchvision.ops, "nms", "Couldn't load custom C++ ops"),
    ],
)
def test_mismatched_packages_that_can_be_imported(
    run, saved, photos, monkeypatch, package, owner, function, message
):
    def refuse(*arguments, **options):
        raise RuntimeError(message)

    monkeypatch.setattr(owner, function, refuse)
    monkeypatch.setattr(auto, "load_model", refuse)
    code, _, err = run("predict", "photos/1.png", "--model", saved)
    assert code == 1 and err.count("\n") == 1
    assert (
        err.startswith(f"solo-infer: {package} (")
        and f"RuntimeError: {message}; run 'solo-infer doctor'" in err
    )


def test_defects_of_the_library_keep_their_traceback(run, saved, photos, monkeypatch):
    def fail(*arguments, **options):
        raise ZeroDivisionError

    monkeypatch.setattr(auto, "load_model", fail)
    with pytest.raises(ZeroDivisionError):
        run("predict", "photos/1.png", "--model", saved)


def test_doctor_and_predict_end_without_a_crash(tmp_path):
    """Torch imports tqdm, and crashed at the end of a process that had tried to import torch twice."""
    (tmp_path / "tqdm.py").write_text(BROKEN["tqdm"] + "\n")
    path = f"{tmp_path}{os.pathsep}{ROOT}"
    for command, code in (("doctor", 0), ("predict missing.jpg --model tiny", 1)):
        process = subprocess.run(
            [sys.executable, "-m", "solo_infer", *command.split()],
            capture_output=True,
            text=True,
            timeout=120,
            env={**os.environ, "PYTHONPATH": path, "SOLO_INFER_OFFLINE": "1"},
        )
        assert process.returncode == code, process.stderr
        assert "tqdm (" in process.stdout + process.stderr and "Traceback" not in process.stderr
