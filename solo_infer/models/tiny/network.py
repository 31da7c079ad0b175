"""Network of Tiny, the embedded model.

ShuffleNetV2 and GhostPAN, as in NanoDet-Plus; every pixel of the pyramid is a cell with class scores, a box
and the kernel of its mask.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from solo_infer.config.tiny import TinyConfig
from solo_infer.models.backbones.shufflenet import ShuffleNet
from solo_infer.models.base import SegmentationNetwork
from solo_infer.models.layers.leaky_conv import SLOPE
from solo_infer.models.target import Target, check_targets
from solo_infer.models.tiny.head import CellPredictions, ContextBlock, MaskBranch, TinyHead
from solo_infer.models.tiny.masks import cell_points
from solo_infer.models.tiny.neck import GhostPAN

FOCAL_PRIOR = 0.01  # initial probability of an object in a cell (RetinaNet)
INIT_STD = 0.01  # standard deviation of the initial weights of the output layers


class TinyOutput(NamedTuple):
    """Raw outputs of the network for a batch."""

    cells: CellPredictions
    points: Tensor  # (cells, 3) float32: x, y and stride of each cell in input pixels
    features: Tensor  # (N, C, H / 4, W / 4) mask features


class TinyNetwork(SegmentationNetwork):
    """Backbone, feature pyramid, head and mask branch.

    Args:
        config: Architecture of the network.
    """

    losses = ("loss_cls", "loss_box", "loss_distance", "loss_mask")
    config: TinyConfig

    def __init__(self, config: TinyConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = ShuffleNet(config.backbone)
        self.neck = GhostPAN(self.backbone.out_channels[1:], config.pyramid_channels)
        self.head = TinyHead(config)
        self.mask_branch = MaskBranch(config, self.backbone.out_channels[0])

    def forward(self, images: Tensor, targets: list[Target] | None = None) -> Any:
        """Run the whole network.

        Args:
            images: (N, 3, H, W) normalized network inputs, sides multiples of 32.
            targets: Ground truth of each image; required in train mode.

        Returns:
            ``TinyOutput`` in eval mode. In train mode the losses {"loss_cls", "loss_box", "loss_distance",
            "loss_mask"}, scalars.

        Raises:
            ConfigError: In train mode, targets are missing or do not match the images.
        """
        if not self.training:
            return self.raw_outputs(images)
        from solo_infer.models.tiny.losses import (
            tiny_losses,  # here, because torchvision takes seconds to import
        )

        targets = check_targets(targets, images, self.config.num_classes)
        return tiny_losses(*self.raw_outputs(images), targets)

    def raw_outputs(self, images: Tensor) -> TinyOutput:
        """Map images (N, 3, H, W) to the raw outputs, in train mode too."""
        stem, *maps = self.backbone(images)
        levels = self.neck(maps)
        return TinyOutput(self.head(levels), self.points(levels), self.mask_branch(stem, levels[:3]))

    def points(self, levels: Sequence[Tensor]) -> Tensor:
        """Return x, y and stride (cells, 3) float32 of the cells of P3 to P6."""
        sizes = [(level.shape[-2], level.shape[-1]) for level in levels]
        return cell_points(sizes, levels[0].device)

    def init_weights(self) -> None:
        """Initialize neck, head and mask branch for training; the backbone stays as it is."""
        for child in (self.neck, self.head, self.mask_branch):
            for module in child.modules():
                if isinstance(module, nn.Conv2d):
                    nn.init.kaiming_normal_(module.weight, a=SLOPE)
                    nn.init.zeros_(module.get_parameter("bias"))
        prior = -math.log((1 - FOCAL_PRIOR) / FOCAL_PRIOR)
        for layers, bias in (
            (self.head.class_out, prior),
            (self.head.distance_out, 0.0),
            (self.head.kernel_out, 0.0),
        ):
            for layer in layers:
                nn.init.normal_(layer.get_parameter("weight"), std=INIT_STD)
                nn.init.constant_(layer.get_parameter("bias"), bias)
        nn.init.normal_(self.mask_branch.out.weight, std=0.05)
        blocks = (module for module in self.mask_branch.modules() if isinstance(module, ContextBlock))
        projections = (block.project for block in blocks)
        for residual in (self.mask_branch.coarse2, self.mask_branch.fine2, *projections):
            nn.init.zeros_(residual.weight)

    def class_rows(self, labels: Sequence[int]) -> dict[str, list[int]]:
        """Return the output channels of each classification layer that belong to some classes."""
        return {f"head.class_out.{level}": list(labels) for level in range(len(self.head.class_out))}
