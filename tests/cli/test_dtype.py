"""``--dtype auto`` of the commands, and the settings of OpenMP."""

import argparse
import json
import os
import sys

import pytest
import torch
from helpers.command_line import files_below

from solo_infer.cli import main as main_module
from solo_infer.cli.main import build_parser
from solo_infer.segmenters import auto_dtype
from solo_infer.segmenters.auto_dtype import DtypeChoice

pytest_plugins = ["helpers.command_line_fixtures"]

NOTICE = "solo-infer: --dtype auto on cpu: bfloat16 (measured: twice as fast)\n"


@pytest.fixture(autouse=True)
def choice(monkeypatch):
    """Let "auto" select bfloat16."""
    selected = DtypeChoice(torch.bfloat16, "measured: twice as fast")
    monkeypatch.setattr(auto_dtype, "choose_dtype", lambda device: selected)


@pytest.mark.parametrize(
    "line",
    [
        "predict a.jpg --dtype auto",
        "eval --images a --annotations b --dtype auto",
        "benchmark a.jpg --dtype auto float32",
        "verify --dtype auto",
        "convert tiny --output a --dtype auto",
        "train --model tiny --images a --annotations b --output c --dtype auto",
    ],
)
def test_every_command_accepts_auto(line):
    assert "auto" in build_parser().parse_args(line.split()).dtype


@pytest.mark.parametrize("quiet", [True, False])
def test_predict_reports_the_choice_on_stderr(run, photos, saved, quiet):
    options = ["--dtype", "auto", "--json", "--no-save", *(["--quiet"] if quiet else [])]
    code, out, err = run("predict", "photos/1.png", "--model", saved, *options)
    assert (code, err) == (0, "" if quiet else NOTICE)
    assert len(json.loads(out)) == 1 and "auto" not in out
    assert run.loadings[-1][1]["dtype"] == "bfloat16"


def test_float32_stays_the_default(run, photos, saved):
    code, _, err = run("predict", "photos/1.png", "--model", saved, "--no-save")
    assert (code, err) == (0, "") and run.loadings[-1][1]["dtype"] == "float32"


def test_benchmark_measures_each_dtype_once(run, photos, saved):
    options = ["--dtype", "auto", "bfloat16", "--runs", 1, "--warmup", 0, "--json"]
    code, out, err = run("benchmark", "photos/1.png", "--model", saved, *options)
    assert (code, err) == (0, NOTICE)
    assert len(json.loads(out)) == 1 and run.loadings[-1][1]["dtype"] == "bfloat16"


def test_converted_files_hold_the_dtype(run, saved, tmp_path):
    from safetensors import safe_open

    code, _, _ = run("convert", saved, "--output", tmp_path / "new", "--dtype", "auto", "--quiet")
    assert code == 0 and files_below(tmp_path / "new") == ["config.json", "model.safetensors"]
    with safe_open(tmp_path / "new" / "model.safetensors", "pt") as tensors:
        assert tensors.get_tensor("mask_head.conv_cls.weight").dtype == torch.bfloat16
    assert '"auto"' not in (tmp_path / "new" / "config.json").read_text()


@pytest.mark.parametrize("has_torch", [True, False])
def test_openmp_settings_are_those_of_the_program_only(monkeypatch, has_torch):
    monkeypatch.setattr(main_module, "openmp_settings", lambda environment: {"OMP_NUM_THREADS": "1234"})
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if not has_torch:
        monkeypatch.delitem(sys.modules, "torch")
    seen = []

    def run(args):
        seen.append(os.environ.get("OMP_NUM_THREADS"))
        return 0

    assert main_module._run(argparse.Namespace(run=run, verbose=False, quiet=False)) == 0
    assert seen == [None if has_torch else "1234"] and "OMP_NUM_THREADS" not in os.environ
