"""The feature pyramid, and the five level inputs that SOLO's heads read from it."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool

from solo_infer.models.wide_conv import halved_convolution


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

    def solo_levels(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Map C2..C5 to SOLO's levels at strides 8, 8, 16, 32, 32.

        P2 is halved and P6 enlarged to the size of P5, both bilinearly (mmdet's ``resize_feats``).
        """
        c2, c3, c4, c5 = self._merged(maps)
        convs = [block[0] for block in self.layer_blocks]
        p5 = convs[3](c5)
        enlarged = F.interpolate(p5[..., ::2, ::2], size=p5.shape[-2:], mode="bilinear", align_corners=False)
        return [halved_convolution(convs[0], c2), convs[1](c3), convs[2](c4), p5, enlarged]

    def _merged(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Return the lateral maps of C2..C5, each plus the enlarged coarser one."""
        merged = [block(feature) for block, feature in zip(self.inner_blocks, maps, strict=True)]
        for index in reversed(range(len(merged) - 1)):
            finer = merged[index]
            merged[index] = finer + F.interpolate(merged[index + 1], size=finer.shape[-2:], mode="nearest")
        return merged
