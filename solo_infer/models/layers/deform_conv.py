"""Deformable convolutions (Dai et al., arXiv 1703.06211), through torchvision's operator."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision.ops import deform_conv2d


class DeformableConv(nn.Conv2d):
    """3x3 convolution whose taps are moved by offsets that another 3x3 convolution computes.

    Parameters have the names of mmdet 1.x's DeformConvPack ("DCN", one deformable group): ``weight``, and
    ``conv_offset`` with 18 channels, the y and x of each tap. Initially it is an ordinary convolution.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1, bias: bool = False) -> None:
        super().__init__(in_channels, out_channels, 3, stride, padding=1, bias=bias)
        self.conv_offset = nn.Conv2d(in_channels, 2 * 3 * 3, 3, stride, padding=1)
        self.reset_offsets()

    def reset_offsets(self) -> None:
        """Set all offsets to 0, as in an ordinary convolution."""
        for parameter in self.conv_offset.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, K, H / stride, W / stride)."""
        offsets = self.conv_offset(x)
        if x.is_meta:  # torchvision 0.16 has no meta kernel; an ordinary convolution has the same shapes
            return super().forward(x)
        # Half precision resolves positions beyond pixel 128 to an eighth of a pixel only.
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        out = deform_conv2d(
            x.to(dtype),
            offsets.to(dtype).nan_to_num(),  # at NaN positions the operator reads out of bounds
            self.weight.to(dtype),
            None if self.bias is None else self.bias.to(dtype),
            stride=(self.stride[0], self.stride[1]),
            padding=(1, 1),
        )
        return out.to(x.dtype)
