"""3x3 convolutions by Winograd's method on the CPU."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from solo_infer.models.layers.conv_branch import append_channels
from solo_infer.models.optimized.fused_operators import (
    KeptConv2d,
    add_convolution,
    add_convolution_relu,
    convolution_relu,
    is_plain,
    operators_work,
)
from solo_infer.ops import winograd
from solo_infer.ops.dispatch import is_compiling
from solo_infer.ops.native.library import kernel_library
from solo_infer.ops.winograd import TransformedWeight

# Input and output channels from which Winograd's method is faster than oneDNN's direct convolution
# (benchmarks/NOTES.md): in the compiled kernel in float32 and bfloat16, and in operations of torch.
_MIN_CHANNELS_COMPILED, _MIN_CHANNELS_BFLOAT16, MIN_CHANNELS = 32, 64, 256
# The same for stride 2, with which only the kernel in float32 is faster, and the least number of outputs.
_MIN_CHANNELS_STRIDE_2, _MIN_OUTPUTS_STRIDE_2 = 64, 512
_ONE_MORE_CHANNEL = (0, 0, 0, 0, 0, 1)  # padding of axis -3 at its end


class WinogradConv2d(nn.Module):
    """3x3 convolution, by Winograd's method on the CPU where that is faster, and by torch elsewhere.

    Args:
        conv: Convolution of stride 1 or 2 and padding 1; its weights are shared.
        negative_slope: Factor of negative results: 0 for ReLU. Defaults to 1, no activation.
    """

    def __init__(self, conv: nn.Conv2d, negative_slope: float = 1) -> None:
        super().__init__()
        self.out_channels, self.stride = conv.out_channels, conv.stride[0]
        self.weight, self.bias, self.negative_slope = conv.weight, conv.bias, negative_slope
        self._direct = KeptConv2d(conv) if is_plain(conv) else None
        # Computed on first use; concurrent threads compute equal values.
        self._transformed: TransformedWeight | None = None

    def forward(self, x: Tensor, *, addend: Tensor | None = None, relu: bool = False) -> Tensor:
        """Map (N, C, H, W) to (N, K, H', W'); the sides are divided by the stride and rounded up.

        Args:
            x: Input.
            addend: (N, K, H', W'), to which the convolution is added; it may be overwritten.
            relu: Whether ReLU is applied to the result, instead of ``negative_slope``. Defaults to False.
        """
        slope = 0 if relu else self.negative_slope
        if can_use_winograd(x) and (self.stride == 1 or _has_many_outputs(x)):
            return self._convolve([x], () if addend is None else (addend,), slope)[0]
        if self._direct is not None and slope in (0, 1) and _can_fuse(x):
            return _convolve_directly(self._direct, x, addend, relu=slope == 0)
        out = F.conv2d(x, self.weight, self.bias, self.stride, padding=1)
        out = out if addend is None else out + addend
        if slope == 0:
            return F.relu(out)
        return out if slope == 1 else F.leaky_relu(out, slope)

    def forward_levels(self, maps: Sequence[Tensor], extra: Sequence[Tensor] = ()) -> list[Tensor]:
        """Convolve maps of several sizes, small ones together, with stride 1 and without activation.

        Args:
            maps: (N, C, H, W) each.
            extra: (N or 1, c, H, W) each, further channels of the maps; few.
        """
        if not maps or not can_use_winograd(maps[0]):
            weight = self.weight
            if extra and weight.shape[1] % 2 and maps[0].device.type == "cpu":
                # oneDNN's matrix units read pairs of channels in half precision: another one, of zeros.
                weight = F.pad(weight, _ONE_MORE_CHANNEL)
                extra = [F.pad(channels, _ONE_MORE_CHANNEL) for channels in extra]
            if extra:
                maps = [append_channels(x, channels) for x, channels in zip(maps, extra, strict=True)]
            return [F.conv2d(x, weight, self.bias, padding=1) for x in maps]
        channels = maps[0].shape[1]
        addends = [
            F.conv2d(more.contiguous(memory_format=torch.channels_last), self.weight[:, channels:], padding=1)
            .expand(len(x), -1, -1, -1)
            .contiguous(memory_format=torch.channels_last)
            for x, more in zip(maps, extra, strict=False)
        ]
        return self._convolve(maps, addends, negative_slope=1)

    def _convolve(
        self, maps: Sequence[Tensor], addends: Sequence[Tensor], negative_slope: float
    ) -> list[Tensor]:
        channels, weight = maps[0].shape[1], self._transformed
        if weight is None or weight.channels != channels:
            weight = self._transformed = winograd.transform_weight(self.weight[:, :channels], self.stride)
        return winograd.convolve(maps, weight, self.bias, addends=addends, negative_slope=negative_slope)


def _can_fuse(x: Tensor) -> bool:
    is_suitable = x.device.type == "cpu" and x.is_contiguous(memory_format=torch.channels_last)
    return (
        is_suitable
        and not torch.is_grad_enabled()
        and not is_compiling()
        and operators_work(x.device, x.dtype)
    )


def _convolve_directly(conv: KeptConv2d, x: Tensor, addend: Tensor | None, *, relu: bool) -> Tensor:
    if addend is None:
        return convolution_relu(conv, x) if relu else conv(x)
    addend = addend.contiguous(memory_format=torch.channels_last)
    return add_convolution_relu(addend, conv, x) if relu else add_convolution(addend, conv, x)


def is_wide(conv: nn.Conv2d) -> bool:
    """Return whether Winograd's method can replace a convolution and is faster."""
    shape = (conv.kernel_size, conv.padding, conv.dilation, conv.groups)
    if shape != ((3, 3), (1, 1), (1, 1), 1) or conv.stride not in ((1, 1), (2, 2)):
        return False
    width, dtype = min(conv.in_channels, conv.out_channels), conv.weight.dtype
    if conv.stride == (1, 1):
        return width >= _min_channels(dtype)
    return dtype == torch.float32 and kernel_library() is not None and width >= _MIN_CHANNELS_STRIDE_2


def _has_many_outputs(x: Tensor) -> bool:
    height, width = x.shape[-2:]
    return len(x) * ((height + 1) // 2) * ((width + 1) // 2) >= _MIN_OUTPUTS_STRIDE_2


def _min_channels(dtype: torch.dtype) -> int:
    if kernel_library() is None or not winograd.is_faster(dtype):
        return MIN_CHANNELS
    return _MIN_CHANNELS_COMPILED if dtype == torch.float32 else _MIN_CHANNELS_BFLOAT16


def can_use_winograd(x: Tensor) -> bool:
    """Return whether Winograd's method is available for an input, and faster."""
    usable = x.device.type == "cpu" and not torch.is_grad_enabled() and winograd.is_faster(x.dtype)
    # Weights transformed while tracing would be cached without values.
    return usable and not is_compiling()
