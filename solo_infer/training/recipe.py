"""How to train: optimizer, schedule and pace, as one frozen dataclass that is kept beside the results."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from solo_infer.errors import ConfigError

OPTIMIZERS = ("sgd", "adamw")
SCHEDULES = ("step", "cosine")
AUTOCASTS = ("float32", "float16", "bfloat16")
AUGMENTS = ("none", "flip", "multiscale", "jitter")
_CHOICES = {"optimizer": OPTIMIZERS, "schedule": SCHEDULES, "autocast": AUTOCASTS, "augment": AUGMENTS}


@dataclass(frozen=True)
class Recipe:
    """Settings of a training run. The defaults are the published 1x schedule of mmdet's SOLO configs.

    Attributes:
        epochs: Passes over the training images, which the schedule is made for.
        last_epoch: Stop after this one all the same, e.g. to go on with larger images; 0 for all.
        batch_size: Images of an iteration, over all processes.
        optimizer: "sgd" (momentum 0.9) or "adamw".
        lr: Highest learning rate (mmdet: 0.01 for 16 images with SGD).
        body_lr: The body's learning rate, as a part of ``lr``: below 1 it keeps more of what it knows.
        weight_decay: Of all weights (mmdet: 1e-4).
        schedule: "step" (a tenth after each milestone) or "cosine" (to zero at the end).
        milestones: Epochs at whose end the "step" schedule goes down.
        warmup: Iterations over which the learning rate rises linearly from a thousandth.
        clip: Greatest norm of the gradient; 0 for no limit.
        ema: Decay of the moving average of the weights, e.g. 0.999; 0 for none. What is saved and
            evaluated is the average.
        autocast: "float32", "float16" (with loss scaling) or "bfloat16".
        seed: Of the order of images and of augmentation.
        workers: Processes that load images, for each training process.
        log_every: Iterations between log lines.
        save_every: Iterations between checkpoints; one is also written after each epoch.
        evaluate_every: Epochs between evaluations, if there is validation data.
        freeze_stem: Keep the body up to C2 as it is (mmdet's ``frozen_stages=1``).
        augment: What becomes of an image, which is first scaled to the size that the model predicts at:
            "none"; "flip" (mmdet's 1x schedule); "multiscale" (its 3x schedule: five smaller sizes down to
            0.8, and flip); "jitter" (colors, flip, ``scales``, a window of ``size``, ``copy_paste``).
        scales: Least and greatest factor of "jitter".
        size: Side in pixels of the square window of "jitter", padded where the image ends; the model's short
            side if 0.
        copy_paste: Probability that "jitter" pastes instances of another image, 0..1.
    """

    epochs: int = 12
    last_epoch: int = 0
    batch_size: int = 16
    optimizer: str = "sgd"
    lr: float = 0.01
    body_lr: float = 1.0
    weight_decay: float = 1e-4
    schedule: str = "step"
    milestones: tuple[int, ...] = (8, 11)
    warmup: int = 500
    clip: float = 0.0
    ema: float = 0.0
    autocast: str = "float32"
    seed: int = 0
    workers: int = 2
    log_every: int = 50
    save_every: int = 500
    evaluate_every: int = 1
    freeze_stem: bool = True
    augment: str = "flip"
    scales: tuple[float, float] = (0.5, 2.0)
    size: int = 0
    copy_paste: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "milestones", tuple(self.milestones))
        object.__setattr__(self, "scales", tuple(self.scales))
        for name, known in _CHOICES.items():
            value = getattr(self, name)
            if value not in known:
                raise ConfigError(f"{name}={value!r}: expected one of {known}.")
        for name in ("epochs", "batch_size", "log_every", "save_every", "evaluate_every"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ConfigError(f"{name}={value!r}: expected a whole number of at least 1.")
        for name in ("last_epoch", "lr", "body_lr", "weight_decay", "warmup", "clip", "workers", "size"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ConfigError(f"{name}={value!r}: expected a number of at least 0.")
        if not 0 <= self.ema < 1:
            raise ConfigError(f"ema={self.ema!r}: expected a number from 0 to below 1.")

    def lr_at(self, iteration: int, per_epoch: int) -> float:
        """Return the learning rate of an iteration, counted from 0, with ``per_epoch`` in each epoch."""
        if self.schedule == "step":
            rate = self.lr * 0.1 ** sum(iteration >= epoch * per_epoch for epoch in self.milestones)
        else:
            rate = self.lr * 0.5 * (1 + math.cos(math.pi * iteration / (self.epochs * per_epoch)))
        if iteration >= self.warmup:
            return rate
        return rate * (1 - (1 - iteration / self.warmup) * 0.999)

    def essence(self) -> Recipe:
        """Return the recipe without what may differ between a run and its resumption."""
        return dataclasses.replace(self, workers=0, log_every=1, save_every=1, evaluate_every=1)

    def to_json(self) -> str:
        """Return the settings as JSON text."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Recipe:
        """Read settings, e.g. what ``to_json`` wrote.

        Raises:
            ConfigError: A setting is unknown or wrong.
        """
        known = {item.name for item in dataclasses.fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ConfigError(f"Unknown setting(s) {unknown} in a recipe; known are {sorted(known)}.")
        return cls(**values)


PUBLISHED_1X = Recipe()
PUBLISHED_3X = Recipe(epochs=36, milestones=(27, 33), augment="multiscale")
FINE_TUNE = Recipe(
    epochs=20,
    batch_size=8,
    optimizer="adamw",
    lr=2e-4,
    body_lr=0.25,
    weight_decay=0.05,
    schedule="cosine",
    warmup=50,
    clip=10.0,
    ema=0.998,
    log_every=20,
    save_every=200,
    augment="jitter",
    scales=(0.6, 1.6),
)
# mmdet's schedule of YOLACT (configs/yolact); its expanding and cutting of images is nearest to "jitter".
PUBLISHED_YOLACT = Recipe(
    epochs=55,
    batch_size=8,
    lr=1e-3,
    weight_decay=5e-4,
    milestones=(20, 42, 49, 52),
    freeze_stem=False,
    augment="jitter",
    scales=(0.4, 1.6),
)
RECIPES = {"finetune": FINE_TUNE, "1x": PUBLISHED_1X, "3x": PUBLISHED_3X, "yolact": PUBLISHED_YOLACT}
