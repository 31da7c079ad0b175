"""EfficientNet-Lite0 (Tan and Le, arXiv 1905.11946; the "lite" form without squeeze-and-excitation, ReLU6).

Its ImageNet weights were trained by TensorFlow, whose SAME padding at stride 2 puts the odd pixel at
the right and the bottom.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import pad, relu6

from solo_infer.models.backbones.resnet import freeze_batch_norm

EPSILON = 1e-3  # epsilon of BatchNorm in TensorFlow's EfficientNet

# Expansion, channels, blocks, stride of the first block and kernel size of each stage.
_STAGES = (
    (1, 16, 1, 1, 3),
    (6, 24, 2, 2, 3),
    (6, 40, 2, 2, 5),
    (6, 80, 3, 2, 3),
    (6, 112, 3, 1, 5),
    (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
)
_STEM = 32


class SameConv(nn.Sequential):
    """Convolution with TensorFlow's SAME padding, and BatchNorm."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1):
        super().__init__()
        self.kernel, self.stride = kernel, stride
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(out_channels, eps=EPSILON)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C', ceil(H / stride), ceil(W / stride))."""
        (top, bottom), (left, right) = (self._padding(size) for size in x.shape[-2:])
        if top or bottom or left or right:
            x = pad(x, (left, right, top, bottom))
        return self.bn(self.conv(x))

    def _padding(self, size: int) -> tuple[int, int]:
        outputs = -(-size // self.stride)
        missing = max((outputs - 1) * self.stride + self.kernel - size, 0)
        return missing // 2, missing - missing // 2


class Block(nn.Module):
    """Inverted residual: 1x1 to ``expansion`` times the width, depthwise, 1x1 back."""

    def __init__(self, in_channels: int, out_channels: int, expansion: int, kernel: int, stride: int) -> None:
        super().__init__()
        width = in_channels * expansion
        self.expand = SameConv(in_channels, width, 1) if expansion > 1 else None
        self.depthwise = SameConv(width, width, kernel, stride, groups=width)
        self.project = SameConv(width, out_channels, 1)
        self.residual = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C', H / stride, W / stride)."""
        y = x if self.expand is None else relu6(self.expand(x))
        y = self.project(relu6(self.depthwise(y)))
        return x + y if self.residual else y


class EfficientNetLite0(nn.Module):
    """Backbone of EfficientNet-Lite0, with 3.4 M parameters."""

    out_channels = (24, 40, 112, 320)
    _taps = (1, 2, 4, 6)  # the last stage at each of the strides 4, 8, 16, 32

    def __init__(self) -> None:
        super().__init__()
        self.stem = SameConv(3, _STEM, 3, stride=2)
        stages, channels = [], _STEM
        for expansion, width, count, stride, kernel in _STAGES:
            blocks = [Block(channels, width, expansion, kernel, stride)]
            blocks += [Block(width, width, expansion, kernel, 1) for _ in range(count - 1)]
            stages.append(nn.Sequential(*blocks))
            channels = width
        self.stages = nn.ModuleList(stages)

    def train(self, mode: bool = True) -> EfficientNetLite0:
        """Set the mode of all modules except BatchNorm, which keeps its statistics."""
        super().train(mode)
        freeze_batch_norm(self)
        return self

    def freeze_stem(self) -> None:
        """Stop training everything before C2, as ``frozen_stages=1`` does in a ResNet."""
        for module in (self.stem, *self.stages[: self._taps[0] + 1]):
            module.requires_grad_(False)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Map images (N, 3, H, W) to C2..C5 at strides 4, 8, 16, 32."""
        x, maps = relu6(self.stem(images)), []
        for index, stage in enumerate(self.stages):
            x = stage(x)
            if index in self._taps:
                maps.append(x)
        return maps
