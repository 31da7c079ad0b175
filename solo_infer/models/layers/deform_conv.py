"""Deformable convolutions (Dai et al., arXiv 1703.06211), through torchvision's operator."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision.ops import deform_conv2d


class DeformableConv(nn.Conv2d):
    """A 3x3 convolution whose taps move by what another 3x3 convolution reads from the same input.

    Parameters are named as in mmdet 1.x's DeformConvPack ("DCN", one deformable group): ``weight``, and
    ``conv_offset`` whose 18 channels are the y and x of each tap. It starts as an ordinary convolution.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1, bias: bool = False) -> None:
        super().__init__(in_channels, out_channels, 3, stride, padding=1, bias=bias)
        self.conv_offset = nn.Conv2d(in_channels, 2 * 3 * 3, 3, stride, padding=1)
        self.reset_offsets()

    def reset_offsets(self) -> None:
        """Put each tap where an ordinary convolution has it."""
        for parameter in self.conv_offset.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, K, H / stride, W / stride)."""
        offsets = self.conv_offset(x)
        if x.is_meta:  # torchvision 0.16 has no such kernel; shapes and operations are an ordinary one's
            return super().forward(x)
        # Half precision knows places beyond pixel 128 to an eighth of a pixel only.
        kind = torch.float64 if x.dtype == torch.float64 else torch.float32
        out = deform_conv2d(
            x.to(kind),
            offsets.to(kind).nan_to_num(),  # at a place that is NaN the operator would read foreign memory
            self.weight.to(kind),
            None if self.bias is None else self.bias.to(kind),
            stride=(self.stride[0], self.stride[1]),
            padding=(1, 1),
        )
        return out.to(x.dtype)
