"""Benchmark of a model: measurement and stages. Speed itself is not tested."""

import json

import pytest
import torch

from solo_infer.diagnostics import benchmark
from solo_infer.errors import ConfigError
from solo_infer.runtime.stopwatch import Stopwatch


def test_measurement(small_model, photo):
    measurement = benchmark.measure(small_model, photo, name="small", batch_size=2, runs=3, warmup=0)
    result = small_model(photo)
    assert (measurement.name, measurement.device, measurement.dtype) == ("small", "cpu", "float32")
    assert measurement.image == photo.shape[:2] and measurement.instances == len(result) > 0
    assert measurement.candidates >= measurement.instances
    assert all(side % 32 == 0 for side in measurement.input)
    assert tuple(measurement.stages) == benchmark.STAGES
    for timing in (*measurement.stages.values(), measurement.total):
        assert 0 < timing.p10 <= timing.median <= timing.p90
    assert measurement.images_per_second == pytest.approx(1000 / measurement.total.median)
    assert measurement.environment["torch"] == torch.__version__
    assert json.loads(json.dumps(measurement.to_dict()))["runs"] == 3


def test_percentiles():
    assert benchmark.percentiles([value / 1000 for value in range(11)]) == benchmark.Percentiles(
        5.0, 1.0, 9.0
    )
    assert benchmark.percentiles([0.002]) == benchmark.Percentiles(2.0, 2.0, 2.0)


@pytest.mark.parametrize("wrong", [{"runs": 0}, {"batch_size": 0}, {"warmup": -1}])
def test_invalid_numbers_raise(small_model, photo, wrong):
    with pytest.raises(ConfigError, match="expected 1, 1, 0 or more"):
        benchmark.measure(small_model, photo, **wrong)


def test_stopwatch_sums_by_stage(monkeypatch):
    times = iter([10.0, 11.0, 13.0, 16.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(times))
    stopwatch = Stopwatch(torch.device("cpu"))
    for stage in ("a", "b", "a"):
        stopwatch.mark(stage)
    assert stopwatch.seconds == {"a": 4.0, "b": 2.0}
