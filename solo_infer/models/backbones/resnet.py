"""ResNet without its classifier."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.models.resnet import ResNet as TorchvisionResNet

from solo_infer.models.layers.deform_conv import DeformableConv


class ResNetSizes(NamedTuple):
    """Sizes of a ResNet or ResNeXt."""

    block: Any  # class of its residual blocks
    blocks: tuple[int, ...]  # blocks of each stage
    groups: int = 1  # groups of the 3x3 convolutions
    width_per_group: int = 64  # channels per group in the first stage


RESNETS = {
    "resnet18": ResNetSizes(BasicBlock, (2, 2, 2, 2)),
    "resnet34": ResNetSizes(BasicBlock, (3, 4, 6, 3)),
    "resnet50": ResNetSizes(Bottleneck, (3, 4, 6, 3)),
    "resnet101": ResNetSizes(Bottleneck, (3, 4, 23, 3)),
    "resnext101_64x4d": ResNetSizes(Bottleneck, (3, 4, 23, 3), groups=64, width_per_group=4),
}


def freeze_batch_norm(backbone: nn.Module) -> None:
    """Put all BatchNorm layers into eval mode: training keeps their statistics (mmdet's ``norm_eval``)."""
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()


class ResNet(TorchvisionResNet):
    """torchvision's ResNet up to C5; parameter names are torchvision's (and mmdet's ``backbone.*``).

    The stride of a stage is in the first 3x3 convolution of its first block ("pytorch" style in mmdet).

    Args:
        name: Key of ``RESNETS``.
    """

    def __init__(self, name: str) -> None:
        sizes = RESNETS[name]
        super().__init__(
            sizes.block,
            list(sizes.blocks),
            num_classes=1,
            groups=sizes.groups,
            width_per_group=sizes.width_per_group,
        )
        del self.avgpool, self.fc
        self.out_channels = tuple(width * sizes.block.expansion for width in (64, 128, 256, 512))

    def make_deformable(self, stages: Sequence[int], modulated: bool = False) -> None:
        """Make the 3x3 convolutions of bottleneck blocks deformable; their weights are new.

        Args:
            stages: Stages out of 1 to 4.
            modulated: Whether the convolutions are those of version 2.
        """
        for stage in stages:
            for block in getattr(self, f"layer{stage}"):
                conv = block.conv2
                block.conv2 = DeformableConv(
                    conv.in_channels,
                    conv.out_channels,
                    stride=conv.stride[0],
                    groups=conv.groups,
                    modulated=modulated,
                )

    def train(self, mode: bool = True) -> ResNet:
        """Set the mode of all modules except BatchNorm, which keeps its statistics."""
        super().train(mode)
        freeze_batch_norm(self)
        return self

    def freeze_stem(self) -> None:
        """Stop training the stem and the first stage (mmdet's ``frozen_stages=1``)."""
        for module in (self.conv1, self.bn1, self.layer1):
            module.requires_grad_(False)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Map images (N, 3, H, W) to C2..C5 at strides 4, 8, 16, 32."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))  # (N, 64, H/4, W/4)
        maps = []
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
            maps.append(x)
        return maps
