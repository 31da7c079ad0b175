"""3x3 convolutions by Winograd's method on the CPU."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from solo_infer.models.layers.conv_branch import append_channels
from solo_infer.ops import winograd
from solo_infer.ops.dispatch import is_compiling

# Input and output channels from which Winograd's method is faster than oneDNN's direct convolution
# (benchmarks/NOTES.md).
MIN_CHANNELS = 256
_ONE_MORE_CHANNEL = (0, 0, 0, 0, 0, 1)  # padding of axis -3 at its end


class WinogradConv2d(nn.Module):
    """3x3 convolution, by Winograd's method for float32 on the CPU, and by torch elsewhere.

    Args:
        conv: Convolution of stride 1 and padding 1; its weights are shared.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.weight, self.bias = conv.weight, conv.bias
        # By size of a tile, computed on first use; concurrent threads compute equal values.
        self._transformed: dict[int, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, K, H, W)."""
        return self.forward_levels([x])[0]

    def forward_levels(self, maps: Sequence[Tensor], extra: Sequence[Tensor] = ()) -> list[Tensor]:
        """Convolve maps of several sizes, small ones together.

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
        channels, tile = maps[0].shape[1], winograd.suitable_tile(maps)
        transformed = self._transformed.get(tile)
        if transformed is None or transformed.shape[1] != channels:
            transformed = winograd.transform_weight(self.weight[:, :channels], tile)
            self._transformed[tile] = transformed
        outputs = winograd.convolve(maps, transformed, self.bias)
        for output, x in zip(outputs, extra, strict=False):
            output += F.conv2d(x, self.weight[:, channels:], padding=1)
        return outputs


def is_wide(conv: nn.Conv2d) -> bool:
    """Return whether Winograd's method can replace a convolution and is faster."""
    return (
        (conv.kernel_size, conv.stride, conv.padding) == ((3, 3), (1, 1), (1, 1))
        and (conv.dilation, conv.groups) == ((1, 1), 1)
        and min(conv.in_channels, conv.out_channels) >= MIN_CHANNELS
    )


def can_use_winograd(x: Tensor) -> bool:
    """Return whether Winograd's method is available for an input."""
    usable = x.dtype == torch.float32 and x.device.type == "cpu" and not torch.is_grad_enabled()
    # Weights transformed while tracing would be cached without values.
    return usable and not is_compiling()
