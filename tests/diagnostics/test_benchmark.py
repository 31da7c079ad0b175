"""The benchmark counts what it says it counts; no test asserts how fast anything is."""

import importlib.util
import json
from dataclasses import replace

import pytest
import torch

from solo_infer.diagnostics import benchmark
from solo_infer.diagnostics.mmdet_baseline import measure_mmdet
from solo_infer.errors import ConfigError
from solo_infer.runtime.stopwatch import Stopwatch


def test_measurement(small_model, photo):
    found = benchmark.measure(small_model, photo, name="small", batch_size=2, runs=3, warmup=0)
    result = small_model(photo)
    assert (found.name, found.device, found.dtype) == ("small", "cpu", "float32")
    assert found.image == photo.shape[:2] and found.instances == len(result) > 0
    assert found.candidates >= found.instances
    assert all(side % 32 == 0 for side in found.input)
    assert tuple(found.stages) == benchmark.STAGES
    for spread in (*found.stages.values(), found.total):
        assert 0 < spread.p10 <= spread.median <= spread.p90
    assert found.images_per_second == pytest.approx(1000 / found.total.median)
    assert found.environment["torch"] == torch.__version__
    assert json.loads(json.dumps(found.to_dict()))["runs"] == 3


def test_spread():
    assert benchmark.spread([value / 1000 for value in range(11)]) == benchmark.Percentiles(5.0, 1.0, 9.0)
    assert benchmark.spread([0.002]) == benchmark.Percentiles(2.0, 2.0, 2.0)


@pytest.mark.parametrize("wrong", [{"runs": 0}, {"batch_size": 0}, {"warmup": -1}])
def test_wrong_numbers(small_model, photo, wrong):
    with pytest.raises(ConfigError, match="expected 1, 1, 0 or more"):
        benchmark.measure(small_model, photo, **wrong)


def test_stopwatch_adds_up(monkeypatch):
    times = iter([10.0, 11.0, 13.0, 16.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(times))
    watch = Stopwatch(torch.device("cpu"))
    for stage in ("a", "b", "a"):
        watch.mark(stage)
    assert watch.seconds == {"a": 4.0, "b": 2.0}


def test_ratios_to_mmdet(small_model, photo):
    ours = benchmark.measure(small_model, photo, name="ours", runs=1, warmup=0)
    total = replace(ours.total, median=3 * ours.total.median)
    theirs = replace(ours, name="mmdet's", total=total, environment={"mmdet": "3.3.0"}, candidates=None)
    table = benchmark.format_table([ours, theirs])
    assert "ours (float32, batch 1): 3.00 times mmdet" in table
    assert "times mmdet" not in benchmark.format_table([ours])


@pytest.mark.skipif(importlib.util.find_spec("mmdet") is not None, reason="mmdet is installed")
def test_without_mmdet(procedural, photo):
    with pytest.raises(ConfigError, match="needs mmdet 3.3"):
        measure_mmdet(procedural("decoupled_light_r50"), photo, runs=1)


@pytest.mark.skipif(importlib.util.find_spec("mmdet") is None, reason="mmdet is not installed")
@pytest.mark.parametrize("name", ["decoupled_light_r50", "yolact_r50"])
def test_mmdet_finds_the_same(name, procedural, photo):
    model = procedural(name)
    found = measure_mmdet(model, photo, runs=1, warmup=0)
    ours = benchmark.measure(model, photo, runs=1, warmup=0)
    assert (found.candidates, found.instances) == (ours.candidates, ours.instances)
