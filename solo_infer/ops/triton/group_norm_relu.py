"""GroupNorm and ReLU of channels_last maps in three kernels.

PyTorch's GroupNorm converts channels_last maps to the contiguous format, and the next convolution converts
them back. Here each block of pixels yields the mean and the squared deviations of its channels. A second
kernel merges them in float32 (Chan's formula, stable for any mean), and a third one normalizes. The results
differ from PyTorch by the rounding of float32 and of the output's data type.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

# Values of one program, and from how many values of an image on; measured on an H200 (benchmarks/NOTES.md).
_TILE, _LARGE_TILE, _LARGE = 8192, 16384, 1 << 21
_BLOCKS = 64  # blocks of pixels that are merged at the same time
_OPTIONS = {"num_warps": 4, "enable_fp_fusion": False}


@triton.jit
def _statistics_kernel(x, means, deviations, pixels, channels, PIXELS: tl.constexpr, CHANNELS: tl.constexpr):
    """Store the mean and the sum of squared deviations of each channel in a block of pixels."""
    image, block = tl.program_id(1).to(tl.int64), tl.program_id(0)
    channel = tl.arange(0, CHANNELS)
    pixel = block * PIXELS + tl.arange(0, PIXELS)
    inside = (pixel[:, None] < pixels) & (channel[None, :] < channels)
    offsets = (image * pixels + pixel[:, None]) * channels + channel[None, :]
    values = tl.load(x + offsets, mask=inside, other=0.0).to(tl.float32)
    count = tl.minimum(pixels - block * PIXELS, PIXELS).to(tl.float32)
    mean = tl.sum(values, axis=0) / count
    centered = tl.where(inside, values - mean[None, :], 0.0)
    target = (image * tl.num_programs(0) + block) * channels + channel
    tl.store(means + target, mean, mask=channel < channels)
    tl.store(deviations + target, tl.sum(centered * centered, axis=0), mask=channel < channels)


@triton.jit
def _merge_kernel(
    means, deviations, mean_out, scale_out, pixels, channels, blocks, eps, block_pixels,
    WIDTH: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """Store the mean and 1 / standard deviation of a group of channels of an image."""
    image, group = tl.program_id(1).to(tl.int64), tl.program_id(0)
    width = channels // tl.num_programs(0)
    channel = group * width + tl.arange(0, WIDTH)
    total = tl.zeros((BLOCKS, WIDTH), dtype=tl.float32)
    for first in range(0, blocks, BLOCKS):
        block = first + tl.arange(0, BLOCKS)
        inside = (block[:, None] < blocks) & (tl.arange(0, WIDTH)[None, :] < width)
        offsets = (image * blocks + block[:, None]) * channels + channel[None, :]
        count = tl.minimum(pixels - block * block_pixels, block_pixels).to(tl.float32)
        total += tl.load(means + offsets, mask=inside, other=0.0) * count[:, None]
    size = (width * pixels).to(tl.float32)
    mean = tl.sum(total) / size
    total = tl.zeros((BLOCKS, WIDTH), dtype=tl.float32)
    for first in range(0, blocks, BLOCKS):
        block = first + tl.arange(0, BLOCKS)
        inside = (block[:, None] < blocks) & (tl.arange(0, WIDTH)[None, :] < width)
        offsets = (image * blocks + block[:, None]) * channels + channel[None, :]
        count = tl.minimum(pixels - block * block_pixels, block_pixels).to(tl.float32)
        delta = tl.load(means + offsets, mask=inside, other=0.0) - mean
        deviation = tl.load(deviations + offsets, mask=inside, other=0.0)
        total += tl.where(inside, deviation + count[:, None] * delta * delta, 0.0)
    target = image * tl.num_programs(0) + group
    tl.store(mean_out + target, mean)
    tl.store(scale_out + target, 1.0 / tl.sqrt(tl.sum(total) / size + eps))


@triton.jit
def _apply_kernel(
    x, y, mean_in, scale_in, weight, bias, pixels, channels, groups,
    PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Normalize a block of pixels, scale, shift and apply ReLU."""
    image = tl.program_id(1).to(tl.int64)
    channel = tl.arange(0, CHANNELS)
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    valid = channel < channels
    group = image * groups + channel // (channels // groups)
    mean = tl.load(mean_in + group, mask=valid, other=0.0)
    scale = tl.load(scale_in + group, mask=valid, other=0.0)
    scale = scale * tl.load(weight + channel, mask=valid, other=0.0).to(tl.float32)
    shift = tl.load(bias + channel, mask=valid, other=0.0).to(tl.float32)
    inside = (pixel[:, None] < pixels) & valid[None, :]
    offsets = (image * pixels + pixel[:, None]) * channels + channel[None, :]
    values = tl.load(x + offsets, mask=inside, other=0.0).to(tl.float32)
    values = (values - mean[None, :]) * scale[None, :] + shift[None, :]
    tl.store(y + offsets, tl.maximum(values, 0.0).to(y.dtype.element_ty), mask=inside)


def group_norm_relu(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Launch the kernels of ``ops.group_norm_relu``. The result is in channels_last format."""
    x = x.contiguous(memory_format=torch.channels_last)
    y = torch.empty_like(x, memory_format=torch.channels_last)
    if x.numel() == 0:
        return y
    images, channels, height, width = x.shape
    pixels = height * width
    padded = triton.next_power_of_2(channels)
    tile = _LARGE_TILE if pixels * channels >= _LARGE else _TILE
    block = max(tile // padded, 1)
    blocks = triton.cdiv(pixels, block)
    means = torch.empty((images, blocks, channels), dtype=torch.float32, device=x.device)
    deviations = torch.empty_like(means)
    mean = torch.empty((images, groups), dtype=torch.float32, device=x.device)
    scale = torch.empty_like(mean)
    _statistics_kernel[(blocks, images)](
        x, means, deviations, pixels, channels, PIXELS=block, CHANNELS=padded, **_OPTIONS
    )
    _merge_kernel[(groups, images)](
        means, deviations, mean, scale, pixels, channels, blocks, eps, block,
        WIDTH=triton.next_power_of_2(channels // groups), BLOCKS=_BLOCKS, enable_fp_fusion=False,
    )  # fmt: skip
    _apply_kernel[(blocks, images)](
        x, y, mean, scale, weight, bias, pixels, channels, groups,
        PIXELS=block, CHANNELS=padded, **_OPTIONS,
    )  # fmt: skip
    return y
