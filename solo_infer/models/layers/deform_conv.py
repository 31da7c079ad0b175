"""Deformable convolutions through torchvision's operator.

Version 1: Dai et al., arXiv 1703.06211. Version 2, modulated: Zhu et al., arXiv 1811.11168.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class DeformableConv(nn.Conv2d):
    """Convolution whose taps are moved by offsets that another convolution computes.

    Parameters have the names of mmdet's DeformConv2dPack ("DCN") and ModulatedDeformConv2dPack ("DCNv2") with
    one deformable group: ``weight``, and ``conv_offset`` with the y and x of each tap in turn and, if
    modulated, the logit of a factor of each tap. Initially it is an ordinary convolution, which a modulated
    one halves.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Taps along each side, odd. Defaults to 3.
        stride: Stride of the convolution. Defaults to 1.
        groups: Groups of the convolution; the offsets are the same for all. Defaults to 1.
        bias: Whether the convolution has a bias. Defaults to False.
        modulated: Whether each tap has a factor. Defaults to False.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        stride: int = 1,
        groups: int = 1,
        bias: bool = False,
        modulated: bool = False,
    ) -> None:
        padding = kernel_size // 2
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, groups=groups, bias=bias)
        self.modulated = modulated
        taps = kernel_size**2
        self.conv_offset = nn.Conv2d(
            in_channels, (3 if modulated else 2) * taps, kernel_size, stride, padding
        )
        self.reset_offsets()

    def reset_offsets(self) -> None:
        """Set all offsets, and the logits of the factors, to 0."""
        for parameter in self.conv_offset.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, K, H / stride, W / stride)."""
        offsets = self.conv_offset(x)
        if x.is_meta:  # torchvision 0.16 has no meta kernel; an ordinary convolution has the same shapes
            return super().forward(x)
        # Half precision resolves positions beyond pixel 128 to an eighth of a pixel only.
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        offsets, factors = offsets.to(dtype), None
        if self.modulated:
            taps = offsets.shape[1] // 3
            offsets, factors = offsets[:, : 2 * taps], offsets[:, 2 * taps :].sigmoid()
        out = _on_default_stream(
            x.to(dtype),
            offsets.nan_to_num(),  # at NaN positions the operator reads out of bounds
            self.weight.to(dtype),
            None if self.bias is None else self.bias.to(dtype),
            stride=(self.stride[0], self.stride[1]),
            padding=(self.kernel_size[0] // 2, self.kernel_size[1] // 2),
            mask=factors,
        )
        return out.to(x.dtype)


def _on_default_stream(x: Tensor, offsets: Tensor, *args: Any, mask: Tensor | None, **options: Any) -> Tensor:
    """Call ``deform_conv2d``, which always runs on the default stream of a CUDA device.

    Other streams wait for it, and it for them. A CUDA graph would not hold it.

    Raises:
        RuntimeError: The current stream records a CUDA graph.
    """
    from torchvision.ops import deform_conv2d  # here, because torchvision takes seconds to import

    if not x.is_cuda:
        return deform_conv2d(x, offsets, *args, mask=mask, **options)
    current, default = torch.cuda.current_stream(x.device), torch.cuda.default_stream(x.device)
    if current == default:
        return deform_conv2d(x, offsets, *args, mask=mask, **options)
    if torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            "torchvision's deformable convolution runs on the default stream: no CUDA graph can hold it."
        )
    default.wait_stream(current)
    with torch.cuda.stream(default):
        out = deform_conv2d(x, offsets, *args, mask=mask, **options)
    current.wait_stream(default)
    for tensor in (x, offsets, mask, out):
        if tensor is not None:
            tensor.record_stream(current if tensor is out else default)
    return out
