"""Runs that end early: at any point, on a full disk, by Ctrl-C, and resumed with other settings."""

import contextlib
import json
import logging
import os
import resource
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.training_runs import (
    ONE_LAYER,
    Noise,
    assert_equal_runs,
    one_layer_model,
    state_tensors,
    sum_of_weights,
)

from solo_infer.config import Categories
from solo_infer.config.solo import PostprocessConfig
from solo_infer.errors import CacheError, CheckpointError, TrainingError
from solo_infer.training import checkpointing, fit
from solo_infer.training.metrics_log import read_rows

STATE = checkpointing.STATE_NAME


def run(folder, *, batches=None, recipe=ONE_LAYER, model=None, evaluate=sum_of_weights, resume=True):
    return fit(
        model or one_layer_model(),
        batches or Noise(),
        folder,
        recipe,
        device="cpu",
        evaluate=evaluate,
        resume=resume,
    )


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """Directory of an undisturbed run."""
    return run(tmp_path_factory.mktemp("run") / "expected")


class Stopped(Exception):
    """Raised to end a run."""


def stop_once(error, condition=lambda *arguments: True):
    """Return a function that raises an error in the first call that meets a condition."""
    errors = [error]

    def stop(*arguments, **options):
        if errors and condition(*arguments):
            raise errors.pop()

    return stop


@pytest.mark.parametrize("error", [Stopped(), KeyboardInterrupt()], ids=repr)
@pytest.mark.parametrize("evaluation", [1, 2])
def test_lost_evaluations_are_made_up_for(tmp_path, expected, error, evaluation):
    calls = []

    def evaluate(model):
        calls.append(len(calls) + 1)
        if calls[-1] == evaluation:
            raise error
        return sum_of_weights(model)

    with pytest.raises(type(error)):
        run(tmp_path, evaluate=evaluate)
    run(tmp_path)
    assert [row["epoch"] for row in read_rows(tmp_path / "evaluation.csv")] == ["1", "2"]
    assert_equal_runs(tmp_path, expected)
    run(tmp_path, evaluate=stop_once(Stopped()))  # nothing is evaluated twice
    assert_equal_runs(tmp_path, expected)


@pytest.mark.parametrize("name", ["best/model.safetensors", "evaluation.csv"])
def test_run_that_dies_while_an_evaluation_is_recorded(tmp_path, expected, monkeypatch, name):
    replace_file = os.replace

    def stop(source, target):
        if str(target).endswith(name):
            raise Stopped
        replace_file(source, target)

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(os, "replace", stop)
        run(tmp_path)
    run(tmp_path)
    assert_equal_runs(tmp_path, expected)


@pytest.mark.usefixtures("default_ctrl_c")
@pytest.mark.parametrize(
    "place",
    [
        "torch.optim.SGD.zero_grad",
        "solo_infer.training.checkpointing.LossScaler.step",
        "solo_infer.training.checkpointing.WeightAverage.update",
        "solo_infer.training.metrics_log.MetricsLogger.add",
        "solo_infer.training.metrics_log.MetricsLogger.flush",
        "solo_infer.training.checkpointing.save_state",
    ],
)
@pytest.mark.parametrize("after", [False, True])
def test_ctrl_c_neither_loses_nor_repeats_a_step(tmp_path, expected, monkeypatch, place, after):
    """Send the signal itself before or after a part of the second iteration."""
    recipe = replace(ONE_LAYER, save_every=1)
    owner, _, name = place.rpartition(".")
    module, _, kind = owner.rpartition(".")
    owner = getattr(__import__(module, fromlist=[kind]), kind) if kind[0].isupper() else checkpointing
    original, calls = getattr(owner, name), []

    def interrupted(*arguments, **options):
        calls.append(name)
        if len(calls) == 2 and not after:
            os.kill(os.getpid(), signal.SIGINT)
        result = original(*arguments, **options)
        if len(calls) == 2 and after:
            os.kill(os.getpid(), signal.SIGINT)
        return result

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(owner, name, interrupted)
        run(tmp_path, recipe=recipe)
    assert checkpointing.load_state(tmp_path / STATE)[1]["iteration"] == 2
    run(tmp_path, recipe=recipe)
    assert_equal_runs(tmp_path, expected)


def test_interrupt_within_a_step_keeps_the_last_state(tmp_path, expected, monkeypatch):
    """Raise the exception where a second Ctrl-C would: the weights of half a step are not saved."""
    stop = stop_once(KeyboardInterrupt(), lambda average, weights, updates: updates == 2)
    update = checkpointing.WeightAverage.update

    def interrupted(*arguments):
        stop(*arguments)
        update(*arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(checkpointing.WeightAverage, "update", interrupted)
        run(tmp_path, recipe=replace(ONE_LAYER, save_every=1))
    assert checkpointing.load_state(tmp_path / STATE)[1]["iteration"] == 1
    run(tmp_path)
    assert_equal_runs(tmp_path, expected)


def test_rows_of_a_resumed_run_have_the_means_of_an_undisturbed_one(tmp_path):
    recipe = replace(ONE_LAYER, log_every=3)
    run(tmp_path / "expected", recipe=recipe)
    stop = stop_once(KeyboardInterrupt(), lambda epoch, index: index == 2)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "resumed", recipe=recipe, batches=Noise(before=stop))
    run(tmp_path / "resumed", recipe=recipe)
    assert_equal_runs(tmp_path / "resumed", tmp_path / "expected")


NAMES = ("cat", "dog", "bird")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"recipe": replace(ONE_LAYER, lr=0.5)}, r"lr 0\.01 -> 0\.5"),
        ({"recipe": replace(ONE_LAYER, epochs=3, seed=1)}, "epochs 2 -> 3; seed 0 -> 1"),
        (
            {"categories": Categories(("dog", "cat", "bird"))},
            r"classes \['cat', 'dog', 'bird'\] -> \['dog', ",
        ),
        ({"categories": Categories(NAMES, (1, 2, 5))}, r"category ids \[1, 2, 3\] -> \[1, 2, 5\]"),
        ({"categories": Categories(("Cat", "dog", "bird"))}, "classes .*'Cat'"),
        ({"head": "decoupled"}, "architecture.head 'decoupled_light' -> 'decoupled'"),
        ({"thresholds": PostprocessConfig(max_per_image=7)}, "thresholds.max_per_image 100 -> 7"),
        ({"batches": Noise(3)}, "batches per epoch 4 -> 3"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_runs_of_another_start_are_not_resumed(tmp_path, changes, message):
    quick = replace(ONE_LAYER, epochs=2)
    stop = stop_once(Stopped(), lambda epoch, index: epoch == 1)
    with pytest.raises(Stopped):
        run(tmp_path, batches=Noise(before=stop), recipe=quick)
    before = (tmp_path / STATE).read_bytes()
    options = {key: changes[key] for key in ("recipe", "batches") if key in changes}
    model = {key: value for key, value in changes.items() if key not in options}
    with pytest.raises(TrainingError, match=f"another recipe, model or data set: {message}") as caught:
        run(tmp_path, **options, model=one_layer_model(**model) if model else None)
    assert len(str(caught.value)) < 400
    assert (tmp_path / STATE).read_bytes() == before


def test_settings_that_do_not_change_the_weights_may_change(tmp_path, expected):
    stop = stop_once(Stopped(), lambda epoch, index: epoch == 1)
    with pytest.raises(Stopped):
        run(tmp_path, batches=Noise(before=stop), recipe=replace(ONE_LAYER, save_every=2, workers=3))
    run(tmp_path)
    assert_equal_runs(tmp_path, expected)


def change_facts(path, change):
    """Rewrite a state after ``change(facts)``."""
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    facts = json.loads(metadata["facts"])
    change(facts)
    save_file(load_file(path), path, {**metadata, "facts": json.dumps(facts)})


def test_state_of_an_earlier_version_is_resumed_with_a_warning(tmp_path, expected, caplog):
    stop = stop_once(Stopped(), lambda epoch, index: epoch == 1)
    with pytest.raises(Stopped):
        run(tmp_path, batches=Noise(before=stop))
    change_facts(
        tmp_path / STATE, lambda facts: [facts.pop(key) for key in ("model", "data", "running_means")]
    )
    with caplog.at_level(logging.WARNING):
        run(tmp_path)
    assert "saved by an earlier version" in caplog.text
    assert_equal_runs(tmp_path, expected)


@pytest.mark.parametrize(
    "change",
    [
        lambda facts: facts.pop("iteration"),
        lambda facts: facts.update(iteration=99),
        lambda facts: facts.update(iteration="1"),
        lambda facts: facts.update(recipe=[1]),
        lambda facts: facts.update(model={"family": "unknown"}),
        lambda facts: facts.update(optimizer_numbers={"nothing/step": 1}),
        lambda facts: facts.update(running_means=5),
        lambda facts: facts.clear(),
    ],
)
def test_damaged_facts_are_reported(tmp_path, expected, change):
    tmp_path.joinpath(STATE).write_bytes((expected / STATE).read_bytes())
    change_facts(tmp_path / STATE, change)
    with pytest.raises((CheckpointError, ValueError)) as caught:
        run(tmp_path)
    assert type(caught.value).__module__ == "solo_infer.errors"


def test_state_of_another_network_is_reported(tmp_path, expected):
    model = one_layer_model()
    model.network.head = torch.nn.Linear(4, 2)
    tmp_path.joinpath(STATE).write_bytes((expected / STATE).read_bytes())
    with pytest.raises(CheckpointError, match="does not fit the model"):
        run(tmp_path, model=model)


@contextlib.contextmanager
def limited_file_size(size):
    """Let writes beyond a size fail, as on a full disk."""
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("size", [0, 200, 700, 1500])
def test_full_disk_at_any_write(tmp_path, expected, size):
    """Each file is written up to some size only; the run goes on where it was when there is space again."""
    with limited_file_size(size), pytest.raises(CacheError, match="cannot be written") as caught:
        run(tmp_path, evaluate=None)
    assert str(tmp_path) in str(caught.value)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    run(tmp_path)
    assert_equal_runs(tmp_path, expected)


def test_disk_that_fills_up_keeps_the_previous_state(tmp_path, expected):
    stop = stop_once(Stopped(), lambda epoch, index: epoch == 1)
    with pytest.raises(Stopped):
        run(tmp_path, batches=Noise(before=stop))
    before = (tmp_path / STATE).read_bytes()
    with limited_file_size(len(before) - 1), pytest.raises(CacheError):
        run(tmp_path)
    assert (tmp_path / STATE).read_bytes() == before
    run(tmp_path)
    assert_equal_runs(tmp_path, expected)


@pytest.mark.parametrize("kind", ["file", "below a file", "blocked recipe", "blocked log", "blocked state"])
@pytest.mark.parametrize("resume", [False, True])
def test_paths_that_cannot_be_written(tmp_path, kind, resume):
    folder = tmp_path / "run"
    blocked = {"blocked recipe": "recipe.json", "blocked log": "training.csv", "blocked state": STATE}
    if kind in blocked:
        (folder / blocked[kind] / "content").mkdir(parents=True)
    else:
        folder.write_text("a file")
    target = folder / "a" / "b" if kind == "below a file" else folder
    with pytest.raises(CacheError, match="cannot be written"):
        run(target, resume=resume)


def test_network_files_stay_loadable_after_every_interruption(tmp_path):
    """Interrupt each rename in turn: model and state are always whole."""
    replace_file, count = os.replace, [0]
    for number in range(1, 12):
        folder = tmp_path / str(number)
        count[0] = 0

        def stop(source, target, number=number):
            count[0] += 1
            if count[0] == number:
                raise Stopped
            replace_file(source, target)

        with pytest.MonkeyPatch.context() as patch, contextlib.suppress(Stopped):
            patch.setattr(os, "replace", stop)
            run(folder)
        if (folder / STATE).exists():
            assert state_tensors(folder)["weights"]
        assert not [path for path in Path(folder).rglob(".*")]
        run(folder)
        assert len(read_rows(folder / "evaluation.csv")) == 2
