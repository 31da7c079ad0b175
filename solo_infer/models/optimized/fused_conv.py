"""Convolutions whose LeakyReLU is applied by oneDNN, torch's convolution library on the CPU.

torch computes small 1x1 convolutions of channels_last maps by a slower method, which copies them. The
operator here, which torch offers to its own compiler, always calls oneDNN and keeps the layout.
"""

from __future__ import annotations

import logging
from functools import cache
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from solo_infer.models.layers.leaky_conv import SLOPE, LeakyConv2d
from solo_infer.models.optimized.named_children import named_children
from solo_infer.models.optimized.winograd_conv import WinogradConv2d, is_wide
from solo_infer.ops.dispatch import is_compiling
from solo_infer.runtime.neutral_state import neutral_state

# 1x1 convolutions of so few input channels or pixels are faster as layers of oneDNN: it computes the first
# ones slowly, and prepares a convolution of the second ones in 0.1 ms.
_FEW_CHANNELS, _FEW_PIXELS = 32, 160

_Module = TypeVar("_Module", bound=nn.Module)

_LOGGER = logging.getLogger(__name__)


class FusedConv2d(nn.Module):
    """A convolution with or without LeakyReLU, on the CPU.

    Args:
        conv: Convolution whose weights are used as they are.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv
        self._activation: tuple[str, list[float]] = ("none", [])
        if isinstance(conv, LeakyConv2d):
            self._activation = ("leaky_relu", [SLOPE])
        is_pointwise = (conv.kernel_size, conv.stride, conv.groups) == ((1, 1), (1, 1), 1)
        self._is_layer = is_pointwise and conv.padding == (0, 0)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C', H', W')."""
        conv = self.conv
        if torch.is_grad_enabled() or is_compiling():
            return conv(x)
        x = x.contiguous(memory_format=torch.channels_last)
        if self._is_layer and (x.shape[1] <= _FEW_CHANNELS or x.numel() <= _FEW_PIXELS * x.shape[1]):
            pixels = x.permute(0, 2, 3, 1)
            y = torch.ops.mkldnn._linear_pointwise(
                pixels.flatten(0, 2), conv.weight.flatten(1), conv.bias, *self._activation, ""
            )
            return y.view(*pixels.shape[:3], -1).permute(0, 3, 1, 2)
        return torch.ops.mkldnn._convolution_pointwise(
            x,
            conv.weight,
            conv.bias,
            conv.padding,
            conv.stride,
            conv.dilation,
            conv.groups,
            *self._activation,
            "",
        )


def fuse_convolutions(network: _Module) -> _Module:
    """Replace the convolutions of a Tiny network, in place, if that is possible on its device."""
    first = next(network.parameters())
    if can_fuse(first.device, first.dtype):
        for parent, name, child in named_children(network):
            if not isinstance(child, nn.Conv2d):
                continue
            if is_wide(child):
                slope = SLOPE if isinstance(child, LeakyConv2d) else 1
                setattr(parent, name, WinogradConv2d(child, slope))
            else:
                setattr(parent, name, FusedConv2d(child))
    return network


def can_fuse(device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether oneDNN's convolutions with LeakyReLU work on a device in a dtype."""
    return device.type == "cpu" and torch.backends.mkldnn.is_available() and _fused_operators_work(dtype)


@cache
@neutral_state()
def _fused_operators_work(dtype: torch.dtype) -> bool:
    generator = torch.Generator().manual_seed(0)

    def fill(tensor: Tensor) -> Tensor:
        return tensor.copy_(torch.randn(tensor.shape, generator=generator, dtype=torch.float32, device="cpu"))

    channels = _FEW_CHANNELS + 8
    x = fill(torch.empty(1, channels, 16, 16, dtype=dtype, device="cpu"))
    limit = 1e-5 if dtype == torch.float32 else 0.05
    options: dict[str, Any] = {"dtype": dtype, "device": "cpu"}
    with torch.random.fork_rng(devices=()):  # keeps the caller's random numbers
        wide, narrow = (LeakyConv2d(width, 24, 1, **options) for width in (channels, _FEW_CHANNELS))
        depthwise = nn.Conv2d(channels, channels, 5, 2, 2, groups=channels, **options)
    for conv in (wide, narrow, depthwise):
        for parameter in conv.parameters():
            fill(parameter).div_(10)
        try:
            maps = x[:, : conv.in_channels]
            output, expected = FusedConv2d(conv)(maps), conv(maps)
        except (AttributeError, RuntimeError, NotImplementedError, TypeError) as error:
            _LOGGER.info("Convolutions are not fused with LeakyReLU: %s", error)
            return False
        if not torch.allclose(output, expected, rtol=limit, atol=limit):
            return False
    return True
