"""The scale of float16 losses: torch's rules, without its float64."""

import math
from dataclasses import replace

import pytest
import torch
from training.test_trainer import QUICK, Rectangles, small_start

from solo_infer.training import checkpointing
from solo_infer.training.loss_scale import FIRST_SCALE, GROWTH_INTERVAL, LossScaler
from solo_infer.training.trainer import fit


def one_weight():
    weight = torch.nn.Parameter(torch.ones(1))
    return weight, torch.optim.SGD([weight], lr=1.0)


def test_scaled_and_brought_back():
    weight, optimizer = one_weight()
    scaler = LossScaler(True)
    scaler.scale((weight * 3).sum()).backward()
    assert float(weight.grad) == 3 * FIRST_SCALE
    scaler.unscale([weight, torch.nn.Parameter(torch.ones(1))])
    assert float(weight.grad) == 3
    scaler.step(optimizer, 3.0)
    assert float(weight.detach()) == -2


@pytest.mark.parametrize("norm", [math.inf, math.nan])
def test_steps_that_overflow_are_left_out_and_the_scale_halves(norm):
    weight, optimizer = one_weight()
    weight.grad = torch.full((1,), norm)
    scaler = LossScaler(True)
    scaler.good_steps = 7
    scaler.step(optimizer, norm)
    assert float(weight.detach()) == 1
    assert scaler.state_dict() == {"scale": FIRST_SCALE / 2, "good_steps": 0}


def test_the_scale_doubles_after_many_good_steps():
    weight, optimizer = one_weight()
    weight.grad = torch.zeros(1)
    scaler = LossScaler(True)
    scaler.load_state_dict({"scale": 8.0, "good_steps": GROWTH_INTERVAL - 2})
    scaler.step(optimizer, 0.0)
    assert scaler.factor == 8
    scaler.step(optimizer, 0.0)
    assert scaler.state_dict() == {"scale": 16.0, "good_steps": 0}


def test_nothing_is_scaled_without_float16():
    weight, optimizer = one_weight()
    scaler = LossScaler(False)
    loss = weight.sum()
    assert scaler.scale(loss) is loss and scaler.state_dict() == {}
    weight.grad = torch.ones(1)
    scaler.unscale([weight])
    scaler.step(optimizer, 1.0)
    assert float(weight.detach()) == 0


def test_a_run_in_float16_keeps_its_scale(tmp_path, monkeypatch):
    """The CPU of old versions of torch cannot autocast to float16, so that bfloat16 stands in for it."""
    autocast = torch.autocast
    monkeypatch.setattr(torch, "autocast", lambda kind, dtype: autocast(kind, dtype=torch.bfloat16))
    recipe = replace(QUICK, epochs=1, autocast="float16")
    fit(small_start(), Rectangles(), tmp_path, recipe, device="cpu")
    facts = checkpointing.load_state(tmp_path / checkpointing.STATE_NAME)[1]
    assert facts["scaler"] == {"scale": FIRST_SCALE, "good_steps": facts["iteration"]}
