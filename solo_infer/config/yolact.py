"""Configuration of YOLACT, mmdet's implementation and the original one.

The defaults and presets are those of mmdet 3.3.0 (``configs/yolact``) and of ``data/config.py`` in the
author's repository.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal

from solo_infer.config.architecture import ArchitectureConfig, BasePostprocessConfig, Preset
from solo_infer.config.preprocess import PreprocessConfig
from solo_infer.config.validation import (
    coerce_tuple,
    is_finite,
    require,
    require_bools,
    require_choice,
    require_positive_ints,
    require_unit_interval,
)

if TYPE_CHECKING:
    from typing_extensions import Self

Variant = Literal["mmdet", "original"]

VARIANTS: tuple[Variant, ...] = ("mmdet", "original")
YOLACT_BACKBONES = ("resnet50", "resnet101")
YOLACT_LEVELS = 5  # P3 to P7
ALL_ANCHORS = 1 << 20  # more anchors than a level of any network input has
_ANCHOR_SIZES = (24, 48, 96, 192, 384)
_ORIGINAL_INPUT_SIDE = 550  # pixels: network input that the original anchor sizes are given for


@dataclass(frozen=True)
class YOLACTConfig(ArchitectureConfig):
    """Architecture of a YOLACT network.

    Attributes:
        variant: "mmdet" (anchors of three aspect ratios and equal area at fixed strides; P6 and P7 from C5)
            or "original" (square anchors of three areas at the centers of the cells, a known bug that the
            author keeps for his weights; ReLU after P3 to P5; P6 and P7 from P5).
        backbone: "resnet50" or "resnet101".
        num_classes: Number of object classes, without a background class.
        anchor_sizes: Side of the middle anchor of each level in pixels of the network input, finest first.
        strides: Anchor stride of each level in pixels. Used by "mmdet" only.
        num_protos: Number of prototype masks, and of mask coefficients per anchor.
        pyramid_channels: Channels of the feature pyramid and the heads.
    """

    family: ClassVar[str] = "yolact"

    variant: Variant = "mmdet"
    backbone: str = "resnet50"
    num_classes: int = 80
    anchor_sizes: tuple[float, ...] = _ANCHOR_SIZES
    strides: tuple[float, ...] = (550 / 69, 550 / 35, 550 / 18, 550 / 9, 550 / 5)
    num_protos: int = 32
    pyramid_channels: int = 256

    def __post_init__(self) -> None:
        require_choice("variant", self.variant, VARIANTS)
        require_choice("backbone", self.backbone, YOLACT_BACKBONES)
        names = ("num_classes", "num_protos", "pyramid_channels")
        require_positive_ints({name: getattr(self, name) for name in names})
        for name in ("anchor_sizes", "strides"):
            coerce_tuple(self, name, YOLACT_LEVELS)
            positive = all(is_finite(value) and value > 0 for value in getattr(self, name))
            require(positive, f"{name}={getattr(self, name)}: expected positive finite numbers.")

    @property
    def name(self) -> str:
        """Name of the variant, "yolact" or "yolact_original"."""
        return "yolact_original" if self.is_original else "yolact"

    @property
    def is_original(self) -> bool:
        """Whether the network is that of the original implementation."""
        return self.variant == "original"


@dataclass(frozen=True)
class YOLACTPostprocessConfig(BasePostprocessConfig):
    """Post-processing settings of YOLACT (mmdet's ``test_cfg``).

    Attributes:
        score_thr: Score of its best class that an anchor must exceed to be a candidate, 0..1.
        mask_thr: Mask score that a pixel of a mask must exceed, 0..1.
        filter_thr: Score that a detection must exceed, 0..1. The original implementation keeps all.
        nms_pre: Greatest number of anchors per level that enter Fast NMS, by their best class.
        iou_thr: A box is removed if its IoU with a better one of its class exceeds this, 0..1.
        top_k: Greatest number of boxes per class that Fast NMS compares, best first.
        max_per_image: Greatest number of detections per image, best first.
        across_classes: Whether Fast NMS compares boxes of different classes. Each box then counts as its best
            class only.
    """

    score_thr: float = 0.05
    mask_thr: float = 0.5
    filter_thr: float = 0.05
    nms_pre: int = 1000
    iou_thr: float = 0.5
    top_k: int = 200
    max_per_image: int = 100

    def __post_init__(self) -> None:
        names = ("score_thr", "mask_thr", "filter_thr", "iou_thr")
        require_unit_interval({name: getattr(self, name) for name in names})
        require_positive_ints({name: getattr(self, name) for name in ("nms_pre", "top_k", "max_per_image")})
        require_bools({"across_classes": self.across_classes})

    def with_min_score(self, min_score: float) -> Self:
        """Return these settings without detections of a score below ``min_score``."""
        # Scores are float32 and must exceed the threshold.
        return super().with_min_score(_float32_below(min_score))


def _float32_below(number: float) -> float:
    """Return the greatest float32 below a positive number of float32, 0 for 0."""
    (bits,) = struct.unpack("<I", struct.pack("<f", number))
    (below,) = struct.unpack("<f", struct.pack("<I", max(bits - 1, 0)))
    return float(below)


def yolact_preset(variant: Variant, backbone: str = "resnet50", side: int = 550) -> Preset:
    """Return the published settings of YOLACT.

    Args:
        variant: "mmdet" or "original".
        backbone: "resnet50" or "resnet101".
        side: Side of the network input in pixels: 550, or 700 of the original implementation.
    """
    architecture = YOLACTConfig(variant, backbone)
    postprocess = YOLACTPostprocessConfig()
    if architecture.is_original:
        architecture = replace(architecture, anchor_sizes=original_anchor_sizes(side))
        postprocess = YOLACTPostprocessConfig(filter_thr=0.0, nms_pre=ALL_ANCHORS)
    preprocess = PreprocessConfig(
        short_side=side,
        long_side=side,
        mean=(123.68, 116.78, 103.94),
        std=(58.40, 57.12, 57.38),
        size_divisor=1,
        keep_ratio=False,
        round_to_uint8=not architecture.is_original,
    )
    return Preset(architecture, preprocess, postprocess)


def original_anchor_sizes(side: int) -> tuple[float, ...]:
    """Return the original anchor sizes for a network input of ``side`` pixels a side."""
    return tuple(float(size * side // _ORIGINAL_INPUT_SIDE) for size in _ANCHOR_SIZES)


YOLACT_PRESETS: dict[str, Preset] = {
    "yolact_r50": yolact_preset("mmdet"),
    "yolact_r101": yolact_preset("mmdet", "resnet101"),
    "yolact_original_r50": yolact_preset("original"),
    "yolact_original_r101": yolact_preset("original", "resnet101"),
    "yolact_original_r101_700": yolact_preset("original", "resnet101", 700),
}
