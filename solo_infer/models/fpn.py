"""The feature pyramid, and the five level inputs that SOLO's heads read from it."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool


class FeaturePyramid(FeaturePyramidNetwork):
    """torchvision's pyramid on C2..C5: P2..P5 and P6, every second pixel of P5.

    It equals mmdet's ``FPN(num_outs=5)``: 1x1 lateral and 3x3 output convolutions with bias,
    nearest up-sampling to the exact size of the finer level.
    """

    def __init__(self, in_channels: Sequence[int], out_channels: int) -> None:
        super().__init__(list(in_channels), out_channels, extra_blocks=LastLevelMaxPool())

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Map C2..C5 to P2..P6, all of ``out_channels``."""
        named = {f"c{stage}": feature for stage, feature in enumerate(maps, start=2)}
        return list(super().forward(named).values())


def solo_levels(pyramid: Sequence[Tensor]) -> list[Tensor]:
    """Turn P2..P6 into SOLO's levels at strides 8, 8, 16, 32, 32.

    P2 is halved and P6 enlarged to the size of P5, both bilinearly (mmdet's ``resize_feats``).
    """
    p2, p3, p4, p5, p6 = pyramid
    halved = F.interpolate(p2, scale_factor=0.5, mode="bilinear", align_corners=False)
    enlarged = F.interpolate(p6, size=p5.shape[-2:], mode="bilinear", align_corners=False)
    return [halved, p3, p4, p5, enlarged]
