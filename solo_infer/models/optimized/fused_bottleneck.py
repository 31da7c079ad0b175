"""Residual blocks whose additions and ReLUs are done while a convolution's result is still in the cache.

oneDNN, which torch convolves with on the CPU, can do both at the end of a convolution. torch offers that to
its own compiler only, by operators that are not part of its public interface: so they are tried first, and
where they are missing or give something else, blocks stay as they are.
"""

from __future__ import annotations

import logging
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck

from solo_infer.models.optimized.winograd_conv import is_traced

_log = logging.getLogger(__name__)


class FusedBottleneck(nn.Module):
    """A ResNet block whose BatchNorm is folded, on the CPU.

    Args:
        block: Its convolutions are used as they are; the 3x3 one may be a ``WideConv``.
    """

    def __init__(self, block: Bottleneck) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, K, H / stride, W / stride); an x that is just added is overwritten."""
        block = self.block
        if torch.is_grad_enabled() or is_traced():
            return block(x)
        x = _as_layout(x)
        out = _convolution_relu(block.conv1, x)
        out = _convolution_relu(block.conv2, out)
        identity = x if block.downsample is None else block.downsample(x)
        return _add_convolution_relu(identity, block.conv3, out)


def can_fuse(device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether oneDNN's fused convolutions work here."""
    return device.type == "cpu" and torch.backends.mkldnn.is_available() and _fused_operators_work(dtype)


@cache
def _fused_operators_work(dtype: torch.dtype) -> bool:
    generator = torch.Generator().manual_seed(0)
    conv = nn.Conv2d(16, 16, 3, stride=1, padding=1).to(dtype).to(memory_format=torch.channels_last)
    x, other = (_as_layout(torch.randn(1, 16, 9, 9, generator=generator).to(dtype)) for _ in range(2))
    try:
        with torch.no_grad():
            found = _fused_relu(conv, x), _add_convolution_relu(other.clone(), conv, x)
            expected = F.relu(conv(x)), F.relu(conv(x) + other)
    except (AttributeError, RuntimeError, NotImplementedError, TypeError) as error:
        _log.info("Blocks are not fused: %s", error)
        return False
    limit = 1e-5 if dtype == torch.float32 else 0.05
    return all(torch.allclose(a, b, rtol=limit, atol=limit) for a, b in zip(found, expected, strict=True))


def _as_layout(x: Tensor) -> Tensor:
    """Return x in the layout without which some of the operators refuse bfloat16."""
    return x.contiguous(memory_format=torch.channels_last)


def _convolution_relu(conv: nn.Module, x: Tensor) -> Tensor:
    if type(conv) is nn.Conv2d and conv.groups == 1:
        return _fused_relu(conv, x)
    return F.relu(conv(x), inplace=True)


def _fused_relu(conv: nn.Conv2d, x: Tensor) -> Tensor:
    return torch.ops.mkldnn._convolution_pointwise(
        x, conv.weight, conv.bias, conv.padding, conv.stride, conv.dilation, 1, "relu", [], ""
    )


def _add_convolution_relu(other: Tensor, conv: nn.Conv2d, x: Tensor) -> Tensor:
    """Overwrite ``other`` with the ReLU of itself plus the convolution of x, and return it."""
    return torch.ops.mkldnn._convolution_pointwise_.binary(
        other,
        x,
        conv.weight,
        conv.bias,
        conv.padding,
        conv.stride,
        conv.dilation,
        1,
        "add",
        1.0,
        "relu",
        [],
        "",
    )
