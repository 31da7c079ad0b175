"""SOLO network: backbone, feature pyramid and one of the four heads."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

from torch import Tensor, nn

from solo_infer.config import SOLOConfig
from solo_infer.models.backbones.build import build_backbone
from solo_infer.models.base import SegmentationNetwork
from solo_infer.models.layers.conv_branch import ConvBlock
from solo_infer.models.layers.deform_conv import DeformableConv
from solo_infer.models.solo.head import BaseHead, DecoupledHead, DecoupledLightHead, SOLOHead
from solo_infer.models.solo.losses import solo_losses
from solo_infer.models.solo.masks import LevelMasks
from solo_infer.models.solo.solov2_head import SOLOv2Head
from solo_infer.models.solo.targets import assign_batch
from solo_infer.models.target import Target

FOCAL_PRIOR = 0.01  # initial probability of an object in a cell (RetinaNet; mmdet's bias_prob)
INIT_STD = 0.01  # standard deviation of the initial weights of the head (mmdet's SOLO heads)

HEADS: dict[str, type[BaseHead]] = {
    "solo": SOLOHead,
    "decoupled": DecoupledHead,
    "decoupled_light": DecoupledLightHead,
    "solov2": SOLOv2Head,
}


class SOLONetwork(SegmentationNetwork):
    """SOLO, Decoupled SOLO, Decoupled Light SOLO or SOLOv2.

    Args:
        config: Architecture of the network.
    """

    losses = ("loss_cls", "loss_mask")
    config: SOLOConfig

    def __init__(self, config: SOLOConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = build_backbone(config.backbone, config.deformable_stages, config.modulated)
        has_extra_conv = config.extra_level == "conv"
        head = HEADS[config.head]
        self.neck = head.neck(self.backbone.out_channels, config.pyramid_channels, has_extra_conv)
        self.mask_head = head(config)

    def forward(self, images: Tensor, targets: list[Target] | None = None) -> Any:
        """Run the whole network.

        Args:
            images: (N, 3, H, W) normalized network inputs of one padded size.
            targets: Ground truth of each image; required in train mode.

        Returns:
            In eval mode the raw outputs of the head: ``HeadOutput``, the class and mask logits of all cells,
            or ``SOLOv2Output``. In train mode the losses {"loss_cls": scalar, "loss_mask": scalar}.

        Raises:
            ConfigError: In train mode, targets are missing or do not match the images.
        """
        if not self.training:
            return self.mask_head(self.features(images))
        batch = assign_batch(targets, images, self.config)
        levels = self.features(images)
        class_logits = self.mask_head.class_logits(levels)
        masks = cast(Sequence[LevelMasks], self.mask_head.masks(levels, batch.cells))
        return solo_losses(class_logits, masks, batch, self.mask_head.parameters())

    def features(self, images: Tensor) -> list[Tensor]:
        """Map images (N, 3, H, W) to the inputs of the head (``neck``)."""
        return self.neck(self.backbone(images))

    def init_weights(self) -> None:
        """Initialize neck and head for training, as mmdet does; the backbone stays as it is."""
        for module in self.mask_head.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=INIT_STD)
                if module.bias is not None:
                    nn.init.constant_(module.bias, -math.log((1 - FOCAL_PRIOR) / FOCAL_PRIOR))
        for module in self.mask_head.modules():
            if isinstance(module, ConvBlock) and module.conv.bias is not None:
                nn.init.zeros_(module.conv.bias)
            if isinstance(module, DeformableConv):
                module.reset_offsets()
        if isinstance(self.mask_head, SOLOv2Head):
            nn.init.zeros_(self.mask_head.conv_kernel.get_parameter("bias"))
        for module in self.neck.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)

    def class_rows(self, labels: Sequence[int]) -> dict[str, list[int]]:
        """Return the output channels of each classification layer that belong to some classes."""
        return {"mask_head.conv_cls": list(labels)}
