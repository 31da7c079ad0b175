"""Configuration of SOLO, Decoupled SOLO, Decoupled Light SOLO and SOLOv2.

The defaults and presets are the published settings of mmdet 3.3.0 (``configs/solo``, ``configs/solov2``).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from solo_infer.config.architecture import ArchitectureConfig, BasePostprocessConfig, Preset
from solo_infer.config.preprocess import PreprocessConfig
from solo_infer.config.validation import (
    bounded_repr,
    coerce_tuple,
    is_finite,
    require,
    require_bools,
    require_choice,
    require_positive,
    require_positive_ints,
    require_unit_interval,
)

HeadName = Literal["solo", "decoupled", "decoupled_light", "solov2"]
ResNetName = Literal["resnet18", "resnet34", "resnet50", "resnet101", "resnext101_64x4d"]
BackboneName = Literal[ResNetName, "efficientnet_lite0"]
ExtraLevel = Literal["max_pool", "conv"]
DeformableHead = Literal["none", "last", "all"]

HEADS: tuple[HeadName, ...] = ("solo", "decoupled", "decoupled_light", "solov2")
LITE0: BackboneName = "efficientnet_lite0"
BACKBONES: tuple[BackboneName, ...] = (
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnext101_64x4d",
    LITE0,
)
# Only the bottleneck blocks of a ResNet have a deformable variant, as in mmdet.
DEFORMABLE_BACKBONES: tuple[BackboneName, ...] = ("resnet50", "resnet101", "resnext101_64x4d")
EXTRA_LEVELS: tuple[ExtraLevel, ...] = ("max_pool", "conv")
DEFORMABLE_HEADS: tuple[DeformableHead, ...] = ("none", "last", "all")
NMS_KERNELS = ("gaussian", "linear")
NMS_METHODS = ("matrix", "greedy")
LEVEL_STRIDES = (8, 8, 16, 32, 32)  # input pixels per pixel of each head input, finest level first
NUM_LEVELS = len(LEVEL_STRIDES)
LIGHT_SCALE_RANGES = ((1, 64), (32, 128), (64, 256), (128, 512), (256, 2048))
SOLOV2_LIGHT_SCALE_RANGES = ((1, 56), (28, 112), (56, 224), (112, 448), (224, 896))


@dataclass(frozen=True)
class SOLOConfig(ArchitectureConfig):
    """Architecture of a SOLO network.

    Attributes:
        head: "solo" (one mask per grid cell), "decoupled" (the product of an x mask and a y mask, from two
            branches), "decoupled_light" (the same from one short branch) or "solov2" (a convolution kernel
            for each cell, applied to mask features that all cells share).
        backbone: "resnet18", "resnet34", "resnet50", "resnet101", "resnext101_64x4d" or "efficientnet_lite0".
        num_classes: Number of object classes, without a background class.
        num_grids: Grid cells along each side, one number per level, finest level first.
        stacked_convs: Convolutions in each branch of the head.
        pyramid_channels: Channels of the feature pyramid.
        head_channels: Channels of the branches of the head; a multiple of 32 (GroupNorm has 32 groups).
        scale_ranges: Per level, the least and greatest square root of the box area of the instances that it
            learns, in pixels of the network input. Used in training only.
        head_bias: Whether the convolutions of the branches have a bias before their GroupNorm.
        extra_level: How P6 is made from P5: "max_pool" (every second pixel, as published) or "conv" (a 3x3
            convolution of stride 2).
        deformable_head: Convolutions of each branch that are deformable: "none", "last" or "all"
            (``use_dcn_in_tower`` in the authors' code, ``dcn_apply_to_all_conv`` in mmdet). ``False`` and
            ``True``, which earlier versions wrote, stand for "none" and "last".
        deformable_stages: ResNet stages, of 1 to 4, whose 3x3 convolutions are deformable
            (``stage_with_dcn`` in the authors' code).
        modulated: Whether deformable convolutions are those of version 2, with a factor for each tap.
        mask_channels: With "solov2", the channels of the mask features, and so the length of each kernel; a
            multiple of 32.
        deformable_mask_features: With "solov2", whether all convolutions that compute the mask features are
            deformable.
    """

    family: ClassVar[str] = "solo"

    head: HeadName = "decoupled"
    backbone: BackboneName = "resnet50"
    num_classes: int = 80
    num_grids: tuple[int, ...] = (40, 36, 24, 16, 12)
    stacked_convs: int = 7
    pyramid_channels: int = 256
    head_channels: int = 256
    scale_ranges: tuple[tuple[float, float], ...] = ((1, 96), (48, 192), (96, 384), (192, 768), (384, 2048))
    head_bias: bool = False
    extra_level: ExtraLevel = "max_pool"
    deformable_head: DeformableHead = "none"
    deformable_stages: tuple[int, ...] = ()
    modulated: bool = False
    mask_channels: int = 256
    deformable_mask_features: bool = False

    def __post_init__(self) -> None:
        require_choice("head", self.head, HEADS)
        require_choice("backbone", self.backbone, BACKBONES)
        require_choice("extra_level", self.extra_level, EXTRA_LEVELS)
        if isinstance(self.deformable_head, bool):
            object.__setattr__(self, "deformable_head", "last" if self.deformable_head else "none")
        require_choice("deformable_head", self.deformable_head, DEFORMABLE_HEADS)
        names = ("head_bias", "modulated", "deformable_mask_features")
        require_bools({name: getattr(self, name) for name in names})
        coerce_tuple(self, "num_grids", NUM_LEVELS)
        require_positive_ints({f"num_grids[{level}]": grid for level, grid in enumerate(self.num_grids)})
        sizes = ("num_classes", "stacked_convs", "pyramid_channels", "head_channels", "mask_channels")
        require_positive_ints({name: getattr(self, name) for name in sizes})
        for name in ("head_channels", "mask_channels"):
            channels = getattr(self, name)
            require(channels % 32 == 0, f"{name}={channels}: expected a multiple of 32.")
        allowed = self.head == "solov2" or not self.deformable_mask_features
        require(allowed, f"deformable_mask_features=True: expected False with the head {self.head!r}.")
        self._check_scale_ranges()
        self._check_deformable_stages()

    def _check_scale_ranges(self) -> None:
        coerce_tuple(self, "scale_ranges", NUM_LEVELS)
        for bounds in self.scale_ranges:
            is_pair = isinstance(bounds, list | tuple) and len(bounds) == 2
            ordered = is_pair and all(map(is_finite, bounds)) and 0 <= bounds[0] <= bounds[1]
            require(ordered, f"scale_ranges={self.scale_ranges}: expected (least, greatest) for each level.")
        object.__setattr__(self, "scale_ranges", tuple(map(tuple, self.scale_ranges)))

    @property
    def is_deformable(self) -> bool:
        """Whether any convolution is deformable."""
        return bool(self.deformable_head != "none" or self.deformable_stages or self.deformable_mask_features)

    def _check_deformable_stages(self) -> None:
        stages = self.deformable_stages
        known = isinstance(stages, list | tuple) and all(stage in (1, 2, 3, 4) for stage in stages)
        require(known, f"deformable_stages={bounded_repr(stages)}: expected a subset of 1, 2, 3, 4.")
        object.__setattr__(self, "deformable_stages", tuple(sorted(set(stages))))
        allowed = not stages or self.backbone in DEFORMABLE_BACKBONES
        require(allowed, f"deformable_stages={stages}: expected none with {self.backbone}.")

    @property
    def name(self) -> str:
        """Name of the head."""
        return self.head

    @property
    def strides(self) -> tuple[int, ...]:
        """Stride of each level in input pixels; a mask must cover more pixels of its map than this."""
        return LEVEL_STRIDES

    @property
    def mask_strides(self) -> tuple[int, ...]:
        """Stride in input pixels of the masks that each level learns: 4 for "solov2", half the level's."""
        return tuple(4 if self.head == "solov2" else stride // 2 for stride in self.strides)


@dataclass(frozen=True)
class PostprocessConfig(BasePostprocessConfig):
    """Post-processing settings of the SOLO family (mmdet's ``test_cfg``).

    Attributes:
        score_thr: Class score that a (cell, class) pair must exceed to be a candidate, 0..1.
        mask_thr: Mask score that a pixel of a mask must exceed, 0..1.
        filter_thr: Score that a detection must reach after NMS, 0..1.
        nms_pre: Greatest number of candidates that enter NMS, best first.
        max_per_image: Greatest number of detections per image, best first.
        kernel: Decay of Matrix-NMS, "gaussian" or "linear".
        sigma: Parameter of the gaussian kernel, > 0.
        nms: "matrix" (the score of duplicates decays) or "greedy" (duplicates are removed, as in the first
            SOLO).
        nms_iou: With "greedy", a mask is removed if its IoU with a better one of its class exceeds this, 0..1
            (0.5 in ``mask_nms`` of the authors' AdelaiDet).
        across_classes: Whether NMS also compares masks of different classes.
    """

    score_thr: float = 0.1
    mask_thr: float = 0.5
    filter_thr: float = 0.05
    nms_pre: int = 500
    max_per_image: int = 100
    kernel: str = "gaussian"
    sigma: float = 2.0
    nms: str = "matrix"
    nms_iou: float = 0.5

    def __post_init__(self) -> None:
        names = ("score_thr", "mask_thr", "filter_thr", "nms_iou")
        require_unit_interval({name: getattr(self, name) for name in names})
        require_positive_ints({name: getattr(self, name) for name in ("nms_pre", "max_per_image")})
        require_choice("kernel", self.kernel, NMS_KERNELS)
        require_choice("nms", self.nms, NMS_METHODS)
        require_positive({"sigma": self.sigma})
        require_bools({"across_classes": self.across_classes})


def solo_preset(head: HeadName, backbone: BackboneName = "resnet50") -> Preset:
    """Return the published settings of a head: 800 px and 7 convolutions; the light one 512 px and 4."""
    if head == "solov2":
        return solov2_preset(backbone)
    if head == "decoupled_light":
        return Preset(
            SOLOConfig(head, backbone, stacked_convs=4, scale_ranges=LIGHT_SCALE_RANGES),
            PreprocessConfig(short_side=512, long_side=852),
            PostprocessConfig(),
        )
    return Preset(SOLOConfig(head, backbone), PreprocessConfig(), PostprocessConfig())


def _light_with_deformable_convolutions() -> Preset:
    light = solo_preset("decoupled_light")
    assert isinstance(light.architecture, SOLOConfig)
    architecture = replace(light.architecture, deformable_head="last", deformable_stages=(2, 3, 4))
    return replace(light, architecture=architecture)


def solov2_preset(backbone: BackboneName, *, light: bool = False, **architecture: Any) -> Preset:
    """Return the published settings of SOLOv2.

    Networks for 800 px have 4 convolutions of 512 channels in each branch, light ones for 448 px 2 of 256.

    Args:
        backbone: Backbone of the network.
        light: Whether it is one of the light models, made for speed.
        architecture: Other fields of ``SOLOConfig`` and their values.
    """
    sizes: dict[str, Any] = {"stacked_convs": 4, "head_channels": 512, "mask_channels": 256}
    preprocess = PreprocessConfig()
    if light:
        sizes = {"stacked_convs": 2, "head_channels": 256, "mask_channels": 128}
        sizes["scale_ranges"] = SOLOV2_LIGHT_SCALE_RANGES
        preprocess = PreprocessConfig(short_side=448, long_side=768)
    return Preset(
        SOLOConfig("solov2", backbone, **{**sizes, **architecture}), preprocess, PostprocessConfig()
    )


def solov2_light_deformable_preset(modulated: bool) -> Preset:
    """Return the published settings of the light SOLOv2 with deformable convolutions on ResNet-50.

    Args:
        modulated: Whether it is mmdet's, of version 2 and for 448 px, or the authors', of version 1 and for
            512 px.
    """
    preset = solov2_preset(
        "resnet50",
        light=True,
        stacked_convs=3,
        scale_ranges=LIGHT_SCALE_RANGES,
        deformable_head="last",
        deformable_stages=(2, 3, 4),
        modulated=modulated,
    )
    return (
        preset if modulated else replace(preset, preprocess=PreprocessConfig(short_side=512, long_side=852))
    )


_DEFORMABLE: dict[str, Any] = {
    "deformable_head": "all",
    "deformable_stages": (2, 3, 4),
    "modulated": True,
    "deformable_mask_features": True,
}

SOLO_PRESETS: dict[str, Preset] = {
    "solo_r50": solo_preset("solo"),
    "solo_r101": solo_preset("solo", "resnet101"),
    "decoupled_r50": solo_preset("decoupled"),
    "decoupled_r101": solo_preset("decoupled", "resnet101"),
    "decoupled_light_r50": solo_preset("decoupled_light"),
    "decoupled_light_r101": solo_preset("decoupled_light", "resnet101"),
    "decoupled_light_dcn_r50": _light_with_deformable_convolutions(),
    "solov2_r50": solov2_preset("resnet50"),
    "solov2_r101": solov2_preset("resnet101"),
    "solov2_r101_dcn": solov2_preset("resnet101", **_DEFORMABLE),
    "solov2_x101_dcn": solov2_preset("resnext101_64x4d", **_DEFORMABLE),
    "solov2_light_r18": solov2_preset("resnet18", light=True),
    "solov2_light_r34": solov2_preset("resnet34", light=True),
    "solov2_light_r50": solov2_preset("resnet50", light=True),
    "solov2_light_r50_dcn": solov2_light_deformable_preset(modulated=True),
    "solov2_light_512_dcn_r50": solov2_light_deformable_preset(modulated=False),
}
