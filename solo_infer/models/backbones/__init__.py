"""Backbones: classifiers without their classification layer, which return four feature maps."""

from __future__ import annotations

from collections.abc import Sequence

from solo_infer.models.backbones.efficientnet_lite import EfficientNetLite0
from solo_infer.models.backbones.resnet import RESNET_BLOCKS, ResNet


def build_backbone(name: str, deformable_stages: Sequence[int] = ()) -> ResNet | EfficientNetLite0:
    """Build a backbone.

    Args:
        name: "resnet50", "resnet101" or "efficientnet_lite0".
        deformable_stages: Stages of a ResNet, of 1 to 4, with deformable convolutions.
    """
    if name not in RESNET_BLOCKS:
        return EfficientNetLite0()
    backbone = ResNet(name)
    backbone.make_deformable(deformable_stages)
    return backbone
