"""Models, batches and data sets of the training tests that take seconds."""

import os
import signal
from dataclasses import replace
from types import SimpleNamespace

import torch
from helpers.fresh_processes import exit_with_main, run_ranks
from helpers.models import small_config
from helpers.training_sets import bitmap, compressed, instance, rectangle, write_set
from torch import nn

from solo_infer.training import CocoFiles, Recipe, checkpointing, fit, init_model
from solo_infer.training.metrics_log import read_rows

QUICK = Recipe(
    epochs=2, batch_size=2, lr=0.01, warmup_iters=4, log_every=1, save_every=3, workers=0, ema_decay=0.9
)
QUICK_FINE_TUNE = Recipe(
    epochs=2, batch_size=2, lr=0.01, warmup_iters=2, log_every=1, save_every=100, workers=0
)
NUTS_AND_BOLTS = {"nut": 7, "bolt": 3}


def small_start(head="decoupled_light"):
    """Return a model of three classes with the smallest backbone, always with the same weights."""
    config = small_config(head)
    architecture = replace(
        config.architecture, backbone="efficientnet_lite0", stacked_convs=1, mask_channels=32
    )
    return init_model(replace(config, architecture=architecture), seed=1)


class Rectangles:
    """Batches of dark images with a bright rectangle of one of three classes, generated from their index."""

    def __init__(self, count=4, batch_size=2, rank=0, world_size=1):
        self.count, self.batch_size, self.rank, self.world_size = count, batch_size, rank, world_size

    def __len__(self):
        return self.count

    def epoch(self, epoch, start):
        for index in range(start, self.count):
            samples = [self.sample(epoch, index * self.batch_size + item) for item in range(self.batch_size)]
            share = samples[self.rank :: self.world_size]
            yield torch.stack([image for image, _ in share]), [target for _, target in share]

    def sample(self, epoch, index):
        generator = torch.Generator().manual_seed(1000 * epoch + index)
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


class OneLayer(nn.Module):
    """Network with a loss and one layer in its backbone, which trains in milliseconds."""

    losses = ("loss_cls",)

    def __init__(self):
        super().__init__()
        self.backbone, self.head = nn.Linear(3, 4), nn.Linear(4, 1)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.linspace(-1, 1, parameter.numel()).view_as(parameter))

    def forward(self, images, targets):
        return {"loss_cls": self.head(self.backbone(images.mean((2, 3)))).square().mean()}


ONE_LAYER = replace(QUICK, freeze_stem=False)


def one_layer_model(head="decoupled_light", **changes):
    """Return a stand-in for a model with a ``OneLayer``; ``changes`` are of its configuration."""
    return SimpleNamespace(network=OneLayer(), config=replace(small_config(head), **changes))


class Noise:
    """Batches of random images without targets, generated from their index."""

    def __init__(self, count=4, before=lambda epoch, index: None):
        self.count, self.before = count, before

    def __len__(self):
        return self.count

    def epoch(self, epoch, start):
        for index in range(start, self.count):
            self.before(epoch, index)
            generator = torch.Generator("cpu").manual_seed(1000 * epoch + index)
            images = torch.randn(2, 3, 8, 8, generator=generator, dtype=torch.float32, device="cpu")
            yield images, [{}, {}]


def sum_of_weights(model):
    """Evaluate a model: return a number that depends on all of its weights."""
    return {"AP": float(sum(tensor.double().sum() for tensor in model.network.state_dict().values()))}


def assert_equal_runs(folder, other):
    """Check that two runs have the same states, models, best models, evaluations and losses."""
    groups = state_tensors(folder)
    for group, tensors in state_tensors(other).items():
        assert tensors.keys() == groups[group].keys()
        for name, tensor in tensors.items():
            assert torch.equal(tensor, groups[group][name]), name
    for name in ("model.safetensors", "config.json", "best/model.safetensors", "evaluation.csv"):
        files = [path / name for path in (folder, other) if (path / name).exists()]
        assert not files or files[0].read_bytes() == files[-1].read_bytes() and len(files) == 2, name
    assert losses(folder) == losses(other)


def write_nuts_and_bolts(folder):
    """Write four images with a nut and a bolt in three of them, and return the data set."""
    instances = [
        instance(name, category, segmentation, bbox=[left, 20, 60, 50], area=3000)
        for name, left in (("0.png", 10), ("1.png", 30), ("2.png", 50))
        for category, segmentation in (
            ("nut", rectangle(left, 20, left + 60, 70)),
            ("bolt", compressed(bitmap(90, 120, left, 20, left + 30, 70))),
        )
    ]
    sizes = {f"{number}.png": (90, 120) for number in range(4)}
    return CocoFiles(*write_set(folder, sizes, NUTS_AND_BOLTS, instances))


def losses(folder):
    """Return the iteration, losses and gradient norm of each row of a run's training.csv, as text."""
    return [
        (row["iteration"], row["loss_cls"], row.get("loss_mask"), row["grad_norm"])
        for row in read_rows(folder / "training.csv")
    ]


def state_tensors(folder):
    """Return the tensors of a run's state by group."""
    return checkpointing.load_state(folder / checkpointing.STATE_NAME)[0]


def train_in_two_processes(start, data, recipe, folder):
    """Run ``solo-infer train`` with validation in two processes; return its output folder and its ends."""
    (folder / "recipe.json").write_text(recipe.to_json())
    command = ["train", "--model", start, "--recipe", folder / "recipe.json"]
    files = ["--images", data.images, "--annotations", data.annotations]
    files += ["--val-annotations", data.annotations, "--output", folder / "two", "--device", "cpu"]
    processes = run_ranks(exit_with_main, [str(argument) for argument in [*command, *files]])
    for process in processes:
        assert process.returncode == 0, process.stderr[-3000:]
    return folder / "two", processes


def train_on_a_share_of_rectangles(folder):
    """Train one epoch in one of two processes."""
    rank = int(os.environ["RANK"])
    recipe = replace(QUICK, epochs=1, ema_decay=0.0)
    fit(small_start(), Rectangles(rank=rank, world_size=2), folder, recipe, device="cpu")


class KilledRectangles(Rectangles):
    """Rectangles that kill their process before the fourth batch of the second epoch."""

    def epoch(self, epoch, start):
        for index, batch in enumerate(super().epoch(epoch, start)):
            if (epoch, index) == (1, 3):
                os.kill(os.getpid(), signal.SIGKILL)
            yield batch


def train_until_killed(folder):
    """Train in a process that is killed."""
    fit(small_start(), KilledRectangles(), folder, QUICK, device="cpu")
