"""Configuration of Tiny, the family of the embedded model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from solo_infer.config.architecture import ArchitectureConfig, Preset
from solo_infer.config.preprocess import PreprocessConfig
from solo_infer.config.solo import PostprocessConfig
from solo_infer.config.validation import (
    require,
    require_choice,
    require_non_negative_ints,
    require_positive_ints,
    require_unit_interval,
)

# Channels of the stem and of the three stages of ShuffleNetV2 (arXiv 1807.11164, table 5).
SHUFFLENET_CHANNELS = {
    "shufflenet_1x": (24, 116, 232, 464),
    "shufflenet_1.5x": (24, 176, 352, 704),
}
TINY_STRIDES = (8, 16, 32, 64)  # input pixels per cell of each level, finest first


@dataclass(frozen=True)
class TinyConfig(ArchitectureConfig):
    """Architecture of a Tiny network.

    Attributes:
        backbone: "shufflenet_1x" or "shufflenet_1.5x".
        num_classes: Number of object classes, without a background class.
        pyramid_channels: Channels of the feature pyramid and of the branches of the head, an even number.
        mask_channels: Channels inside the mask branch.
        mask_features: Channels of the mask features, which the predicted kernels combine.
        mask_context_blocks: Residual blocks of the mask branch that see a wide context, at least 0.
        distance_bins: Bins of the distribution over each distance from a cell to a side of its object: 0, 1,
            ... times the stride.
    """

    family: ClassVar[str] = "tiny"

    backbone: str = "shufflenet_1.5x"
    num_classes: int = 80
    pyramid_channels: int = 128
    mask_channels: int = 48
    mask_features: int = 32
    mask_context_blocks: int = 0
    distance_bins: int = 8

    def __post_init__(self) -> None:
        require_choice("backbone", self.backbone, SHUFFLENET_CHANNELS)
        names = ("num_classes", "pyramid_channels", "mask_channels", "mask_features")
        require_positive_ints({name: getattr(self, name) for name in (*names, "distance_bins")})
        require_non_negative_ints({"mask_context_blocks": self.mask_context_blocks})
        channels, bins = self.pyramid_channels, self.distance_bins
        require(channels % 2 == 0, f"pyramid_channels={channels}: expected an even number.")
        require(bins > 1, f"distance_bins={bins}: expected at least 2.")

    @property
    def name(self) -> str:
        """Name of the family."""
        return self.family


@dataclass(frozen=True)
class TinyPostprocessConfig(PostprocessConfig):
    """Post-processing settings of Tiny: those of SOLO, and a suppression of boxes before masks are computed.

    Attributes:
        box_iou: A candidate is removed if the IoU of its box with a better one of its class exceeds this,
            0..1. 1 disables it.
    """

    score_thr: float = 0.05
    filter_thr: float = 0.01
    nms_pre: int = 300
    box_iou: float = 0.65

    def __post_init__(self) -> None:
        super().__post_init__()
        require_unit_interval({"box_iou": self.box_iou})


TINY_PRESETS: dict[str, Preset] = {
    "tiny": Preset(
        TinyConfig(mask_context_blocks=3),
        PreprocessConfig(short_side=512, long_side=512, antialias=True),
        TinyPostprocessConfig(),
    )
}
