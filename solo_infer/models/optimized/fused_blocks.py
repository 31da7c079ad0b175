"""ResNet blocks whose additions and ReLUs are part of a convolution (``fused_operators``)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from solo_infer.models.optimized.fused_operators import add_convolution_relu, convolution_relu, is_plain
from solo_infer.models.optimized.winograd_conv import WinogradConv2d
from solo_infer.ops.dispatch import is_compiling


class FusedBlock(nn.Module):
    """A ResNet block with folded BatchNorm.

    Args:
        block: Its convolutions are used as they are; 3x3 ones may be a ``WinogradConv2d``.
    """

    def __init__(self, block: BasicBlock | Bottleneck) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, K, H / stride, W / stride).

        ``x`` may be overwritten in place if the block adds it unchanged.
        """
        block = self.block
        if torch.is_grad_enabled() or is_compiling() or (x.is_cuda and not torch.backends.cudnn.enabled):
            return block(x)
        x = x.contiguous(memory_format=torch.channels_last)  # some operators refuse bfloat16 without it
        out, last = _convolution_relu(block.conv1, x), block.conv2
        if isinstance(block, Bottleneck):
            out, last = _convolution_relu(block.conv2, out), block.conv3
        identity = x if block.downsample is None else block.downsample(x)
        if isinstance(last, WinogradConv2d):
            return last(out, addend=identity, relu=True)
        if is_plain(last):
            return add_convolution_relu(identity, last, out)
        return F.relu(last(out).add_(identity), inplace=True)


def _convolution_relu(conv: nn.Module, x: Tensor) -> Tensor:
    if isinstance(conv, WinogradConv2d):
        return conv(x, relu=True)
    return convolution_relu(conv, x) if is_plain(conv) else F.relu(conv(x), inplace=True)
