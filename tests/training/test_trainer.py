"""The training loop on generated images: learning, bit-exact resumption, several processes."""

import json
import signal
from dataclasses import replace

import pytest
import torch
from helpers.fresh_processes import run, run_ranks
from helpers.training_runs import (
    QUICK,
    Rectangles,
    losses,
    small_start,
    state_tensors,
    train_on_a_share_of_rectangles,
    train_until_killed,
)

from solo_infer import SOLO
from solo_infer.errors import CheckpointError, TrainingError
from solo_infer.training import Recipe, checkpointing, fit
from solo_infer.training.metrics_log import read_rows


class Stopped(Exception):
    """Raised by a source of batches to end a run."""


class RaisingRectangles(Rectangles):
    """Rectangles that raise an exception before a batch."""

    def __init__(self, exception, epoch, index, count=4):
        super().__init__(count)
        self.exception, self.at = exception, (epoch, index)

    def epoch(self, epoch, start):
        for index, batch in enumerate(super().epoch(epoch, start), start=start):
            if (epoch, index) == self.at:
                raise self.exception
            yield batch


def assert_equal_states(folder, other):
    groups = state_tensors(folder)
    for group, tensors in state_tensors(other).items():
        assert tensors
        for name, tensor in tensors.items():
            assert torch.equal(tensor, groups[group][name]), name


def write_format_1(path, network):
    """Rewrite a training state as version 0.1 wrote it: old names of recipe fields, parameters by index."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    parameters = [name for name, parameter in network.named_parameters() if parameter.requires_grad]
    parameters.sort(key=lambda name: (not name.startswith("backbone."), "head.mask_convs." in name))
    index_of = {name: str(index) for index, name in enumerate(parameters)}
    old_fields = {
        "backbone_lr_mult": "body_lr",
        "grad_clip_norm": "clip",
        "ema_decay": "ema",
        "scale_range": "scales",
        "crop_size": "size",
        "warmup_iters": "warmup",
    }

    def old_name(name):
        group, _, rest = name.partition("/")
        parameter, _, key = rest.partition("/")
        return f"{group}/{index_of[parameter]}/{key}" if group == "optimizer" else name

    with safe_open(path, framework="pt") as file:
        tensors, metadata = {old_name(name): file.get_tensor(name) for name in file.keys()}, file.metadata()
    facts = json.loads(metadata["facts"])
    facts["recipe"] = {old_fields.get(name, name): value for name, value in facts["recipe"].items()}
    assert set(old_fields.values()) <= facts["recipe"].keys() and not facts["optimizer_numbers"]
    assert f"optimizer/{len(parameters) - 1}/momentum_buffer" in tensors
    save_file(tensors, path, {"format": "solo_infer_training/1", "facts": json.dumps(facts)})


def test_run_learns_and_writes_a_model(tmp_path):
    recipe = replace(QUICK, epochs=4, optimizer="adamw", lr=1e-3, schedule="cosine", save_every=100)
    recipe = replace(recipe, grad_clip_norm=10.0, ema_decay=0.0)
    calls = []

    def evaluate(model):
        calls.append((model.network.training, float(next(model.network.parameters()).sum())))
        return {"AP": 0.0}

    folder = fit(small_start(), Rectangles(6), str(tmp_path), recipe, device="cpu", evaluate=evaluate)
    assert folder == tmp_path
    values = [float(row["loss"]) for row in read_rows(tmp_path / "training.csv")]
    assert len(values) == 24
    assert sum(values[-6:]) < 0.9 * sum(values[:6])
    assert [training for training, _ in calls] == [False] * 4
    assert [row["AP"] for row in read_rows(tmp_path / "evaluation.csv")] == ["0"] * 4
    assert (tmp_path / "best" / "config.json").is_file()
    model = SOLO.from_pretrained(tmp_path, device="cpu")
    assert model.config.categories.names == ("cat", "dog", "bird")
    assert Recipe.from_dict(json.loads((tmp_path / "recipe.json").read_text())) == recipe


def test_resumed_runs_repeat_uninterrupted_ones_bit_for_bit(tmp_path):
    expected, resumed = tmp_path / "expected", tmp_path / "resumed"
    fit(small_start(), Rectangles(), expected, QUICK, device="cpu")
    with pytest.raises(Stopped):
        fit(small_start(), RaisingRectangles(Stopped, 1, 1), resumed, QUICK, device="cpu")
    assert len(losses(resumed)) == 5
    fit(small_start(), Rectangles(), resumed, QUICK, device="cpu", resume=True)
    assert losses(resumed) == losses(expected)
    assert_equal_states(resumed, expected)


def test_states_of_earlier_versions_are_resumed(tmp_path):
    expected, resumed = tmp_path / "expected", tmp_path / "resumed"
    recipe = replace(QUICK, grad_clip_norm=5.0, backbone_lr_mult=0.5, scale_range=(0.5, 1.5), crop_size=96)
    fit(small_start(), Rectangles(2), expected, recipe, device="cpu")
    model = small_start()
    with pytest.raises(Stopped):
        fit(model, RaisingRectangles(Stopped, 1, 1, count=2), resumed, recipe, device="cpu")
    write_format_1(resumed / checkpointing.STATE_NAME, model.network)
    with pytest.raises(TrainingError, match="another recipe"):
        fit(small_start(), Rectangles(2), resumed, QUICK, device="cpu", resume=True)
    fit(small_start(), Rectangles(2), resumed, recipe, device="cpu", resume=True)
    assert losses(resumed) == losses(expected)
    assert_equal_states(resumed, expected)


def test_interrupted_run_saves_its_state(tmp_path):
    batches = RaisingRectangles(KeyboardInterrupt, 0, 2)
    with pytest.raises(KeyboardInterrupt):
        fit(small_start(), batches, tmp_path, replace(QUICK, save_every=1000), device="cpu")
    assert checkpointing.load_state(tmp_path / checkpointing.STATE_NAME)[1]["iteration"] == 2
    assert SOLO.from_pretrained(tmp_path, device="cpu").config.architecture.num_classes == 3


def test_interruption_while_averaged_weights_are_loaded_keeps_the_trained_weights(tmp_path):
    model, before = small_start(), {}
    load = model.network.load_state_dict

    def load_and_interrupt(weights):
        before.update(state_tensors(tmp_path))
        monkeypatch.undo()
        load(weights)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(model.network, "load_state_dict", load_and_interrupt)
        with pytest.raises(KeyboardInterrupt):
            fit(model, Rectangles(), tmp_path, QUICK, device="cpu", evaluate=lambda model: {"AP": 0.0})
    after = state_tensors(tmp_path)
    assert before.keys() == after.keys()
    for group, tensors in before.items():
        for name, tensor in tensors.items():
            assert torch.equal(after[group][name], tensor), name


def test_killed_run_loses_at_most_an_interval(tmp_path):
    process = run(train_until_killed, tmp_path)
    assert process.returncode == -signal.SIGKILL, process.stderr
    assert checkpointing.load_state(tmp_path / checkpointing.STATE_NAME)[1]["iteration"] == 6
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_two_processes_equal_one(tmp_path):
    recipe = replace(QUICK, epochs=1, ema_decay=0.0)
    fit(small_start(), Rectangles(), tmp_path / "one", recipe, device="cpu")
    for process in run_ranks(train_on_a_share_of_rectangles, tmp_path / "two"):
        assert process.returncode == 0, process.stderr[-3000:]
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert len(one) == len(two) == 4
    for row, expected in zip(two, one, strict=True):
        assert [float(value) for value in row] == pytest.approx(
            [float(value) for value in expected], rel=1e-3
        )
    weights = state_tensors(tmp_path / "two")["weights"]
    for name, tensor in state_tensors(tmp_path / "one")["weights"].items():
        torch.testing.assert_close(weights[name], tensor, rtol=1e-2, atol=1e-3)


def test_other_recipes_and_damaged_states_are_not_resumed(tmp_path):
    fit(small_start(), Rectangles(1), tmp_path, replace(QUICK, epochs=1), device="cpu")
    with pytest.raises(TrainingError, match="another recipe"):
        fit(small_start(), Rectangles(1), tmp_path, QUICK, device="cpu", resume=True)
    (tmp_path / checkpointing.STATE_NAME).write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match="damaged or not a training state"):
        fit(small_start(), Rectangles(1), tmp_path, QUICK, device="cpu", resume=True)


def test_loss_that_is_not_finite_stops_the_run(tmp_path):
    model = small_start()
    with torch.no_grad():
        model.network.mask_head.conv_cls.bias.fill_(float("nan"))
    with pytest.raises(TrainingError, match="loss is nan at iteration 1"):
        fit(model, Rectangles(), tmp_path, QUICK, device="cpu")


def test_stopping_early_keeps_the_schedule(tmp_path):
    recipe = replace(QUICK, epochs=6, last_epoch=1, schedule="cosine", warmup_iters=0)
    fit(small_start(), Rectangles(2), tmp_path, recipe, device="cpu")
    rows = read_rows(tmp_path / "training.csv")
    assert [float(row["lr"]) for row in rows] == pytest.approx(
        [recipe.lr_at(step, 2) for step in range(2)], rel=1e-5
    )
    assert float(rows[-1]["lr"]) > 0.9 * recipe.lr


def test_learning_rate_of_the_backbone(tmp_path):
    model = small_start()
    before = {name: tensor.clone() for name, tensor in model.network.state_dict().items()}
    fit(model, Rectangles(1), tmp_path, replace(QUICK, epochs=1, backbone_lr_mult=0.0), device="cpu")
    changed = {
        name.split(".")[0]
        for name, tensor in model.network.state_dict().items()
        if not torch.equal(tensor, before[name])
    }
    assert changed == {"neck", "mask_head"}
