"""Loss scale (torch's rules without its float64), moving average, and the file of the state."""

import math
from dataclasses import replace

import pytest
import torch
from helpers.training_runs import QUICK, Rectangles, small_start

from solo_infer.errors import CheckpointError
from solo_infer.training import checkpointing, fit
from solo_infer.training.checkpointing import GROWTH_INTERVAL, INITIAL_SCALE, LossScaler, WeightAverage


def one_weight():
    weight = torch.nn.Parameter(torch.ones(1))
    return weight, torch.optim.SGD([weight], lr=1.0)


class TestLossScaler:
    def test_unscale_reverses_scale(self):
        weight, optimizer = one_weight()
        scaler = LossScaler(True)
        scaler.scale((weight * 3).sum()).backward()
        assert float(weight.grad) == 3 * INITIAL_SCALE
        scaler.unscale([weight, torch.nn.Parameter(torch.ones(1))])
        assert float(weight.grad) == 3
        scaler.step(optimizer, 3.0)
        assert float(weight.detach()) == -2

    @pytest.mark.parametrize("norm", [math.inf, math.nan])
    def test_overflow_skips_the_step_and_halves_the_scale(self, norm):
        weight, optimizer = one_weight()
        weight.grad = torch.full((1,), norm)
        scaler = LossScaler(True)
        scaler.good_steps = 7
        scaler.step(optimizer, norm)
        assert float(weight.detach()) == 1
        assert scaler.state_dict() == {"scale": INITIAL_SCALE / 2, "good_steps": 0}

    def test_scale_doubles_after_many_finite_steps(self):
        weight, optimizer = one_weight()
        weight.grad = torch.zeros(1)
        scaler = LossScaler(True)
        scaler.load_state_dict({"scale": 8.0, "good_steps": GROWTH_INTERVAL - 2})
        scaler.step(optimizer, 0.0)
        assert scaler.factor == 8
        scaler.step(optimizer, 0.0)
        assert scaler.state_dict() == {"scale": 16.0, "good_steps": 0}

    def test_disabled_scaler_changes_nothing(self):
        weight, optimizer = one_weight()
        scaler = LossScaler(False)
        loss = weight.sum()
        assert scaler.scale(loss) is loss and scaler.state_dict() == {}
        weight.grad = torch.ones(1)
        scaler.unscale([weight])
        scaler.step(optimizer, 1.0)
        assert float(weight.detach()) == 0

    def test_float16_run_saves_its_scale(self, tmp_path, monkeypatch):
        """Use bfloat16 in place of float16, which the CPU of old versions of torch cannot autocast to."""
        autocast = torch.autocast

        def in_bfloat16(device, dtype=None, **options):
            return autocast(device, dtype=dtype and torch.bfloat16, **options)

        monkeypatch.setattr(torch, "autocast", in_bfloat16)
        recipe = replace(QUICK, epochs=1, autocast="float16")
        fit(small_start(), Rectangles(), tmp_path, recipe, device="cpu")
        facts = checkpointing.load_state(tmp_path / checkpointing.STATE_NAME)[1]
        assert facts["scaler"] == {"scale": INITIAL_SCALE, "good_steps": facts["iteration"]}


def test_weight_average_starts_with_a_small_decay():
    average = WeightAverage({"weight": torch.zeros(1), "count": torch.tensor(0)}, decay=0.5)
    expected = 0.0
    for updates in range(1, 20):
        average.update({"weight": torch.ones(1), "count": torch.tensor(updates)}, updates)
        decay = min(0.5, (1 + updates) / (10 + updates))
        expected = decay * expected + (1 - decay)
        assert float(average.weights["weight"]) == pytest.approx(expected, rel=1e-5)
        assert int(average.weights["count"]) == updates


def trained_optimizer(optimizer_class):
    """Return an optimizer after a step on fixed weights."""
    weights = [torch.nn.Parameter(torch.arange(3.0)), torch.nn.Parameter(torch.ones(2, 2))]
    options = {"momentum": 0.9} if optimizer_class is torch.optim.SGD else {}
    optimizer = optimizer_class([{"params": [weight]} for weight in weights], lr=0.1, **options)
    for weight in weights:
        weight.grad = torch.full_like(weight, 0.5)
    optimizer.step()
    return optimizer, weights


@pytest.mark.parametrize("optimizer_class", [torch.optim.SGD, torch.optim.AdamW])
def test_state_round_trip(optimizer_class, tmp_path):
    optimizer, weights = trained_optimizer(optimizer_class)
    tensors = {"a": weights[0], "b": torch.tensor(7)}
    average = {"a": torch.zeros(3)}
    path = tmp_path / "state.safetensors"
    checkpointing.save_state(path, tensors, average, optimizer, ["first", "second"], {"iteration": 5})
    groups, facts = checkpointing.load_state(path)
    assert facts["iteration"] == 5
    assert torch.equal(groups["weights"]["a"], weights[0]) and int(groups["weights"]["b"]) == 7
    assert torch.equal(groups["average"]["a"], average["a"])
    assert {name.partition("/")[0] for name in groups["optimizer"]} == {"first", "second"}
    other, _ = trained_optimizer(optimizer_class)
    other.state.clear()
    checkpointing.restore_optimizer(
        other, ["first", "second"], groups["optimizer"], facts["optimizer_numbers"]
    )
    state, expected = other.state_dict()["state"], optimizer.state_dict()["state"]
    assert state.keys() == expected.keys() and state
    for index, entries in expected.items():
        assert state[index].keys() == entries.keys()
        for name, value in entries.items():
            assert value is None or torch.equal(torch.as_tensor(state[index][name]), torch.as_tensor(value))


def test_other_files_are_rejected(tmp_path):
    from safetensors.torch import save_file

    path = tmp_path / "state.safetensors"
    with pytest.raises(CheckpointError, match="damaged or not a training state"):
        checkpointing.load_state(path)
    path.write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match="damaged or not a training state"):
        checkpointing.load_state(path)
    save_file({"weight": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match="format None: expected a training state"):
        checkpointing.load_state(path)
