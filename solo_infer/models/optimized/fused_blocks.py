"""ResNet blocks whose additions and ReLUs are part of a convolution.

oneDNN, torch's convolution library on the CPU, can add and apply a ReLU while the result of a convolution is
still in the cache. torch offers that to its own compiler only, by operators outside its public interface.
They are therefore tried first; if they are missing or give other results, blocks stay as they are.
"""

from __future__ import annotations

import logging
from functools import cache
from typing import TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from solo_infer.ops.dispatch import is_compiling
from solo_infer.runtime.neutral_state import neutral_state

_LOGGER = logging.getLogger(__name__)


class FusedBlock(nn.Module):
    """A ResNet block with folded BatchNorm, on the CPU.

    Args:
        block: Its convolutions are used as they are; 3x3 ones may be a ``WinogradConv2d``.
    """

    def __init__(self, block: BasicBlock | Bottleneck) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, K, H / stride, W / stride).

        ``x`` is overwritten in place if the block adds it unchanged.
        """
        block = self.block
        if torch.is_grad_enabled() or is_compiling():
            return block(x)
        x = _channels_last(x)
        out, last = _convolution_relu(block.conv1, x), block.conv2
        if isinstance(block, Bottleneck):
            out, last = _convolution_relu(block.conv2, out), block.conv3
        identity = x if block.downsample is None else block.downsample(x)
        if _is_plain(last):
            return _add_convolution_relu(identity, last, out)
        return F.relu(last(out).add_(identity), inplace=True)


def can_fuse(device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether oneDNN's fused convolutions work on a device in a dtype."""
    return device.type == "cpu" and torch.backends.mkldnn.is_available() and _fused_operators_work(dtype)


@cache
@neutral_state()
def _fused_operators_work(dtype: torch.dtype) -> bool:
    generator = torch.Generator("cpu").manual_seed(0)

    def noise(*shape: int) -> Tensor:
        values = torch.randn(*shape, generator=generator, dtype=torch.float32, device="cpu")
        return _channels_last(values.to(dtype))

    with torch.random.fork_rng(devices=()):  # keeps the caller's random numbers
        conv = nn.Conv2d(16, 16, 3, padding=1, dtype=dtype, device="cpu")
    conv = conv.to(memory_format=torch.channels_last)
    x, other = noise(1, 16, 9, 9), noise(1, 16, 9, 9)
    try:
        conv.weight.copy_(noise(16, 16, 3, 3) / 12)
        outputs = _fused_relu(conv, x), _add_convolution_relu(other.clone(), conv, x)
        expected = F.relu(conv(x)), F.relu(conv(x) + other)
    except (AttributeError, RuntimeError, NotImplementedError, TypeError) as error:
        _LOGGER.info("ResNet blocks are not fused: %s", error)
        return False
    limit = 1e-5 if dtype == torch.float32 else 0.05
    return all(torch.allclose(a, b, rtol=limit, atol=limit) for a, b in zip(outputs, expected, strict=True))


def _channels_last(x: Tensor) -> Tensor:
    """Return x in channels_last, without which some of the operators refuse bfloat16."""
    return x.contiguous(memory_format=torch.channels_last)


def _is_plain(conv: nn.Module) -> TypeGuard[nn.Conv2d]:
    return type(conv) is nn.Conv2d and conv.groups == 1


def _convolution_relu(conv: nn.Module, x: Tensor) -> Tensor:
    if _is_plain(conv):
        return _fused_relu(conv, x)
    return F.relu(conv(x), inplace=True)


def _fused_relu(conv: nn.Conv2d, x: Tensor) -> Tensor:
    return torch.ops.mkldnn._convolution_pointwise(
        x, conv.weight, conv.bias, conv.padding, conv.stride, conv.dilation, 1, "relu", [], ""
    )


def _add_convolution_relu(other: Tensor, conv: nn.Conv2d, x: Tensor) -> Tensor:
    """Overwrite ``other`` with the ReLU of itself plus the convolution of x, and return it."""
    settings = (conv.padding, conv.stride, conv.dilation, 1)
    return torch.ops.mkldnn._convolution_pointwise_.binary(
        other, x, conv.weight, conv.bias, *settings, "add", 1.0, "relu", [], ""
    )
