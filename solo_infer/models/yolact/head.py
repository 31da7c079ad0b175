"""Heads of YOLACT: predictions of the anchors, prototype masks, and the semantic branch for training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from solo_infer.config import YOLACTConfig
from solo_infer.models.yolact.anchors import RATIOS, LevelSizes

ANCHORS_PER_CELL = len(RATIOS)


class Predictions(NamedTuple):
    """Predictions of the anchors of a batch, in the order of the anchors."""

    logits: Tensor  # (N, A, classes + 1) float32, background last
    deltas: Tensor  # (N, A, 4) float32, relative to the anchors
    coefficients: Tensor  # (N, A, P) float32 in -1..1


class YOLACTOutput(NamedTuple):
    """Raw outputs of the network for a batch."""

    predictions: Predictions
    prototypes: Tensor  # (N, P, h, w) float32
    sizes: LevelSizes  # (height, width) of P3 to P7


class HeadConv(nn.Sequential):
    """3x3 convolution and ReLU; the submodules have the names of mmdet's ConvModule."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.activate = nn.ReLU(inplace=True)


class BoxHead(nn.Module):
    """Classes, boxes and mask coefficients of the anchors, with the same weights for all levels."""

    def __init__(self, config: YOLACTConfig) -> None:
        super().__init__()
        channels = config.pyramid_channels
        self.head_convs = nn.ModuleList([HeadConv(channels)])
        self.conv_cls = nn.Conv2d(channels, ANCHORS_PER_CELL * (config.num_classes + 1), 3, padding=1)
        self.conv_reg = nn.Conv2d(channels, ANCHORS_PER_CELL * 4, 3, padding=1)
        self.conv_coeff = nn.Conv2d(channels, ANCHORS_PER_CELL * config.num_protos, 3, padding=1)

    def forward(self, levels: Sequence[Tensor]) -> Predictions:
        """Map P3 to P7 to the predictions of all anchors."""
        convs = (self.conv_cls, self.conv_reg, self.conv_coeff)
        outputs: tuple[list[Tensor], ...] = ([], [], [])
        for feature in levels:
            for block in self.head_convs:
                feature = block(feature)
            for conv, output in zip(convs, outputs, strict=True):
                output.append(conv(feature).permute(0, 2, 3, 1).flatten(1))  # (N, h * w * anchors * k)
        logits, deltas, coefficients = (
            torch.cat(output, dim=1).unflatten(1, (-1, conv.out_channels // ANCHORS_PER_CELL)).float()
            for conv, output in zip(convs, outputs, strict=True)
        )
        return Predictions(logits, deltas, coefficients.tanh())


class SemanticBranch(nn.Module):
    """Class maps of P3, a training-only objective that improves the features."""

    def __init__(self, config: YOLACTConfig) -> None:
        super().__init__()
        self.segm_conv = nn.Conv2d(config.pyramid_channels, config.num_classes, 1)

    def forward(self, feature: Tensor) -> Tensor:
        """Map P3 to logits (N, classes, h, w)."""
        return self.segm_conv(feature)


class PrototypeHead(nn.Module):
    """Prototype masks, and the semantic branch beside them."""

    def __init__(self, config: YOLACTConfig) -> None:
        super().__init__()
        channels = config.pyramid_channels
        layers: list[nn.Module] = [
            *(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(3)),
            nn.Upsample(scale_factor=2.0, mode="bilinear", align_corners=False),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.Conv2d(channels, config.num_protos, 1),
        ]
        with_relu = [module for layer in layers for module in (layer, nn.ReLU(inplace=True))]
        self.protonet = nn.Sequential(*with_relu)
        self.segm_branch = SemanticBranch(config)

    def forward(self, feature: Tensor) -> Tensor:
        """Map P3 to the prototypes (N, P, 2h, 2w), float32, >= 0."""
        return self.protonet(feature).float()
