"""Feature pyramids of SOLO and SOLOv2, and the feature maps that their heads read."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork

from solo_infer.models.layers.resize import resize


class PyramidNeck(FeaturePyramidNetwork):
    """torchvision's feature pyramid on C2 to C5, with P6 made from P5.

    It equals mmdet's ``FPN(num_outs=5)``: 1x1 lateral and 3x3 output convolutions with bias, nearest
    up-sampling to the exact size of the finer level.

    Args:
        in_channels: Channels of C2 to C5.
        out_channels: Channels of every level.
        extra_conv: Whether P6 is a 3x3 convolution of P5 with stride 2 (mmdet's
            ``add_extra_convs="on_output"``) instead of every second pixel of it.
    """

    def __init__(self, in_channels: Sequence[int], out_channels: int, extra_conv: bool = False) -> None:
        super().__init__(list(in_channels), out_channels)
        self.extra_conv = extra_conv
        if extra_conv:
            conv = nn.Conv2d(out_channels, out_channels, 3, stride=2, padding=1)
            nn.init.kaiming_uniform_(conv.weight, a=1)  # as torchvision initializes the others
            nn.init.zeros_(conv.get_parameter("bias"))
            self.layer_blocks.append(nn.Sequential(conv))

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Map C2 to C5 to the inputs of the head."""
        return self.head_inputs(self.pyramid(maps))

    @staticmethod
    def head_inputs(levels: Sequence[Tensor]) -> list[Tensor]:
        """Return the inputs of the head, from P2 to P6 (N, C, h, w)."""
        return list(levels)

    def pyramid(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Map C2 to C5 to P2 to P6."""
        merged = [block(feature) for block, feature in zip(self.inner_blocks, maps, strict=True)]
        for index in reversed(range(len(merged) - 1)):
            size = merged[index].shape[-2:]
            merged[index] = merged[index] + F.interpolate(merged[index + 1], size=size, mode="nearest")
        # Not torchvision's forward, which takes the last block, that of P6, for the block of P5.
        levels = [block(feature) for block, feature in zip(self.layer_blocks, merged, strict=False)]
        return [*levels, self.extra_level(levels[-1])]

    def extra_level(self, p5: Tensor) -> Tensor:
        """Return P6."""
        if self.extra_conv:
            return self.layer_blocks[-1](p5)
        # Every second pixel. A strided view would fix torch.export to inputs like the example.
        return F.max_pool2d(p5, kernel_size=1, stride=2)


class SOLONeck(PyramidNeck):
    """The feature pyramid with P2 and P6 resized for the heads of SOLO."""

    @staticmethod
    def head_inputs(levels: Sequence[Tensor]) -> list[Tensor]:
        """Return the inputs of the head, at strides 8, 8, 16, 32, 32."""
        return resize_feats(levels)


class SOLOv2Neck(PyramidNeck):
    """The feature pyramid with the inputs of SOLOv2's head: P2, and those of the heads of SOLO."""

    @staticmethod
    def head_inputs(levels: Sequence[Tensor]) -> list[Tensor]:
        """Return P2 and the inputs of the grids, at strides 4, 8, 8, 16, 32, 32."""
        return [levels[0], *resize_feats(levels)]


def resize_feats(levels: Sequence[Tensor]) -> list[Tensor]:
    """Halve P2 and enlarge P6 to the size of P5, both bilinearly (mmdet's ``resize_feats``).

    An odd last row or column of P2 is dropped.
    """
    p2, p3, p4, p5, p6 = levels
    p2 = F.interpolate(p2, scale_factor=0.5, mode="bilinear", align_corners=False)
    return [p2, p3, p4, p5, resize(p6, (p5.shape[-2], p5.shape[-1]))]
