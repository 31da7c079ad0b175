"""Training recipes: optimizer, schedule, augmentation and intervals in one frozen dataclass."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from solo_infer.config.suggestions import did_you_mean
from solo_infer.config.validation import (
    bounded_repr,
    coerce_tuple,
    is_finite,
    is_int,
    require,
    require_bools,
    require_choice,
    require_non_negative_ints,
    require_positive_ints,
    require_unit_interval,
)
from solo_infer.errors import ConfigError

Optimizer = Literal["sgd", "adamw"]
Schedule = Literal["step", "cosine"]
Autocast = Literal["float32", "float16", "bfloat16"]
Augment = Literal["none", "flip", "multiscale", "jitter"]

_CHOICES = {"optimizer": Optimizer, "schedule": Schedule, "autocast": Autocast, "augment": Augment}
_POSITIVE_INTS = ("epochs", "batch_size", "log_every", "save_every", "evaluate_every")
_NON_NEGATIVE_INTS = ("last_epoch", "warmup_iters", "seed", "workers", "crop_size")
_LARGEST_NUMBER = 1e9
_SCALE_LIMITS = (1e-3, 1e3)
_MAX_MILESTONES, _LARGEST_MILESTONE = 1000, 10**6
_NON_NEGATIVE_NUMBERS = ("lr", "backbone_lr_mult", "class_lr_mult", "weight_decay", "grad_clip_norm")
# Short sides of mmdet's 3x schedules: 800, 768, ... 640 of the 800 pixels at prediction, and of the light
# models of SOLO (512) and SOLOv2 (448).
_SHORT_SIDE_SCALES = (1.0, 0.96, 0.92, 0.88, 0.84, 0.8)
_LIGHT_SHORT_SIDES = {side: (512, 480, 448, 416, 384, 352) for side in (512, 448)}
# Names of fields in recipe.json and in run states of earlier versions.
_OLD_NAMES = {
    "body_lr": "backbone_lr_mult",
    "clip": "grad_clip_norm",
    "ema": "ema_decay",
    "scales": "scale_range",
    "size": "crop_size",
    "warmup": "warmup_iters",
}


@dataclass(frozen=True)
class Recipe:
    """Settings of a training run. The defaults are mmdet's 1x schedule of SOLO.

    Attributes:
        epochs: Number of passes over the training images; the schedule is computed for all of them.
        last_epoch: Epoch after which training stops early, for example to continue with larger images. 0 runs
            all epochs.
        batch_size: Images per iteration, over all processes.
        optimizer: "sgd" (momentum 0.9) or "adamw".
        lr: Peak learning rate (mmdet: 0.01 for 16 images with SGD).
        backbone_lr_mult: Multiplier of ``lr`` for the backbone. Values below 1 preserve more of its
            pretrained features.
        class_lr_mult: Multiplier of ``lr`` for the layers that output class scores, which start from new
            weights if the classes are new.
        lr_mults: Multipliers of ``lr`` for other parts of the network, by the start of the names of their
            parameters, e.g. {"neck": 0.3, "head.class_out": 5.0}; the longest matching start counts,
            before ``class_lr_mult`` and ``backbone_lr_mult``. 0 freezes a part.
        weight_decay: Weight decay of all parameters (mmdet: 1e-4).
        schedule: "step" (a tenth after each milestone) or "cosine" (to zero at the end).
        milestones: Epochs after which the "step" schedule lowers the learning rate.
        warmup_iters: Iterations of the linear warmup, which starts at a thousandth of the learning rate; at
            most a tenth of all iterations.
        grad_clip_norm: Greatest norm of the gradient; 0 disables clipping.
        ema_decay: Decay of the moving average of the weights in 0..1, for example 0.999; 0 disables it. The
            average is what is saved and evaluated.
        autocast: "float32", "float16" (with loss scaling) or "bfloat16".
        seed: Seed of the order of the images, of the augmentation and of new weights.
        workers: Data loading processes per training process.
        log_every: Iterations between log lines.
        save_every: Iterations between checkpoints; another one is written after each epoch.
        evaluate_every: Epochs between evaluations, if there is validation data.
        freeze_stem: Whether to freeze the backbone up to C2 (mmdet's ``frozen_stages=1``).
        augment: Augmentation policy, applied to images at the scale of prediction. "none"; "flip" (mmdet's 1x
            schedule); "multiscale" (mmdet's 3x schedule: flip, and one of six scales: 1 to 0.8 of the
            short side, for light models 512 to 352 pixels); "jitter" (colors, flip, ``scale_range``, a square
            crop of ``crop_size`` and ``copy_paste``).
        scale_range: Least and greatest scale factor of "jitter".
        crop_size: Side of the square crop of "jitter" in pixels; smaller images are padded. 0 stands for the
            model's short side.
        copy_paste: Probability that "jitter" pastes instances of a random image, 0..1.
    """

    epochs: int = 12
    last_epoch: int = 0
    batch_size: int = 16
    optimizer: Optimizer = "sgd"
    lr: float = 0.01
    backbone_lr_mult: float = 1.0
    class_lr_mult: float = 1.0
    lr_mults: Mapping[str, float] = field(default_factory=dict, hash=False)
    weight_decay: float = 1e-4
    schedule: Schedule = "step"
    milestones: tuple[int, ...] = (8, 11)
    warmup_iters: int = 500
    grad_clip_norm: float = 0.0
    ema_decay: float = 0.0
    autocast: Autocast = "float32"
    seed: int = 0
    workers: int = 2
    log_every: int = 50
    save_every: int = 500
    evaluate_every: int = 1
    freeze_stem: bool = True
    augment: Augment = "flip"
    scale_range: tuple[float, float] = (0.5, 2.0)
    crop_size: int = 0
    copy_paste: float = 0.0

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            require_choice(name, getattr(self, name), get_args(choices))
        require_positive_ints({name: getattr(self, name) for name in _POSITIVE_INTS})
        require_non_negative_ints({name: getattr(self, name) for name in _NON_NEGATIVE_INTS})
        for name in _NON_NEGATIVE_NUMBERS:
            value = getattr(self, name)
            within = is_finite(value) and 0 <= value <= _LARGEST_NUMBER
            require(within, f"{name}={bounded_repr(value)}: expected a number in 0..{_LARGEST_NUMBER:.0e}.")
        decay = self.ema_decay
        within = is_finite(decay) and 0 <= decay < 1
        require(within, f"ema_decay={bounded_repr(decay)}: expected a number in 0..1, below 1.")
        require_unit_interval({"copy_paste": self.copy_paste})
        require_bools({"freeze_stem": self.freeze_stem})
        self._check_milestones()
        self._check_lr_mults()
        coerce_tuple(self, "scale_range", 2)
        low, high = self.scale_range
        least, greatest = _SCALE_LIMITS
        require(
            is_finite(low) and is_finite(high) and least <= low <= high <= greatest,
            f"scale_range={bounded_repr(self.scale_range)}: expected (least, greatest) factor, both in "
            f"{least:g}..{greatest:g}.",
        )

    def _check_milestones(self) -> None:
        milestones = self.milestones
        is_list = isinstance(milestones, list | tuple) and len(milestones) <= _MAX_MILESTONES
        require(
            is_list and all(is_int(epoch) and 0 <= epoch <= _LARGEST_MILESTONE for epoch in milestones),
            f"milestones={bounded_repr(milestones)}: expected a list of at most {_MAX_MILESTONES} epochs in "
            f"0..{_LARGEST_MILESTONE}.",
        )
        object.__setattr__(self, "milestones", tuple(milestones))

    def _check_lr_mults(self) -> None:
        mults = self.lr_mults
        valid = isinstance(mults, Mapping) and all(
            isinstance(start, str) and start and is_finite(mult) and mult >= 0
            for start, mult in mults.items()
        )
        require(
            valid,
            f"lr_mults={mults!r}: expected {{start of parameter names: multiplier}}, numbers of at least 0.",
        )
        object.__setattr__(self, "lr_mults", dict(mults))

    def lr_mult_of(self, parameter: str, class_layers: Iterable[str] = ()) -> float:
        """Return the multiplier of the learning rate of a parameter.

        Args:
            parameter: Name of the parameter.
            class_layers: Names of the layers that output class scores.
        """
        owner = {"backbone": self.backbone_lr_mult, **dict.fromkeys(class_layers, self.class_lr_mult)}
        for mults in (self.lr_mults, owner):
            starts = [start for start in mults if parameter == start or parameter.startswith(f"{start}.")]
            if starts:
                return mults[max(starts, key=len)]
        return 1.0

    def lr_at(self, iteration: int, iters_per_epoch: int) -> float:
        """Return the learning rate of an iteration.

        Args:
            iteration: Iteration from 0 over all epochs.
            iters_per_epoch: Number of iterations in each epoch.
        """
        if self.schedule == "step":
            lr = self.lr * 0.1 ** sum(iteration >= epoch * iters_per_epoch for epoch in self.milestones)
        else:
            lr = self.lr * 0.5 * (1 + math.cos(math.pi * iteration / (self.epochs * iters_per_epoch)))
        warmup = min(self.warmup_iters, self.epochs * iters_per_epoch // 10)
        if iteration >= warmup:
            return lr
        return lr * (1 - (1 - iteration / warmup) * 0.999)

    def resume_key(self) -> Recipe:
        """Return the settings that a run and its resumption must share.

        Settings that do not change the weights have fixed values in it.
        """
        return replace(self, workers=0, log_every=1, save_every=1, evaluate_every=1)

    def to_json(self) -> str:
        """Return the settings as JSON text."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Recipe:
        """Read settings, for example those of ``to_json``, also under the names of earlier versions.

        Raises:
            ConfigError: A setting is unknown or wrong.
        """
        require(
            isinstance(values, Mapping),
            f"A recipe is {bounded_repr(values)}: expected an object of settings.",
        )
        known = [field.name for field in dataclasses.fields(cls)]
        settings: dict[str, Any] = {}
        for key, value in values.items():
            name = _OLD_NAMES.get(key, key)
            if name not in known:
                hint = did_you_mean(str(name)[:60], known)
                raise ConfigError(
                    f"Unknown setting {bounded_repr(key)} in a recipe. {hint}Expected: {', '.join(known)}."
                )
            if name in settings:
                raise ConfigError(f"A recipe has {name!r} twice, also under its old name: keep one of them.")
            settings[name] = value
        return cls(**settings)


def multiscale_short_sides(short: int, long: int) -> tuple[int, ...]:
    """Return the short sides in pixels, at most ``long``, that "multiscale" chooses from.

    Args:
        short: Short side at prediction.
        long: Greatest long side.
    """
    scaled = tuple(max(round(short * scale), 1) for scale in _SHORT_SIDE_SCALES)
    return tuple(min(side, long) for side in _LIGHT_SHORT_SIDES.get(short, scaled))


PUBLISHED_1X = Recipe()
PUBLISHED_3X = Recipe(epochs=36, milestones=(27, 33), augment="multiscale")
# mmdet's schedules of SOLOv2 (configs/solov2).
PUBLISHED_SOLOV2_1X = replace(PUBLISHED_1X, grad_clip_norm=35.0)
PUBLISHED_SOLOV2_3X = replace(PUBLISHED_3X, grad_clip_norm=35.0)
FINE_TUNE = Recipe(
    epochs=20,
    batch_size=4,  # small sets need many iterations more than large batches
    optimizer="adamw",
    lr=4e-4,
    backbone_lr_mult=0.25,
    class_lr_mult=5.0,
    weight_decay=0.05,
    schedule="cosine",
    warmup_iters=50,
    grad_clip_norm=10.0,
    ema_decay=0.998,
    log_every=20,
    save_every=200,
    augment="jitter",
    scale_range=(0.6, 1.6),
)
# mmdet's schedule of YOLACT (configs/yolact); "jitter" is closest to its expansion and cropping of images.
PUBLISHED_YOLACT = Recipe(
    epochs=55,
    batch_size=8,
    lr=1e-3,
    weight_decay=5e-4,
    milestones=(20, 42, 49, 52),
    freeze_stem=False,
    augment="jitter",
    scale_range=(0.4, 1.6),
)
RECIPES = {
    "finetune": FINE_TUNE,
    "1x": PUBLISHED_1X,
    "3x": PUBLISHED_3X,
    "solov2_1x": PUBLISHED_SOLOV2_1X,
    "solov2_3x": PUBLISHED_SOLOV2_3X,
    "yolact": PUBLISHED_YOLACT,
}
