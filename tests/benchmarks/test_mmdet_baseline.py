"""Benchmark against mmdet: ratios, errors, and equal results where mmdet is installed."""

import importlib.util
from dataclasses import replace

import pytest
from helpers.command_line import assert_clear

from benchmarks import mmdet_baseline
from solo_infer.diagnostics import benchmark

pytest_plugins = ["helpers.command_line_fixtures"]


def test_ratio_lines(small_model, photo):
    ours = benchmark.measure(small_model, photo, name="ours", runs=1, warmup=0)
    total = replace(ours.total, median=3 * ours.total.median)
    theirs = replace(ours, name="mmdet's", total=total, environment={"mmdet": "3.3.0"}, candidates=None)
    expected = ["ours (float32, batch 1): 3.00 times mmdet"]
    assert mmdet_baseline.ratio_lines([ours, theirs]) == expected
    assert mmdet_baseline.ratio_lines([ours]) == []


@pytest.mark.skipif(importlib.util.find_spec("mmdet") is not None, reason="mmdet is installed")
def test_missing_mmdet_is_an_error(photos, saved, capsys):
    arguments = ["photos/1.png", "--model", str(saved), "--device", "cpu", "--runs", "1", "--warmup", "0"]
    assert mmdet_baseline.main(arguments) == 1
    assert_clear(capsys.readouterr().err, "ConfigError")


@pytest.mark.skipif(importlib.util.find_spec("mmdet") is None, reason="mmdet is not installed")
@pytest.mark.parametrize("name", ["decoupled_light_r50", "yolact_r50"])
def test_mmdet_has_equal_candidates_and_instances(name, procedural, photo):
    model = procedural(name)
    theirs = mmdet_baseline.measure_mmdet(model, photo, runs=1, warmup=0)
    ours = benchmark.measure(model, photo, runs=1, warmup=0)
    assert (theirs.candidates, theirs.instances) == (ours.candidates, ours.instances)
