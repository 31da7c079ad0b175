"""Wide 3x3 convolutions: Winograd's way where that is faster, halved at once where that is wanted."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from solo_infer.ops import winograd


class WideConv(nn.Module):
    """A 3x3 convolution that goes Winograd's way in float32 on the CPU, and the usual one elsewhere.

    Args:
        conv: With stride 1 and a padding of 1, whose weights it shares.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.weight, self.bias = conv.weight, conv.bias
        # Made when first used; threads that come at once make equal ones.
        self._transformed: Tensor | None = None
        self._halving: Tensor | None = None
        self._transformed_halving: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, K, H, W)."""
        return self.each([x])[0]

    def each(self, maps: Sequence[Tensor], more: Sequence[Tensor] = ()) -> list[Tensor]:
        """Convolve maps (N, C, H, W) of any sizes, small ones together.

        Args:
            maps: What is convolved.
            more: Further channels (N or 1, c, H, W) of each map, few.
        """
        if not goes_winograds_way(maps[0]):
            whole = [append(x, few) for x, few in zip(maps, more, strict=True)] if more else maps
            return [F.conv2d(x, self.weight, self.bias, padding=1) for x in whole]
        channels = maps[0].shape[1]
        transformed = self._transformed
        if transformed is None or transformed.shape[1] != channels:
            transformed = winograd.transform_weight(self.weight[:, :channels])
            self._transformed = transformed
        found = winograd.convolve(maps, transformed, self.bias)
        for out, few in zip(found, more, strict=False):
            out += F.conv2d(few, self.weight[:, channels:], padding=1)
        return found

    def halved(self, x: Tensor, above: int = 1, below: int = 1) -> Tensor:
        """Convolve (N, C, H, W) and halve it bilinearly, with so many rows of padding above and below."""
        halving = halving_weight(self.weight) if self._halving is None else self._halving
        if not is_traced():
            self._halving = halving
        if not goes_winograds_way(x):
            return F.conv2d(F.pad(x, (1, 1, above, below)), halving, self.bias, stride=2)
        if self._transformed_halving is None:
            self._transformed_halving = winograd.transform_halving_weight(halving)
        return winograd.convolve_halving(x, self._transformed_halving, self.bias, above, below)


def append(x: Tensor, more: Tensor) -> Tensor:
    """Append further channels (N or 1, c, H, W) to a map (N, C, H, W)."""
    more = more.expand(len(x), -1, -1, -1).contiguous(memory_format=torch.channels_last)
    return torch.cat([x, more], dim=1)


def goes_winograds_way(x: Tensor) -> bool:
    """Return whether a wide convolution of x is faster by ``ops.winograd``."""
    usable = x.dtype == torch.float32 and x.device.type == "cpu" and not torch.is_grad_enabled()
    # Weights that were transformed while traced would be kept without their numbers.
    return usable and not is_traced()


def is_traced() -> bool:
    """Return whether ``torch.export`` or ``torch.compile`` runs this, on tensors without numbers."""
    if hasattr(torch.compiler, "is_compiling"):  # since torch 2.3
        return torch.compiler.is_compiling()
    return torch._dynamo.is_compiling()


def halving_weight(weight: Tensor) -> Tensor:
    """Return the weight (K, C, 4, 4) of stride 2 that convolves 3x3 and halves the output bilinearly.

    For even sizes halving is the mean of 2 x 2 outputs. Both at once take 44% of the multiplications and give
    a quarter of the output.
    """
    weight = F.pad(weight, (0, 1, 0, 1))
    weight = weight + weight.roll(1, dims=-1)
    return (weight + weight.roll(1, dims=-2)) / 4


def halved_convolution(conv: nn.Module, x: Tensor) -> Tensor:
    """Return the 3x3 convolution of x (N, C, H, W) at half the size, bilinearly."""
    if x.shape[-2] % 2 or x.shape[-1] % 2:
        return F.interpolate(conv(x), scale_factor=0.5, mode="bilinear", align_corners=False)
    if isinstance(conv, WideConv):
        return conv.halved(x)
    weight, bias = conv.get_parameter("weight"), conv.get_parameter("bias")
    return F.conv2d(x, halving_weight(weight), bias, stride=2, padding=1)
