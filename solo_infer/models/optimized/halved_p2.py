"""Feature pyramid of SOLO with P2 computed at half its size.

The heads read P2 only after a bilinear halving. For even sizes that is the mean of 2 x 2 outputs of its 3x3
convolution, and both together are one 4x4 convolution of stride 2: 44% of the multiplications and a quarter
of the output.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from solo_infer.models.layers.resize import resize
from solo_infer.models.optimized.pyramid import enlarge, merge_lateral, merge_laterals
from solo_infer.models.optimized.winograd_conv import MIN_CHANNELS, can_use_winograd
from solo_infer.models.solo.neck import SOLONeck
from solo_infer.ops import winograd
from solo_infer.ops.dispatch import is_compiling
from solo_infer.ops.native.library import kernel_library
from solo_infer.ops.winograd import TransformedWeight
from solo_infer.runtime.thread_pool import run_in_threads, thread_count

# Rows of P2 that are computed at a time on the CPU, so that the intermediates stay in the cache, and the
# least number for one of several threads: multiples of the 8 rows of a tile.
_BAND_ROWS, _MIN_BAND_ROWS = 40, 16


class HalvedConv2d(nn.Module):
    """3x3 convolution followed by a bilinear halving, as one 4x4 convolution of stride 2.

    Args:
        conv: Convolution of stride 1 and padding 1; its weights are shared.
    """

    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        self.weight, self.bias = conv.get_parameter("weight"), conv.get_parameter("bias")
        self._is_wide = min(self.weight.shape[:2]) >= MIN_CHANNELS
        # Computed on first use; concurrent threads compute equal values.
        self._halving: Tensor | None = None
        self._transformed: TransformedWeight | None = None

    def uses_winograd(self, x: Tensor) -> bool:
        """Return whether Winograd's method is used for an input."""
        return self._is_wide and can_use_winograd(x)

    def forward(self, x: Tensor, above: int = 1, below: int = 1) -> Tensor:
        """Map (N, C, H, W) to half its size, with rows of zero padding above and below.

        Args:
            x: Input of even width; H + above + below must be even.
            above: Rows of padding above, 0 or 1.
            below: Rows of padding below, 0 or 1.
        """
        halving = halving_weight(self.weight) if self._halving is None else self._halving
        if not is_compiling():
            self._halving = halving
        if self.uses_winograd(x):
            if self._transformed is None:
                self._transformed = winograd.transform_halving_weight(halving)
            return winograd.convolve_halving(x, self._transformed, self.bias, above, below)
        if above == below == 1:
            return F.conv2d(x, halving, self.bias, stride=2, padding=1)
        return F.conv2d(F.pad(x, (1, 1, above, below)), halving, self.bias, stride=2)


class HalvedP2Neck(nn.Module):
    """``SOLONeck`` that never computes P2 at its full size.

    Args:
        neck: Its modules are used as they are.
    """

    def __init__(self, neck: SOLONeck) -> None:
        super().__init__()
        self.neck = neck
        self.halved_p2 = HalvedConv2d(neck.layer_blocks[0].get_submodule("0"))

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Map C2 to C5 to the inputs of the heads, at strides 8, 8, 16, 32, 32."""
        convs = self.neck.layer_blocks
        c3, c4, c5 = merge_laterals(self.neck.inner_blocks[1:], maps[1:])
        p5 = convs[3](c5)
        p6 = resize(self.neck.extra_level(p5), (p5.shape[-2], p5.shape[-1]))
        return [self._p2(maps[0], c3), convs[1](c3), convs[2](c4), p5, p6]

    def _p2(self, c2: Tensor, c3: Tensor) -> Tensor:
        """Return P2 at half its size, from C2 and the merged map of C3."""
        lateral = self.neck.inner_blocks[0]
        height, width = c2.shape[-2:]
        if height % 2 or width % 2:
            p2 = self.neck.layer_blocks[0](merge_lateral(lateral, c2, c3))
            return F.interpolate(p2, scale_factor=0.5, mode="bilinear", align_corners=False)
        is_doubled = (height, width) == (c3.shape[-2] * 2, c3.shape[-1] * 2)
        if not (is_doubled and self.halved_p2.uses_winograd(c2) and kernel_library() is None):
            return self.halved_p2(merge_lateral(lateral, c2, c3))
        # In bands of rows, which stay in the cache: operations of torch read them repeatedly.
        rows = max(-(-_BAND_ROWS // (8 * thread_count())) * 8, _MIN_BAND_ROWS)
        shape = (c2.shape[0], len(self.halved_p2.weight), height // 2, width // 2)
        p2 = torch.empty(shape, dtype=c2.dtype, device=c2.device, memory_format=torch.channels_last)

        def compute(start: int) -> None:
            top, bottom = max(start - 1, 0), min(start + rows + 1, height)
            coarse = c3[..., top // 2 : (bottom + 1) // 2, :]
            band = enlarge(coarse, (coarse.shape[-2] * 2, width))[..., top % 2 :, :][..., : bottom - top, :]
            band += lateral(c2[..., top:bottom, :])
            is_last = bottom - start <= rows
            p2[..., start // 2 : (start + rows) // 2, :] = self.halved_p2(
                band, above=int(top == start), below=int(is_last)
            )

        run_in_threads([partial(compute, start) for start in range(0, height, rows)])
        return p2


def halving_weight(weight: Tensor) -> Tensor:
    """Return the weight (K, C, 4, 4) of stride 2 of a 3x3 convolution (K, C, 3, 3) and a halving."""
    weight = F.pad(weight, (0, 1, 0, 1))
    weight = weight + weight.roll(1, dims=-1)
    return (weight + weight.roll(1, dims=-2)) / 4
