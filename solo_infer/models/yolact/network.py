"""YOLACT network (Bolya et al., arXiv 1904.02689), mmdet's and the original variant.

Parameters have mmdet 3.x's names, except for the feature pyramid, which is torchvision's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from solo_infer.config import YOLACTConfig
from solo_infer.models.backbones.build import build_backbone
from solo_infer.models.base import SegmentationNetwork
from solo_infer.models.target import Target
from solo_infer.models.yolact.anchors import LevelSizes, level_sizes, square_anchors, strided_anchors
from solo_infer.models.yolact.head import ANCHORS_PER_CELL, BoxHead, PrototypeHead, YOLACTOutput
from solo_infer.models.yolact.losses import yolact_losses
from solo_infer.models.yolact.neck import YOLACTNeck
from solo_infer.models.yolact.targets import assign_batch


class YOLACTNetwork(SegmentationNetwork):
    """Backbone, feature pyramid, box head and prototypes.

    Args:
        config: Architecture of the network.
    """

    losses = ("loss_cls", "loss_bbox", "loss_mask", "loss_segm")
    config: YOLACTConfig

    def __init__(self, config: YOLACTConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = build_backbone(config.backbone)
        self.neck = YOLACTNeck(self.backbone.out_channels[1:], config)
        self.bbox_head = BoxHead(config)
        self.mask_head = PrototypeHead(config)

    def forward(self, images: Tensor, targets: list[Target] | None = None) -> Any:
        """Run the whole network.

        Args:
            images: (N, 3, H, W) normalized network inputs.
            targets: Ground truth of each image; required in train mode.

        Returns:
            ``YOLACTOutput`` in eval mode; in train mode the losses {"loss_cls", "loss_bbox", "loss_mask",
            "loss_segm"}, scalars.

        Raises:
            ConfigError: In train mode, targets are missing or do not match the images.
        """
        levels = self.features(images)
        predictions, prototypes = self.bbox_head(levels), self.mask_head(levels[0])
        if not self.training:
            return YOLACTOutput(predictions, prototypes, level_sizes(levels))
        semantic = self.mask_head.segm_branch(levels[0])
        size = (images.shape[-2], images.shape[-1])
        anchors = self.anchors(level_sizes(levels), size, images.device)
        batch = assign_batch(targets, images, anchors, self.config)
        channels = [self.semantic_channel(label) for label in range(self.config.num_classes)]
        return yolact_losses(predictions, prototypes, semantic, anchors, batch, size, channels)

    def features(self, images: Tensor) -> list[Tensor]:
        """Map images (N, 3, H, W) to P3 to P7."""
        return self.neck(self.backbone(images)[1:])

    def anchors(self, sizes: LevelSizes, input_size: tuple[int, int], device: Any) -> Tensor:
        """Return the anchors (A, 4) float32 x1 y1 x2 y2 in pixels of the network input.

        Args:
            sizes: (height, width) of P3 to P7.
            input_size: (height, width) of the network input in pixels.
            device: Device of the anchors.
        """
        if self.config.is_original:
            return square_anchors(sizes, self.config.anchor_sizes, input_size, device)
        return strided_anchors(sizes, self.config.anchor_sizes, self.config.strides, device)

    def semantic_channel(self, label: int) -> int:
        """Return the channel of the semantic branch that a class is trained on.

        mmdet counts classes from 0 but writes to channel ``label - 1``; its checkpoints were trained so.
        """
        return label if self.config.is_original else (label - 1) % self.config.num_classes

    def init_weights(self) -> None:
        """Initialize neck and heads for training, as mmdet does; the backbone stays as it is."""
        for child in (self.neck, self.bbox_head, self.mask_head):
            for module in child.modules():
                if isinstance(module, nn.Conv2d):
                    nn.init.xavier_uniform_(module.weight)
                    nn.init.zeros_(module.get_parameter("bias"))

    def class_rows(self, labels: Sequence[int]) -> dict[str, list[int]]:
        """Return the output channels of each classification layer that belong to some classes."""
        total = self.config.num_classes + 1
        anchors = range(ANCHORS_PER_CELL)
        classes = [anchor * total + row for anchor in anchors for row in (*labels, total - 1)]
        shift = 0 if self.config.is_original else 1
        shifted = [labels[(index + shift) % len(labels)] for index in range(len(labels))]
        return {
            "bbox_head.conv_cls": classes,
            "mask_head.segm_branch.segm_conv": [self.semantic_channel(label) for label in shifted],
        }
