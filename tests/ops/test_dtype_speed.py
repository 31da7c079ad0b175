"""Measurement of the speed of the dtypes."""

import pytest
import torch

from solo_infer.ops import dtype_speed
from solo_infer.ops.dtype_speed import DtypeSpeed, measure_speeds


def fake_times(monkeypatch, times):
    """Let operations take given times, in their order of calls."""
    remaining = iter(times)
    monkeypatch.setattr(dtype_speed, "_operations", lambda dtype: (dtype, dtype))
    monkeypatch.setattr(dtype_speed, "_seconds", lambda operation: next(remaining))


def test_real_measurement_is_positive_and_leaves_no_trace():
    state = torch.get_rng_state()
    with torch.inference_mode():
        speeds = measure_speeds([torch.float32])
    assert speeds[torch.float32].convolution > 0 and speeds[torch.float32].product > 0
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("noise, is_steady", [(1.0, True), (3.0, False)])
def test_shortest_times_count_without_the_first_round(monkeypatch, noise, is_steady):
    rounds = [(9.0, 9.0), (2.0, 1.0), *[(2.0 * noise, 1.0 * noise)] * 4]
    fake_times(monkeypatch, [time / 1e3 for pair in rounds for time in pair])
    speed = measure_speeds([torch.float32])[torch.float32]
    assert speed.seconds == pytest.approx(0.003) and speed.is_steady == is_steady
    assert speed.convolution / speed.product == pytest.approx(9 / 4 / 2)


def test_slow_machines_measure_once(monkeypatch):
    clock = iter([0.0, 5.0])
    monkeypatch.setattr(dtype_speed.time, "perf_counter", lambda: next(clock))
    fake_times(monkeypatch, [3.0, 1.0, 1.0, 1.0])
    speeds = measure_speeds([torch.float32, torch.bfloat16])
    assert [speed.seconds for speed in speeds.values()] == pytest.approx([4.0, 2.0])
    assert not any(speed.is_steady for speed in speeds.values())


def test_seconds_of_a_speed():
    assert DtypeSpeed(2.0, 4.0).seconds == pytest.approx(DtypeSpeed(1.0, 2.0).seconds / 2)
