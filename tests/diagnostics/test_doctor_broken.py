"""The doctor command on machines with missing, broken or mismatched packages."""

import json
import os
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
from helpers.broken_packages import describe_machines
from helpers.doctor_reports import make_report, single_problem

import solo_infer
from solo_infer.diagnostics.packages import package_fix, require_working, torchvision_mismatch

NAMES = {
    "torch": "torch",
    "torchvision": "torchvision",
    "numpy": "numpy",
    "PIL": "pillow",
    "huggingface_hub": "huggingface-hub",
    "safetensors": "safetensors",
    "pycocotools": "pycocotools",
    "tqdm": "tqdm",
    "filelock": "filelock",
}
KINDS = {
    "absent": "absent",
    "import": ["ImportError", "cannot import name 'x' from 'y'"],
    "library": ["OSError", "libfoo.so.1: cannot open shared object file: No such file or directory"],
    "operator": ["RuntimeError", "operator torchvision::nms does not exist"],
    "attribute": ["AttributeError", "partially initialized module 'x' has no attribute 'y'"],
    "system": ["SystemError", "initialization of _C raised unreported exception"],
}
CASES = list(product(NAMES, KINDS))


@pytest.fixture(scope="module")
def outcomes():
    """Collect the reports of all cases, and of a machine on which everything is missing."""
    cases = [{module: KINDS[kind]} for module, kind in CASES]
    everything = [dict.fromkeys(NAMES, KINDS[kind]) for kind in KINDS]
    outcomes = describe_machines([*cases, *everything])
    return dict(zip([*CASES, *KINDS], outcomes, strict=True))


@pytest.mark.parametrize("module, kind", CASES)
def test_broken_packages_are_reported_with_their_cure(module, kind, outcomes):
    outcome = outcomes[module, kind]
    assert outcome["traceback"] == ""
    package = NAMES[module]
    (problem,) = (
        item for item in outcome["report"]["problems"] if item["problem"].startswith(f"{package} (")
    )
    assert problem["problem"] in outcome["text"] and problem["fix"] in outcome["text"]
    if kind == "absent":
        assert "(not installed)" in problem["problem"] and problem["fix"].startswith("Install it")
        assert package in problem["fix"] or "pytorch.org" in problem["fix"]
    if kind == "library":
        assert "libfoo.so.1" in problem["fix"] and "LD_LIBRARY_PATH" in problem["fix"]
    if kind == "operator" and module == "torchvision":
        assert "built for another torch than 2.1.2" in problem["fix"]


@pytest.mark.parametrize("kind", KINDS)
def test_machine_without_any_working_package(kind, outcomes):
    outcome = outcomes[kind]
    assert outcome["traceback"] == ""
    assert outcome["report"]["torch"] is None and "CUDA: unknown" in outcome["text"]
    assert {item["problem"].split(" ")[0] for item in outcome["report"]["problems"]} >= set(NAMES.values())


def test_sections_that_fail_are_named(outcomes):
    """The stub of torch has no devices that could be described."""
    report = outcomes["filelock", "absent"]["report"]
    assert "devices" in report["errors"]
    assert any(item["problem"].startswith("The check of devices failed") for item in report["problems"])


@pytest.mark.parametrize("error", ["ImportError('no')", "OSError('libtorch.so: cannot open')", "SystemError"])
def test_commands_on_a_machine_with_broken_torch(error, tmp_path):
    (tmp_path / "torch.py").write_text(f"raise {error}\n")
    root = str(Path(solo_infer.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{root}", "SOLO_INFER_OFFLINE": "1"}
    imported = "import solo_infer; print(solo_infer.__version__, len(dir(solo_infer)))"
    for arguments in (["-m", "solo_infer", "doctor"], ["-c", imported]):
        process = subprocess.run(
            [sys.executable, *arguments], capture_output=True, text=True, timeout=120, env=environment
        )
        assert (process.returncode, process.stderr) == (0, ""), process.stderr
    assert process.stdout.startswith(solo_infer.__version__)


# --- Cures


@pytest.mark.parametrize(
    "package, state, versions, fix",
    [
        ("torchvision", "RuntimeError: operator torchvision::nms does not exist",
         {"torch": "2.4.0", "torchvision": "0.16.2"}, "torch 2.4.0 needs torchvision 0.19"),
        ("torchvision", "OSError: _C.so: undefined symbol: _ZN3c10",
         {"torch": "2.14.1+cu130", "torchvision": "0.29.1"}, "built for another torch than 2.14.1+cu130"),
        ("torchvision", "RuntimeError: Couldn't load custom C++ ops",
         {"torch": "2.1.0", "torchvision": "0.16.0+cpu"}, "built for another torch than 2.1.0"),
        ("numpy", "RuntimeError: Numpy is not available",
         {"torch": "2.1.0", "numpy": "2.0.1"}, "pip install 'numpy<2'"),
        ("pycocotools", "ValueError: numpy.dtype size changed, may indicate binary incompatibility",
         {"numpy": "1.23.0"}, "pycocotools and numpy 1.23.0 do not fit together"),
        ("torch", "ImportError: libcudnn.so.8: cannot open shared object file: No such file",
         {"torch": "2.1.0"}, "Reinstall torch with its CUDA libraries"),
        ("torch", "OSError: libcuda.so.1: cannot open shared object file", {}, "Install the driver"),
        ("torch", "OSError: libgomp.so.1: cannot open shared object file", {}, "contains libgomp.so.1"),
        ("torch", "ImportError: libm.so.6: version `GLIBC_2.27' not found", {}, "newer operating system"),
        ("torch", "ModuleNotFoundError: No module named 'typing_extensions'",
         {"torch": "2.1.0"}, "pip install typing_extensions"),
        ("torch", "ImportError: DLL load failed while importing _C", {}, "Visual C++"),
        ("torch", "ImportError: /home/me/torch.py has no torch.Tensor: it is incomplete or hides the "
         "installed package", {"torch": "2.1.0"}, "Rename or move that file"),
        ("huggingface-hub", "ImportError: cannot import name 'is_offline_mode'",
         {"huggingface-hub": "0.1"}, "pip install --upgrade --force-reinstall --no-deps huggingface-hub"),
        ("torch", "AttributeError: x", {"torch": "2.1.0"}, "available from the vendor only"),
    ],
)  # fmt: skip
def test_cures(package, state, versions, fix):
    assert fix in package_fix(package, {package: state}, versions)


def test_packages_that_need_a_broken_one():
    imports = {"torch": "OSError: x", "torchvision": "OSError: x", "numpy": "ok"}
    fix = package_fix("torchvision", imports, {"torchvision": "0.16"})
    assert fix.startswith("Repair torch first, which torchvision needs")


def test_stray_modules_are_told_from_packages(tmp_path, monkeypatch):
    (tmp_path / "stray_folder").mkdir()
    (tmp_path / "tqdm_stray.py").write_text("x = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    import stray_folder
    import tqdm_stray

    with pytest.raises(ImportError, match="stray_folder hides the installed package"):
        require_working("stray_folder", stray_folder)
    with pytest.raises(ImportError, match=r"tqdm_stray.py has no tqdm.tqdm: it is incomplete or hides"):
        require_working("tqdm", tqdm_stray)


@pytest.mark.parametrize(
    "torch, torchvision, expected",
    [
        ("2.1.0", "0.16.0", ""),
        ("2.14.1+cu130", "0.29.1", ""),
        ("2.1.0", "0.17.0", "0.16"),
        ("2.6.0", "0.16.0", "0.21"),
        ("2.1.0+corex.3.2", "0.16.0a0", ""),
        (None, "0.16.0", ""),
        ("1.13.0", "0.14.0", ""),
    ],
)
def test_versions_of_torchvision(torch, torchvision, expected):
    assert torchvision_mismatch({"torch": torch, "torchvision": torchvision}) == expected


# --- Machines that are not broken


def test_broken_triton_matters_on_cards_only():
    problem = single_problem(make_report(torch={"triton": "ImportError: x"}, packages={"triton": "3.0"}))
    assert problem["problem"] == "triton (3.0) cannot be imported: ImportError: x."
    make_report(torch={"triton": None})


def test_a_slow_dtype_of_the_cpu_is_not_a_problem():
    report = make_report()
    rates = {"float32": 100.4, "bfloat16": 20.0}
    report["devices"][0].update(device="cpu", rates=rates, product_rates=rates)
    report["devices"][0]["works"]["bfloat16"] = "slow: 5 times the time of float32"
    from solo_infer.diagnostics.doctor import find_problems, format_report

    assert find_problems(report) == []
    text = format_report({**report, "problems": []})
    assert "GFLOP/s of 3x3 convolutions: float32 100, bfloat16 20; of matrix products: float32 100" in text


@pytest.mark.parametrize(
    "missing, sources, count",
    [
        ({}, {"https://a": "unreachable: x"}, 0),
        ({"m": ["https://a"]}, {"https://a": "unreachable: x"}, 1),
        ({"m": ["https://a", "https://b"]}, {"https://a": "unreachable: x", "https://b": "reachable"}, 0),
        ({"m": ["https://a", "https://b"]}, dict.fromkeys(["https://a", "https://b"], "unreachable: x"), 2),
        ({"m": ["https://b"]}, {"https://a": "unreachable: x", "https://b": "reachable"}, 0),
        ({"m": ["https://a"]}, {"https://a": "not tested (offline)"}, 0),
    ],
)
def test_unreachable_hosts_matter_for_missing_models_only(missing, sources, count):
    from solo_infer.diagnostics.doctor import find_problems

    report = make_report(sources=sources)
    report["cache"]["missing"] = missing
    problems = find_problems(report)
    assert len(problems) == count
    assert all("m." in problem["problem"] for problem in problems)
    assert json.dumps(problems)
