"""What a model is: architecture, preprocessing, thresholds and categories, as frozen dataclasses.

The named presets hold the published settings of mmdet 3.3.0 (``configs/solo`` and ``configs/yolact``).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from solo_infer._checks import fix_tuple, is_finite, require, require_parts, require_whole
from solo_infer.categories import COCO, Categories
from solo_infer.errors import ConfigError
from solo_infer.yolact_config import (
    AUTHORS_THRESHOLDS,
    AUTHORS_YOLACT,
    YOLACT_HEADS,
    YolactArchitecture,
    YolactThresholds,
    authors_anchors,
)

HEADS = ("solo", "decoupled", "decoupled_light")
LITE0 = "efficientnet_lite0"
BACKBONES = ("resnet50", "resnet101", LITE0)
EXTRA_LEVELS = ("max_pool", "conv")
KERNELS = ("gaussian", "linear")
SUPPRESSIONS = ("matrix", "greedy")
LEVELS = 5  # of the feature pyramid
LIGHT_SCALE_RANGES = ((1, 64), (32, 128), (64, 256), (128, 512), (256, 2048))

_Config = TypeVar("_Config")


@dataclass(frozen=True)
class Architecture:
    """The shape of a SOLO network.

    Attributes:
        head: "solo" (one mask per grid cell), "decoupled" (an x and a y map multiplied, two
            branches) or "decoupled_light" (the same from one short branch).
        backbone: "resnet50", "resnet101" or "efficientnet_lite0".
        num_classes: Number of object classes, without a background.
        num_grids: Grid cells along each side, one number per level, finest level first.
        strides: Stride of each level in input pixels; a mask must cover more pixels than this.
        stacked_convs: Convolutions in each branch of the head.
        pyramid_channels: Width of the feature pyramid.
        head_channels: Width of the head's branches; a multiple of 32 (GroupNorm has 32 groups).
        scale_ranges: For training: the least and greatest root of an instance's box area, in pixels of the
            network input, that each level learns.
        head_bias: The convolutions in the head's branches have a bias before their GroupNorm.
        extra_level: How P6 is made of P5: "max_pool" (every second pixel, as published) or "conv" (a 3x3
            convolution of stride 2).
        deformable_head: The last convolution of each branch of the head is deformable (the authors'
            ``use_dcn_in_tower`` with ``type_dcn="DCN"``).
        deformable_stages: Stages of the ResNet, of 1 to 4, whose 3x3 convolutions are deformable (the
            authors' ``stage_with_dcn``).
    """

    head: str = "decoupled"
    backbone: str = "resnet50"
    num_classes: int = 80
    num_grids: tuple[int, ...] = (40, 36, 24, 16, 12)
    strides: tuple[int, ...] = (8, 8, 16, 32, 32)
    stacked_convs: int = 7
    pyramid_channels: int = 256
    head_channels: int = 256
    scale_ranges: tuple[tuple[float, float], ...] = ((1, 96), (48, 192), (96, 384), (192, 768), (384, 2048))
    head_bias: bool = False
    extra_level: str = EXTRA_LEVELS[0]
    deformable_head: bool = False
    deformable_stages: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        require(self.head in HEADS, f"head={self.head!r}: expected one of {HEADS}.")
        require(self.backbone in BACKBONES, f"backbone={self.backbone!r}: expected one of {BACKBONES}.")
        for name in ("num_grids", "strides"):
            fix_tuple(self, name, LEVELS)
            require_whole({f"{name}[{level}]": value for level, value in enumerate(getattr(self, name))})
        names = ("num_classes", "stacked_convs", "pyramid_channels", "head_channels")
        require_whole({name: getattr(self, name) for name in names})
        require(
            self.head_channels % 32 == 0,
            f"head_channels={self.head_channels}: expected a multiple of 32.",
        )
        fix_tuple(self, "scale_ranges", LEVELS)
        object.__setattr__(self, "scale_ranges", tuple(map(tuple, self.scale_ranges)))
        for bounds in self.scale_ranges:
            ordered = len(bounds) == 2 and all(map(is_finite, bounds)) and 0 <= bounds[0] <= bounds[1]
            require(ordered, f"scale_ranges={self.scale_ranges}: expected (least, greatest) for each level.")
        self._check_variant()

    def _check_variant(self) -> None:
        for name in ("head_bias", "deformable_head"):
            value = getattr(self, name)
            require(isinstance(value, bool), f"{name}={value!r}: expected true or false.")
        require(
            self.extra_level in EXTRA_LEVELS,
            f"extra_level={self.extra_level!r}: expected one of {EXTRA_LEVELS}.",
        )
        stages = self.deformable_stages
        known = isinstance(stages, list | tuple) and all(stage in (1, 2, 3, 4) for stage in stages)
        require(known, f"deformable_stages={stages!r}: expected some of 1, 2, 3, 4.")
        object.__setattr__(self, "deformable_stages", tuple(sorted(set(stages))))
        require(
            not stages or self.backbone != LITE0, f"deformable_stages={stages}: expected none with {LITE0}."
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
        keep_ratio: Whether the scaled image keeps its ratio of sides; else it becomes a square of
            ``short_side``, which must equal ``long_side``.
        whole_values: Whether scaled values are rounded to whole numbers, as OpenCV does it on uint8 images.
    """

    short_side: int = 800
    long_side: int = 1333
    mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    std: tuple[float, float, float] = (58.395, 57.12, 57.375)
    size_divisor: int = 32
    keep_ratio: bool = True
    whole_values: bool = True

    def __post_init__(self) -> None:
        require_whole({name: getattr(self, name) for name in ("short_side", "long_side", "size_divisor")})
        require(
            self.short_side <= self.long_side,
            f"short_side={self.short_side}, long_side={self.long_side}: expected short <= long.",
        )
        square = self.keep_ratio or self.short_side == self.long_side
        require(
            square,
            f"keep_ratio=False makes squares: expected equal sides, got {self.short_side} and "
            f"{self.long_side}.",
        )
        fix_tuple(self, "mean", 3)
        fix_tuple(self, "std", 3)
        require(all(map(is_finite, self.mean)), f"mean={self.mean}: expected finite numbers.")
        require(
            all(is_finite(value) and value > 0 for value in self.std),
            f"std={self.std}: expected positive finite numbers.",
        )

    def resized_shape(self, height: int, width: int) -> tuple[int, int]:
        """Return the (height, width) in pixels after the resize of an image of this size."""
        if not self.keep_ratio:
            return self.short_side, self.short_side
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
        filter_thr: A detection is kept if its score after the suppression is at least this, 0..1.
        nms_pre: Candidates that enter the suppression, best first.
        max_per_image: Detections kept per image, best first.
        kernel: Decay of Matrix-NMS, "gaussian" or "linear".
        sigma: Width of the gaussian kernel.
        nms: "matrix" (duplicates lose score) or "greedy" (duplicates are dropped, the first SOLO's way).
        nms_iou: With "greedy" a mask is dropped if its IoU with a better one of its class is greater, 0..1
            (0.5: ``mask_nms`` of the authors' code in AdelaiDet).
    """

    score_thr: float = 0.1
    mask_thr: float = 0.5
    filter_thr: float = 0.05
    nms_pre: int = 500
    max_per_image: int = 100
    kernel: str = "gaussian"
    sigma: float = 2.0
    nms: str = SUPPRESSIONS[0]
    nms_iou: float = 0.5

    def __post_init__(self) -> None:
        parts = ("score_thr", "mask_thr", "filter_thr", "nms_iou")
        require_parts({name: getattr(self, name) for name in parts})
        require_whole({name: getattr(self, name) for name in ("nms_pre", "max_per_image")})
        require(self.kernel in KERNELS, f"kernel={self.kernel!r}: expected one of {KERNELS}.")
        require(self.nms in SUPPRESSIONS, f"nms={self.nms!r}: expected one of {SUPPRESSIONS}.")
        positive = is_finite(self.sigma) and self.sigma > 0
        require(positive, f"sigma={self.sigma!r}: expected a positive finite number.")


AnyArchitecture = Architecture | YolactArchitecture
AnyThresholds = Thresholds | YolactThresholds


@dataclass(frozen=True)
class ModelConfig:
    """Everything but the weights: what ``config.json`` of a saved model holds.

    Attributes:
        architecture: Of a SOLO or a YOLACT network; its ``head`` tells which in ``config.json``.
        preprocessing: From the image to the network input.
        thresholds: Of the same family as the architecture.
        categories: The class names.
    """

    architecture: AnyArchitecture = field(default_factory=Architecture)
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    thresholds: AnyThresholds = field(default_factory=Thresholds)
    categories: Categories = COCO

    def __post_init__(self) -> None:
        expected_kind = Thresholds if isinstance(self.architecture, Architecture) else YolactThresholds
        require(
            isinstance(self.thresholds, expected_kind),
            f"thresholds are {type(self.thresholds).__name__}: a {self.architecture.head} model takes "
            f"{expected_kind.__name__}.",
        )
        given, expected = len(self.categories), self.architecture.num_classes
        require(given == expected, f"{given} category names for a model of {expected} classes.")

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
        require(written == "solo_infer/1", f"format={written!r}: expected 'solo_infer/1'.")
        is_yolact = _head_of(parts) in YOLACT_HEADS
        kinds: dict[str, Any] = {
            "architecture": YolactArchitecture if is_yolact else Architecture,
            "preprocessing": Preprocessing,
            "thresholds": YolactThresholds if is_yolact else Thresholds,
            "categories": Categories,
        }
        unknown = sorted(set(parts) - set(kinds))
        require(not unknown, f"Unknown section(s) {unknown}: expected some of {sorted(kinds)}.")
        return cls(**{name: _build(kind, parts[name]) for name, kind in kinds.items() if name in parts})


def _head_of(parts: Mapping[str, Any]) -> Any:
    """Return the head that a configuration names, None if it names none."""
    architecture = parts.get("architecture")
    return architecture.get("head") if isinstance(architecture, Mapping) else None


def _build(kind: type[_Config], values: Any) -> _Config:
    """Build a dataclass from JSON values, naming what is wrong with them."""
    name = kind.__name__
    require(isinstance(values, Mapping), f"{name}: expected an object, got {type(values).__name__}.")
    known = {item.name: item for item in dataclasses.fields(kind)}  # type: ignore[arg-type]
    unknown = sorted(set(values) - set(known))
    require(not unknown, f"{name}: unknown field(s) {unknown}; known are {sorted(known)}.")
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
            scale_ranges=LIGHT_SCALE_RANGES if light else Architecture.scale_ranges,
        ),
        Preprocessing(short_side=512, long_side=852) if light else Preprocessing(),
        categories=categories,
    )


def yolact_preset(
    head: str, backbone: str = "resnet50", side: int = 550, categories: Categories = COCO
) -> ModelConfig:
    """Return the published settings of YOLACT.

    Args:
        head: "yolact" or "yolact_author".
        backbone: "resnet50" or "resnet101".
        side: Of the network input in pixels; the author published 550 and 700, OpenMMLab 550.
        categories: The class names; their number sets the number of classes.
    """
    architecture = YolactArchitecture(head, backbone, len(categories))
    if architecture.is_authors:
        architecture = dataclasses.replace(architecture, anchor_sizes=authors_anchors(side))
    preprocessing = Preprocessing(
        short_side=side,
        long_side=side,
        mean=(123.68, 116.78, 103.94),
        std=(58.40, 57.12, 57.38),
        size_divisor=1,
        keep_ratio=False,
        whole_values=not architecture.is_authors,
    )
    thresholds = AUTHORS_THRESHOLDS if architecture.is_authors else YolactThresholds()
    return ModelConfig(architecture, preprocessing, thresholds, categories)


PRESETS: dict[str, ModelConfig] = {
    f"{head}_{backbone.replace('resnet', 'r')}": preset(head, backbone)
    for head in HEADS
    for backbone in ("resnet50", "resnet101")
} | {
    f"{head}_{backbone.replace('resnet', 'r')}": yolact_preset(head, backbone)
    for head in YOLACT_HEADS
    for backbone in ("resnet50", "resnet101")
}
PRESETS["yolact_author_r101_700"] = yolact_preset(AUTHORS_YOLACT, "resnet101", 700)
PRESETS["decoupled_light_dcn_r50"] = replace(
    preset("decoupled_light"),
    architecture=Architecture(
        head="decoupled_light",
        stacked_convs=4,
        scale_ranges=LIGHT_SCALE_RANGES,
        deformable_head=True,
        deformable_stages=(2, 3, 4),
    ),
)


def find_preset(name: str) -> ModelConfig:
    """Return a preset by name, e.g. "decoupled_light_r50".

    Raises:
        ConfigError: There is no such preset; the message lists them.
    """
    if name not in PRESETS:
        raise ConfigError(f"No preset {name!r}: expected one of {sorted(PRESETS)}.")
    return PRESETS[name]
