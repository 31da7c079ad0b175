"""``solo-infer verify``."""

import dataclasses
import json

import pytest
import torch
from helpers.command_line import assert_clear

from solo_infer.diagnostics import verify as verification

pytest_plugins = ["helpers.command_line_fixtures"]


def test_real_checks_on_the_cpu(run, monkeypatch):
    """All tolerances are real except one, which no machine can meet."""
    strict = dataclasses.replace(verification.TOLERANCES[torch.float32], mask_scores=-1.0)
    monkeypatch.setitem(verification.TOLERANCES, torch.float32, strict)
    code, out, err = run("verify", "--model", "decoupled_light_r50", "--device", "cpu")
    assert (code, err) == (1, "")
    head, *lines, last = out.splitlines()
    assert head.split() == ["model", "quantity", "difference", "tolerance"]
    assert len(lines) == 7 and all(line.endswith("ok") or "mask scores" in line for line in lines)
    assert last == "1 of 7 checks failed (cpu, float32)"


@pytest.fixture
def checks(monkeypatch):
    """Replace the verification; return the list of checks that it yields and errors that it raises."""
    planned = []

    def verify(device, dtype, models):
        assert (device, dtype) == (torch.device("cpu"), "float16")
        for check in planned:
            if isinstance(check, Exception):
                raise check
            yield check

    monkeypatch.setattr(verification, "verify", verify)
    return planned


VERIFY = ("verify", "--device", "cpu", "--dtype", "float16")


def test_failed_checks(run, checks):
    checks += [verification.Check("m", "q", 1e-5, 1e-4), verification.Check("m", "r", 2e-4, 1e-4)]
    code, out, _ = run(*VERIFY)
    assert code == 1
    assert "1.00e-05       1e-04  ok" in out and "2.00e-04       1e-04  FAILED" in out
    assert out.endswith("1 of 2 checks failed (cpu, float16)\n")


def test_json_has_null_instead_of_nan(run, checks):
    checks += [verification.Check("m", "q", float("nan"), 1e-4), verification.Check("m", "r", 0.0, 0.0)]
    code, out, _ = run(*VERIFY, "--json")
    assert code == 1
    assert json.loads(out, parse_constant=pytest.fail) == [
        {"model": "m", "quantity": "q", "difference": None, "tolerance": 1e-4, "passed": False},
        {"model": "m", "quantity": "r", "difference": 0.0, "tolerance": 0.0, "passed": True},
    ]


def test_device_without_an_operator(run, checks):
    checks += [verification.Check("m", "q", 0.0, 0.0), RuntimeError("no kernel for Half")]
    code, _, err = run(*VERIFY)
    assert code == 1
    assert_clear(err, "DeviceError: cpu cannot compute this in float16: no kernel for Half")


def test_passed_checks(run, checks):
    checks += [verification.Check("m", "q", 0.0, 0.0)]
    code, out, _ = run(*VERIFY)
    assert code == 0
    assert out.endswith("all checks passed (cpu, float16)\n")


def test_unknown_presets(run):
    code, out, err = run("verify", "--model", "solo_r101", "solo_r50_3x")
    assert (code, out) == (1, "")
    assert_clear(err, "ConfigError", "solo_r101, solo_r50_3x", "decoupled_light_r50")


def test_mistyped_preset(run):
    code, _, err = run("verify", "--model", "decoupled_lite_r50")
    assert code == 1
    assert_clear(err, "Did you mean 'decoupled_light_r50'")


def test_unknown_device(run):
    code, _, err = run("verify", "--device", "gpu")
    assert code == 1
    assert_clear(err, "DeviceError", "expected 'auto', 'cpu', 'cuda' or 'cuda:N'")
