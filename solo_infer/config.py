"""What a model is: architecture, preprocessing, thresholds and categories, as frozen dataclasses.

The named presets hold the published settings of mmdet 3.3.0 (``configs/solo``).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from solo_infer.categories import COCO, Categories
from solo_infer.errors import ConfigError

HEADS = ("solo", "decoupled", "decoupled_light")
BACKBONES = ("resnet50", "resnet101")
KERNELS = ("gaussian", "linear")

_Config = TypeVar("_Config")


def _require(condition: bool, what: str) -> None:
    if not condition:
        raise ConfigError(what)


@dataclass(frozen=True)
class Architecture:
    """The shape of a SOLO network.

    Attributes:
        head: "solo" (one mask per grid cell), "decoupled" (an x and a y map multiplied, two
            branches) or "decoupled_light" (the same from one short branch).
        backbone: "resnet50" or "resnet101".
        num_classes: Number of object classes, without a background.
        num_grids: Grid cells along each side, one number per level, finest level first.
        strides: Stride of each level in input pixels; a mask must cover more pixels than this.
        stacked_convs: Convolutions in each branch of the head.
        pyramid_channels: Width of the feature pyramid.
        head_channels: Width of the head's branches; a multiple of 32 (GroupNorm has 32 groups).
    """

    head: str = "decoupled"
    backbone: str = "resnet50"
    num_classes: int = 80
    num_grids: tuple[int, ...] = (40, 36, 24, 16, 12)
    strides: tuple[int, ...] = (8, 8, 16, 32, 32)
    stacked_convs: int = 7
    pyramid_channels: int = 256
    head_channels: int = 256

    def __post_init__(self) -> None:
        _require(self.head in HEADS, f"head={self.head!r}: expected one of {HEADS}.")
        _require(self.backbone in BACKBONES, f"backbone={self.backbone!r}: expected one of {BACKBONES}.")
        _require(
            len(self.num_grids) == len(self.strides) == 5,
            f"num_grids={self.num_grids}, strides={self.strides}: expected five levels in each.",
        )
        counts = (self.num_classes, self.stacked_convs, self.pyramid_channels, *self.num_grids, *self.strides)
        _require(all(count >= 1 for count in counts), f"{self}: every number must be at least 1.")
        _require(
            self.head_channels >= 32 and self.head_channels % 32 == 0,
            f"head_channels={self.head_channels}: expected a positive multiple of 32.",
        )

    @property
    def num_cells(self) -> int:
        """Number of grid cells over all levels (3,872 in the published models)."""
        return sum(grid * grid for grid in self.num_grids)


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes a network input (mmdet's test pipeline).

    Attributes:
        short_side: The image is scaled, keeping its ratio, until its short side has this many pixels ...
        long_side: ... or its long side this many, whichever is met first.
        mean: Per RGB channel, subtracted from values 0..255 (torchvision's ImageNet statistics).
        std: Per RGB channel, divides after that.
        size_divisor: The normalised image is padded with 0, right and bottom, to a multiple of this.
    """

    short_side: int = 800
    long_side: int = 1333
    mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    std: tuple[float, float, float] = (58.395, 57.12, 57.375)
    size_divisor: int = 32

    def __post_init__(self) -> None:
        _require(
            1 <= self.short_side <= self.long_side,
            f"short_side={self.short_side}, long_side={self.long_side}: expected 1 <= short <= long.",
        )
        _require(
            len(self.mean) == len(self.std) == 3, f"mean={self.mean}, std={self.std}: expected three each."
        )
        _require(all(value > 0 for value in self.std), f"std={self.std}: expected positive numbers.")
        _require(self.size_divisor >= 1, f"size_divisor={self.size_divisor}: expected at least 1.")

    def resized_shape(self, height: int, width: int) -> tuple[int, int]:
        """Return the (height, width) in pixels after the resize of an image of this size."""
        scale = min(
            self.long_side / max(height, width),
            self.short_side / min(height, width),
        )
        return max(int(height * scale + 0.5), 1), max(int(width * scale + 0.5), 1)

    def padded_shape(self, height: int, width: int) -> tuple[int, int]:
        """Return (height, width) in pixels rounded up to multiples of ``size_divisor``."""
        divisor = self.size_divisor
        return math.ceil(height / divisor) * divisor, math.ceil(width / divisor) * divisor


@dataclass(frozen=True)
class Thresholds:
    """The settings of the post-processing (mmdet's ``test_cfg`` of the SOLO models).

    Attributes:
        score_thr: A (cell, class) pair is a candidate if its class score is greater, 0..1.
        mask_thr: A pixel belongs to a mask if its mask score is greater, 0..1.
        filter_thr: A detection is kept if its score after Matrix-NMS is at least this, 0..1.
        nms_pre: Candidates that enter Matrix-NMS, best first.
        max_per_image: Detections kept per image, best first.
        kernel: Decay of Matrix-NMS, "gaussian" or "linear".
        sigma: Width of the gaussian kernel.
    """

    score_thr: float = 0.1
    mask_thr: float = 0.5
    filter_thr: float = 0.05
    nms_pre: int = 500
    max_per_image: int = 100
    kernel: str = "gaussian"
    sigma: float = 2.0

    def __post_init__(self) -> None:
        for name in ("score_thr", "mask_thr", "filter_thr"):
            value = getattr(self, name)
            _require(0.0 <= value <= 1.0, f"{name}={value}: expected a number in 0..1.")
        for name in ("nms_pre", "max_per_image"):
            value = getattr(self, name)
            _require(isinstance(value, int) and value >= 1, f"{name}={value}: expected an integer >= 1.")
        _require(self.kernel in KERNELS, f"kernel={self.kernel!r}: expected one of {KERNELS}.")
        _require(self.sigma > 0, f"sigma={self.sigma}: expected a positive number.")


@dataclass(frozen=True)
class ModelConfig:
    """Everything but the weights: what ``config.json`` of a saved model holds."""

    architecture: Architecture = field(default_factory=Architecture)
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    thresholds: Thresholds = field(default_factory=Thresholds)
    categories: Categories = COCO

    def __post_init__(self) -> None:
        given, expected = len(self.categories), self.architecture.num_classes
        _require(given == expected, f"{given} category names for a model of {expected} classes.")

    def to_dict(self) -> dict[str, Any]:
        """Return the configuration as JSON-ready values."""
        return {"format": "solo_infer/1", **dataclasses.asdict(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModelConfig:
        """Read what ``to_dict`` wrote.

        Raises:
            ConfigError: The format is another one, or a field is unknown or wrong.
        """
        parts = dict(values)
        written = parts.pop("format", None)
        _require(written == "solo_infer/1", f"format={written!r}: expected 'solo_infer/1'.")
        kinds = {
            "architecture": Architecture,
            "preprocessing": Preprocessing,
            "thresholds": Thresholds,
            "categories": Categories,
        }
        unknown = sorted(set(parts) - set(kinds))
        _require(not unknown, f"Unknown section(s) {unknown}: expected some of {sorted(kinds)}.")
        return cls(**{name: _build(kind, parts[name]) for name, kind in kinds.items() if name in parts})


def _build(kind: type[_Config], values: Any) -> _Config:
    """Build a dataclass from JSON values, naming what is wrong with them."""
    name = kind.__name__
    _require(isinstance(values, Mapping), f"{name}: expected an object, got {type(values).__name__}.")
    known = {item.name: item for item in dataclasses.fields(kind)}  # type: ignore[arg-type]
    unknown = sorted(set(values) - set(known))
    _require(not unknown, f"{name}: unknown field(s) {unknown}; known are {sorted(known)}.")
    tuples = {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}
    try:
        return kind(**tuples)
    except TypeError as error:
        raise ConfigError(f"{name}: a value has the wrong type ({error}) in {dict(values)}.") from error


def preset(head: str, backbone: str = "resnet50", categories: Categories = COCO) -> ModelConfig:
    """Return the published settings of a head: 800 px and 7 convolutions, the light one 512 px and 4.

    Args:
        head: "solo", "decoupled" or "decoupled_light".
        backbone: "resnet50" or "resnet101".
        categories: The class names; their number sets the number of classes.
    """
    light = head == "decoupled_light"
    return ModelConfig(
        Architecture(
            head=head,
            backbone=backbone,
            num_classes=len(categories),
            stacked_convs=4 if light else 7,
        ),
        Preprocessing(short_side=512, long_side=852) if light else Preprocessing(),
        categories=categories,
    )


PRESETS: dict[str, ModelConfig] = {
    f"{head}_{backbone.replace('resnet', 'r')}": preset(head, backbone)
    for head in HEADS
    for backbone in BACKBONES
}


def find_preset(name: str) -> ModelConfig:
    """Return a preset by name, e.g. "decoupled_light_r50".

    Raises:
        ConfigError: There is no such preset; the message lists them.
    """
    if name not in PRESETS:
        raise ConfigError(f"No preset {name!r}: expected one of {sorted(PRESETS)}.")
    return PRESETS[name]
