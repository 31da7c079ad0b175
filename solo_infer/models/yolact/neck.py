"""Feature pyramid of YOLACT."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork
from torchvision.ops.misc import Conv2dNormActivation

from solo_infer.config import YOLACTConfig
from solo_infer.models.layers.resize import resize


class YOLACTNeck(FeaturePyramidNetwork):
    """P3 to P5 from C3 to C5 with bilinear up-sampling; P6 and P7 by convolutions of stride 2.

    mmdet makes P6 from C5 (``add_extra_convs="on_input"``). The original implementation makes it from P5, and
    has a ReLU after each of P3 to P5.

    Args:
        in_channels: Channels of C3 to C5.
        config: Architecture of the network.
    """

    def __init__(self, in_channels: Sequence[int], config: YOLACTConfig) -> None:
        channels = config.pyramid_channels
        super().__init__(list(in_channels), channels)
        self.is_original = config.is_original
        for source in (channels if config.is_original else in_channels[-1], channels):
            self.layer_blocks.append(
                Conv2dNormActivation(source, channels, 3, stride=2, norm_layer=None, activation_layer=None)
            )

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Map C3 to C5 to P3 to P7."""
        merged = [block(feature) for block, feature in zip(self.inner_blocks, maps, strict=True)]
        for index in reversed(range(len(merged) - 1)):
            size = (merged[index].shape[-2], merged[index].shape[-1])
            merged[index] = merged[index] + resize(merged[index + 1], size)
        levels = [block(feature) for block, feature in zip(self.layer_blocks, merged, strict=False)]
        if self.is_original:
            levels = [feature.relu() for feature in levels]
        coarsest = levels[-1] if self.is_original else maps[-1]
        for block in list(self.layer_blocks)[len(maps) :]:
            coarsest = block(coarsest)
            levels.append(coarsest)
        return levels
