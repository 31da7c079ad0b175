"""ResNet without its classifier."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck
from torchvision.models.resnet import ResNet as TorchvisionResNet

from solo_infer.models.layers.deform_conv import DeformableConv

RESNET_BLOCKS = {"resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3)}


def freeze_batch_norm(backbone: nn.Module) -> None:
    """Put all BatchNorm layers into eval mode: training keeps their statistics (mmdet's ``norm_eval``)."""
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()


class ResNet(TorchvisionResNet):
    """torchvision's ResNet up to C5; parameter names are torchvision's (and mmdet's ``backbone.*``).

    The stride of a stage is in the 3x3 convolution of its first block ("pytorch" style in mmdet).
    """

    out_channels = (256, 512, 1024, 2048)

    def __init__(self, name: str) -> None:
        super().__init__(Bottleneck, list(RESNET_BLOCKS[name]), num_classes=1)
        del self.avgpool, self.fc

    def make_deformable(self, stages: Sequence[int]) -> None:
        """Make the 3x3 convolutions of some of the stages 1 to 4 deformable; their weights are new."""
        for stage in stages:
            for block in getattr(self, f"layer{stage}"):
                conv = block.conv2
                block.conv2 = DeformableConv(conv.in_channels, conv.out_channels, conv.stride[0])

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
