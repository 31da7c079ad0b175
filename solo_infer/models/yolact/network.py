"""YOLACT (Bolya et al., arXiv 1904.02689), OpenMMLab's and the author's kind.

    levels = network.features(images)            five feature maps, P3 to P7
    found = network.bbox_head(levels)            classes, boxes and mask coefficients of all anchors
    prototypes = network.mask_head(levels[0])    whose weighted sums are the masks

Parameters are named as in mmdet 3.x, but for the pyramid, which is torchvision's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork
from torchvision.ops.misc import Conv2dNormActivation

from solo_infer.config import YOLACTConfig
from solo_infer.models.backbones.resnet import ResNet
from solo_infer.models.base import SegmentationNetwork
from solo_infer.models.target import Target
from solo_infer.models.yolact.anchors import RATIOS, level_sizes, square_anchors, strided_anchors
from solo_infer.models.yolact.losses import yolact_losses

ANCHORS_PER_CELL = len(RATIOS)  # anchors of a place


class Predictions(NamedTuple):
    """What the network says of the anchors of a batch, in their order."""

    logits: Tensor  # (N, A, classes + 1) float32, the background last
    deltas: Tensor  # (N, A, 4) float32, relative to the anchors
    coefficients: Tensor  # (N, A, P) float32 in -1..1


class YOLACTNeck(FeaturePyramidNetwork):
    """P3..P5 from C3..C5 by bilinear up-sampling, P6 and P7 by convolutions of stride 2.

    OpenMMLab makes P6 from C5 (mmdet's ``add_extra_convs="on_input"``); the author makes it from P5, and
    has a ReLU after each of P3..P5.
    """

    def __init__(self, in_channels: Sequence[int], config: YOLACTConfig) -> None:
        width = config.pyramid_channels
        super().__init__(list(in_channels), width)
        self.is_original = config.is_original
        for source in (width if config.is_original else in_channels[-1], width):
            self.layer_blocks.append(
                Conv2dNormActivation(source, width, 3, stride=2, norm_layer=None, activation_layer=None)
            )

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Map C3..C5 to P3..P7."""
        merged = [block(feature) for block, feature in zip(self.inner_blocks, maps, strict=True)]
        for index in reversed(range(len(merged) - 1)):
            size = merged[index].shape[-2:]
            coarser = F.interpolate(merged[index + 1], size=size, mode="bilinear", align_corners=False)
            merged[index] = merged[index] + coarser
        levels = [block(feature) for block, feature in zip(self.layer_blocks, merged, strict=False)]
        if self.is_original:
            levels = [feature.relu() for feature in levels]
        coarse = levels[-1] if self.is_original else maps[-1]
        for block in list(self.layer_blocks)[len(maps) :]:
            coarse = block(coarse)
            levels.append(coarse)
        return levels


class HeadConv(nn.Sequential):
    """3x3 convolution and ReLU; sub-modules are named as in mmdet's ConvModule."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.activate = nn.ReLU(inplace=True)


class BoxHead(nn.Module):
    """Classes, boxes and mask coefficients of the anchors; one set of weights for all levels."""

    def __init__(self, config: YOLACTConfig) -> None:
        super().__init__()
        width = config.pyramid_channels
        self.head_convs = nn.ModuleList([HeadConv(width)])
        self.conv_cls = nn.Conv2d(width, ANCHORS_PER_CELL * (config.num_classes + 1), 3, padding=1)
        self.conv_reg = nn.Conv2d(width, ANCHORS_PER_CELL * 4, 3, padding=1)
        self.conv_coeff = nn.Conv2d(width, ANCHORS_PER_CELL * config.num_protos, 3, padding=1)

    def forward(self, levels: Sequence[Tensor]) -> Predictions:
        """Map P3..P7 to the predictions of all anchors."""
        outputs: tuple[list[Tensor], ...] = ([], [], [])
        for feature in levels:
            for block in self.head_convs:
                feature = block(feature)
            for conv, parts in zip((self.conv_cls, self.conv_reg, self.conv_coeff), outputs, strict=True):
                parts.append(conv(feature).permute(0, 2, 3, 1).flatten(1))  # (N, h * w * shapes * k)
        logits, deltas, coefficients = (
            torch.cat(parts, dim=1).unflatten(1, (-1, conv.out_channels // ANCHORS_PER_CELL)).float()
            for conv, parts in zip((self.conv_cls, self.conv_reg, self.conv_coeff), outputs, strict=True)
        )
        return Predictions(logits, deltas, coefficients.tanh())


class SemanticBranch(nn.Module):
    """Class maps of P3, which help the features in training and are not used in prediction."""

    def __init__(self, config: YOLACTConfig) -> None:
        super().__init__()
        self.segm_conv = nn.Conv2d(config.pyramid_channels, config.num_classes, 1)

    def forward(self, feature: Tensor) -> Tensor:
        """Map P3 to logits (N, classes, h, w)."""
        return self.segm_conv(feature)


class PrototypeHead(nn.Module):
    """The prototype masks, and the semantic branch beside them."""

    def __init__(self, config: YOLACTConfig) -> None:
        super().__init__()
        width = config.pyramid_channels
        before = [nn.Conv2d(width, width, 3, padding=1) for _ in range(3)]
        enlarge = nn.Upsample(scale_factor=2.0, mode="bilinear", align_corners=False)
        after = [nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, config.num_protos, 1)]
        layers = [*before, enlarge, *after]
        self.protonet = nn.Sequential(*(part for layer in layers for part in (layer, nn.ReLU(inplace=True))))
        self.segm_branch = SemanticBranch(config)

    def forward(self, feature: Tensor) -> Tensor:
        """Map P3 to the prototypes (N, P, 2h, 2w), float32, none below 0."""
        return self.protonet(feature).float()


class YOLACTNetwork(SegmentationNetwork):
    """Backbone, feature pyramid, box head and prototypes."""

    losses = ("loss_cls", "loss_bbox", "loss_mask", "loss_segm")  # of train mode

    def __init__(self, config: YOLACTConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = ResNet(config.backbone)
        self.neck = YOLACTNeck(self.backbone.out_channels[1:], config)
        self.bbox_head = BoxHead(config)
        self.mask_head = PrototypeHead(config)

    def features(self, images: Tensor) -> list[Tensor]:
        """Map normalized images (N, 3, H, W) to P3..P7."""
        return self.neck(self.backbone(images)[1:])

    def anchors(self, levels: Sequence[Tensor], input_size: tuple[int, int]) -> Tensor:
        """Return the anchors (A, 4) float32 x1 y1 x2 y2, in pixels, of an input (height, width)."""
        sizes, device = level_sizes(levels), levels[0].device
        if self.config.is_original:
            return square_anchors(sizes, self.config.anchor_sizes, input_size, device)
        return strided_anchors(sizes, self.config.anchor_sizes, self.config.strides, device)

    def semantic_channel(self, label: int) -> int:
        """Return the map of a class in the semantic branch.

        mmdet counts classes from 0 but writes the map of ``label - 1``; its checkpoints were trained so.
        """
        return label if self.config.is_original else (label - 1) % self.config.num_classes

    def class_rows(self, labels: Sequence[int]) -> dict[str, list[int]]:
        """Return the output channels of each layer that a network of only these classes has, in its order."""
        total = self.config.num_classes + 1
        boxes = [shape * total + row for shape in range(ANCHORS_PER_CELL) for row in (*labels, total - 1)]
        shift = 0 if self.config.is_original else 1
        maps = [self.semantic_channel(labels[(place + shift) % len(labels)]) for place in range(len(labels))]
        return {"bbox_head.conv_cls": boxes, "mask_head.segm_branch.segm_conv": maps}

    def init_weights(self) -> None:
        """Initialize neck and heads for training, as mmdet does; the backbone stays as it is."""
        for part in (self.neck, self.bbox_head, self.mask_head):
            for module in part.modules():
                if isinstance(module, nn.Conv2d):
                    nn.init.xavier_uniform_(module.weight)
                    nn.init.zeros_(module.get_parameter("bias"))

    def forward(self, images: Tensor, targets: list[Target] | None = None) -> Any:
        """Run the network on normalized images (N, 3, H, W).

        Args:
            images: All of one size.
            targets: In train mode the ground truth of each image; see ``models.objective.Target``.

        Returns:
            In eval mode P3..P7, ``Predictions`` and the prototypes (N, P, h, w); in train mode the losses
            {"loss_cls", "loss_bbox", "loss_mask", "loss_segm"}, scalars.

        Raises:
            ConfigError: Train mode without targets, or targets that do not fit the images.
        """
        if self.training:
            return yolact_losses(self, images, targets)
        levels = self.features(images)
        return levels, self.bbox_head(levels), self.mask_head(levels[0])
