"""The backbone of a name."""

from __future__ import annotations

from collections.abc import Sequence

from solo_infer.models.backbones.efficientnet_lite import EfficientNetLite0
from solo_infer.models.backbones.resnet import RESNETS, ResNet


def build_backbone(
    name: str, deformable_stages: Sequence[int] = (), modulated: bool = False
) -> ResNet | EfficientNetLite0:
    """Build a backbone.

    Args:
        name: Key of ``resnet.RESNETS``, or "efficientnet_lite0".
        deformable_stages: Stages of a ResNet, of 1 to 4, with deformable convolutions.
        modulated: Whether deformable convolutions are those of version 2.
    """
    if name not in RESNETS:
        return EfficientNetLite0()
    backbone = ResNet(name)
    backbone.make_deformable(deformable_stages, modulated)
    return backbone
