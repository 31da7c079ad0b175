"""The training loop on made-up images: it learns, resumes bit for bit, and shares batches."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from importlib.machinery import ModuleSpec
from types import ModuleType

import pytest
import torch
from helpers.models import small_config
from helpers.paths import TESTS

from solo_infer import SOLO
from solo_infer.config.categories import Categories
from solo_infer.errors import CheckpointError, ConfigError
from solo_infer.training import checkpointing
from solo_infer.training.initialization import init_model, replace_classifier
from solo_infer.training.metrics_log import read_rows
from solo_infer.training.recipe import PUBLISHED_1X, PUBLISHED_3X, Recipe
from solo_infer.training.trainer import TrainingError, fit

QUICK = Recipe(epochs=2, batch_size=2, lr=0.01, warmup=4, log_every=1, save_every=3, workers=0, ema=0.9)


class Rectangles:
    """Dark pictures with a bright rectangle of one of three classes, made from their number."""

    def __init__(self, count=4, batch=2, rank=0, world=1):
        self.count, self.batch, self.rank, self.world = count, batch, rank, world

    def __len__(self):
        return self.count

    def epoch(self, epoch, start):
        for index in range(start, self.count):
            samples = [self.sample(epoch, index * self.batch + item) for item in range(self.batch)]
            mine = samples[self.rank :: self.world]
            yield torch.stack([image for image, _ in mine]), [target for _, target in mine]

    def sample(self, epoch, number):
        generator = torch.Generator().manual_seed(1000 * epoch + number)
        top, left, height, width, label = (
            int(torch.randint(low, high, (), generator=generator))
            for low, high in ((0, 40), (0, 60), (30, 56), (30, 60), (0, 3))
        )
        mask = torch.zeros(1, 96, 128, dtype=torch.uint8)
        mask[0, top : top + height, left : left + width] = 1
        image = torch.randn(3, 96, 128, generator=generator) * 0.1 - 1
        image[label] += 2 * mask[0]
        box = torch.tensor([[left, top, left + width, top + height]], dtype=torch.float32)
        return image, {"boxes": box, "labels": torch.tensor([label]), "masks": mask}


def small_start():
    config = small_config("decoupled_light")
    architecture = replace(config.architecture, backbone="efficientnet_lite0", stacked_convs=1)
    return init_model(replace(config, architecture=architecture), seed=1)


def losses(folder):
    return [
        (row["iteration"], row["loss_cls"], row["loss_mask"], row["grad_norm"])
        for row in read_rows(folder / "training.csv")
    ]


def weights(folder):
    return checkpointing.load_state(folder / checkpointing.STATE_NAME)[0]


def test_it_learns_and_leaves_a_model(tmp_path):
    recipe = replace(QUICK, epochs=4, optimizer="adamw", lr=1e-3, schedule="cosine", clip=10.0, ema=0.0)
    seen = []

    def evaluate(model):
        seen.append((model.network.training, float(next(model.network.parameters()).sum())))
        return {"AP": 0.0}

    fit(small_start(), Rectangles(6), tmp_path, recipe, device="cpu", evaluate=evaluate)
    values = [float(row["loss"]) for row in read_rows(tmp_path / "training.csv")]
    assert len(values) == 24
    assert sum(values[-6:]) < 0.9 * sum(values[:6])
    assert [training for training, _ in seen] == [False] * 4
    assert [row["AP"] for row in read_rows(tmp_path / "evaluation.csv")] == ["0"] * 4
    assert (tmp_path / "best" / "config.json").is_file()
    model = SOLO.from_pretrained(tmp_path, device="cpu")
    assert model.config.categories.names == ("cat", "dog", "bird")
    assert Recipe.from_dict(json.loads((tmp_path / "recipe.json").read_text())) == recipe


def test_resumed_runs_repeat_uninterrupted_ones_bit_for_bit(tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    fit(small_start(), Rectangles(), whole, QUICK, device="cpu")

    class Stop(Exception):
        pass

    class Dying(Rectangles):
        def epoch(self, epoch, start):
            for number, batch in enumerate(super().epoch(epoch, start), start=start):
                if (epoch, number) == (1, 1):
                    raise Stop
                yield batch

    with pytest.raises(Stop):
        fit(small_start(), Dying(), parts, QUICK, device="cpu")
    assert len(losses(parts)) == 5
    fit(small_start(), Rectangles(), parts, QUICK, device="cpu", resume=True)
    assert losses(parts) == losses(whole)
    for group, tensors in weights(whole).items():
        assert tensors
        for name, tensor in tensors.items():
            assert torch.equal(tensor, weights(parts)[group][name]), name


def test_ctrl_c_loses_nothing(tmp_path):
    class Interrupted(Rectangles):
        def epoch(self, epoch, start):
            for number, batch in enumerate(super().epoch(epoch, start)):
                if number == 2:
                    raise KeyboardInterrupt
                yield batch

    with pytest.raises(KeyboardInterrupt):
        fit(small_start(), Interrupted(), tmp_path, replace(QUICK, save_every=1000), device="cpu")
    assert checkpointing.load_state(tmp_path / checkpointing.STATE_NAME)[1]["iteration"] == 2
    assert SOLO.from_pretrained(tmp_path, device="cpu").config.architecture.num_classes == 3


def test_killed_runs_lose_at_most_an_interval(tmp_path):
    script = f"""
import os, signal, sys
sys.path[:0] = [{str(TESTS)!r}]
from pathlib import Path
from training.test_trainer import QUICK, Rectangles, small_start
from solo_infer.training.trainer import fit
class Killed(Rectangles):
    def epoch(self, epoch, start):
        for number, batch in enumerate(super().epoch(epoch, start)):
            if (epoch, number) == (1, 3):
                os.kill(os.getpid(), signal.SIGKILL)
            yield batch
fit(small_start(), Killed(), Path({str(tmp_path)!r}), QUICK, device="cpu")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert checkpointing.load_state(tmp_path / checkpointing.STATE_NAME)[1]["iteration"] == 6
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_two_processes_equal_one(tmp_path):
    recipe = replace(QUICK, epochs=1, ema=0.0)
    fit(small_start(), Rectangles(), tmp_path / "one", recipe, device="cpu")
    script = tmp_path / "train.py"
    script.write_text(
        f"""
import os, sys
sys.path[:0] = [{str(TESTS)!r}]
from dataclasses import replace
from pathlib import Path
from training.test_trainer import QUICK, Rectangles, small_start
from solo_infer.training.trainer import fit
rank = int(os.environ["RANK"])
recipe = replace(QUICK, epochs=1, ema=0.0)
fit(small_start(), Rectangles(rank=rank, world=2), Path({str(tmp_path / "two")!r}), recipe, device="cpu")
"""
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, str(script)], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert len(one) == len(two) == 4
    for row, expected in zip(two, one, strict=True):
        assert [float(value) for value in row] == pytest.approx(
            [float(value) for value in expected], rel=1e-3
        )
    for name, tensor in weights(tmp_path / "one")["weights"].items():
        torch.testing.assert_close(weights(tmp_path / "two")["weights"][name], tensor, rtol=1e-2, atol=1e-3)


def test_another_recipe_is_not_resumed(tmp_path):
    fit(small_start(), Rectangles(1), tmp_path, replace(QUICK, epochs=1), device="cpu")
    with pytest.raises(TrainingError, match="another recipe"):
        fit(small_start(), Rectangles(1), tmp_path, QUICK, device="cpu", resume=True)
    (tmp_path / checkpointing.STATE_NAME).write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match="no training state or damaged"):
        fit(small_start(), Rectangles(1), tmp_path, QUICK, device="cpu", resume=True)


def test_a_loss_that_is_no_number_stops_the_run(tmp_path):
    model = small_start()
    with torch.no_grad():
        model.network.mask_head.conv_cls.bias.fill_(float("nan"))
    with pytest.raises(TrainingError, match="loss is nan at iteration 1"):
        fit(model, Rectangles(), tmp_path, QUICK, device="cpu")


def test_new_classes_start_only_the_classification_layer_anew(small_model):
    changed = replace_classifier(small_model, Categories(("nut", "bolt")))
    assert changed.config.architecture.num_classes == 2
    assert changed.config.preprocessing == small_model.config.preprocessing
    own, given = changed.network.state_dict(), small_model.network.state_dict()
    assert {
        name
        for name in own
        if not torch.equal(
            own[name],
            given[name].reshape(own[name].shape)
            if own[name].numel() == given[name].numel()
            else own[name] + 1,
        )
    } == {
        "mask_head.conv_cls.weight",
        "mask_head.conv_cls.bias",
    }
    assert torch.sigmoid(changed.network.mask_head.conv_cls.bias).tolist() == pytest.approx([0.01, 0.01])
    same = replace_classifier(small_model, small_model.config.categories)
    assert all(torch.equal(tensor, given[name]) for name, tensor in same.network.state_dict().items())


def test_published_schedules():
    assert PUBLISHED_1X.lr_at(0, 1000) == pytest.approx(0.01 * 0.001)
    assert PUBLISHED_1X.lr_at(250, 1000) == pytest.approx(0.01 * 0.5005)
    rates = [PUBLISHED_1X.lr_at(epoch * 1000, 1000) for epoch in (1, 7, 8, 10, 11)]
    assert rates == pytest.approx([0.01, 0.01, 0.001, 0.001, 0.0001])
    assert [PUBLISHED_3X.lr_at(epoch * 1000, 1000) for epoch in (26, 27, 33)] == pytest.approx(
        [0.01, 1e-3, 1e-4]
    )
    cosine = Recipe(schedule="cosine", epochs=10, warmup=0)
    assert [cosine.lr_at(step, 10) for step in (0, 50, 100)] == pytest.approx([0.01, 0.005, 0.0])


def test_stopping_early_keeps_the_schedule(tmp_path):
    recipe = replace(QUICK, epochs=6, last_epoch=1, schedule="cosine", warmup=0)
    fit(small_start(), Rectangles(2), tmp_path, recipe, device="cpu")
    rows = read_rows(tmp_path / "training.csv")
    assert [float(row["lr"]) for row in rows] == pytest.approx(
        [recipe.lr_at(step, 2) for step in range(2)], rel=1e-5
    )
    assert float(rows[-1]["lr"]) > 0.9 * recipe.lr


def test_tensorboard_gets_the_same_numbers(tmp_path, monkeypatch):
    written = []

    class SummaryWriter:
        def __init__(self, folder, purge_step):
            written.append((folder, purge_step))

        def add_scalar(self, name, value, iteration):
            written.append((name, value, iteration))

        def close(self):
            written.append("closed")

    board = ModuleType("tensorboard")
    board.__spec__ = ModuleSpec("tensorboard", None)
    writer = ModuleType("torch.utils.tensorboard")
    writer.SummaryWriter = SummaryWriter
    monkeypatch.setitem(sys.modules, "tensorboard", board)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", writer)
    fit(small_start(), Rectangles(2), tmp_path, replace(QUICK, epochs=1), device="cpu")
    assert written[0] == (str(tmp_path / "tensorboard"), 1) and written[-1] == "closed"
    for row in read_rows(tmp_path / "training.csv"):
        assert ("loss", float(row["loss"]), int(row["iteration"])) in written


def test_the_bodys_own_learning_rate(tmp_path):
    model = small_start()
    before = {name: tensor.clone() for name, tensor in model.network.state_dict().items()}
    fit(model, Rectangles(1), tmp_path, replace(QUICK, epochs=1, body_lr=0.0), device="cpu")
    moved = {
        name.split(".")[0]
        for name, tensor in model.network.state_dict().items()
        if not torch.equal(tensor, before[name])
    }
    assert moved == {"neck", "mask_head"}


@pytest.mark.parametrize(
    "wrong", [{"optimizer": "adam"}, {"epochs": 0}, {"lr": -1.0}, {"ema": 1.0}, {"schedule": "poly"}]
)
def test_wrong_recipes(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Recipe(**wrong)
    with pytest.raises(ConfigError, match="Unknown setting"):
        Recipe.from_dict({"learning_rate": 1})
