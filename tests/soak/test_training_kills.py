"""Training that is killed at random moments ends as an undisturbed run (``pytest -m soak``)."""

import multiprocessing
import os
import random
import sys
import time
from dataclasses import replace

import pytest
from helpers.training_runs import (
    ONE_LAYER,
    QUICK_FINE_TUNE,
    Noise,
    assert_equal_runs,
    one_layer_model,
    small_start,
    sum_of_weights,
    write_nuts_and_bolts,
)

from solo_infer.training import fine_tune, fit

CYCLES = int(os.environ.get("SOLO_INFER_SOAK_CYCLES", "10"))
MAX_KILLS = 500  # of a run


def train_one_layer(folder, data, workers):
    """Train for 60 iterations, with a state after each of them and 20 evaluations."""
    recipe = replace(ONE_LAYER, epochs=20, save_every=1, log_every=2)
    fit(one_layer_model(), Noise(3), folder, recipe, device="cpu", evaluate=sum_of_weights, resume=True)


def train_on_files(folder, data, workers):
    """Fine-tune a small network on image files, with validation."""
    recipe = replace(QUICK_FINE_TUNE, epochs=4, save_every=1, workers=workers, ema_decay=0.9)
    fine_tune(small_start(), data, folder, recipe, validation=data, device="cpu", resume=True)


def start(train, *arguments):
    """Return a process that trains, forked because that takes no time, without plots for the same reason."""
    sys.modules["matplotlib.figure"] = None
    process = multiprocessing.get_context("fork").Process(target=train, args=arguments)
    process.start()
    return process


@pytest.mark.soak
@pytest.mark.parametrize("train", [train_one_layer, train_on_files])
def test_killed_runs_end_as_undisturbed_ones(tmp_path, train):
    data = write_nuts_and_bolts(tmp_path / "data")
    begin = time.monotonic()
    undisturbed = start(train, tmp_path / "undisturbed", data, 0)
    undisturbed.join()
    assert undisturbed.exitcode == 0
    duration = time.monotonic() - begin
    moments, kills = random.Random(0), []
    for cycle in range(CYCLES):
        folder = tmp_path / str(cycle)
        kills.append(0)
        while kills[-1] < MAX_KILLS:
            process = start(train, folder, data, cycle % 2)
            process.join(moments.uniform(0, 0.3 * duration))
            if process.exitcode is not None:
                break
            process.kill()
            process.join()
            kills[-1] += 1
        assert process.exitcode == 0
        assert_equal_runs(folder, tmp_path / "undisturbed")
    print(f"{CYCLES} runs of {duration:.1f} s, killed {sum(kills)} times: {kills}")
    assert any(kills)
