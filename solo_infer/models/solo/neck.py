"""The feature pyramid, and the five level inputs that SOLO's heads read from it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork

from solo_infer.models.optimized.winograd_conv import WideConv, halved_convolution

_BAND = 40  # rows of P2 at a time on the CPU, so that all that is made of them stays in the cache; even


class FeaturePyramid(FeaturePyramidNetwork):
    """torchvision's pyramid on C2..C5: P2..P5, and P6 made of P5.

    It equals mmdet's ``FPN(num_outs=5)``: 1x1 lateral and 3x3 output convolutions with bias,
    nearest up-sampling to the exact size of the finer level.

    Args:
        in_channels: Of C2..C5.
        out_channels: Of each level.
        extra_conv: P6 is a 3x3 convolution of P5 with stride 2 (mmdet's ``add_extra_convs="on_output"``),
            else every second pixel of it.
    """

    def __init__(self, in_channels: Sequence[int], out_channels: int, extra_conv: bool = False) -> None:
        super().__init__(list(in_channels), out_channels)
        self.extra_conv = extra_conv
        if extra_conv:
            conv = nn.Conv2d(out_channels, out_channels, 3, stride=2, padding=1)
            nn.init.kaiming_uniform_(conv.weight, a=1)  # as torchvision does with the others
            nn.init.zeros_(conv.get_parameter("bias"))
            self.layer_blocks.append(nn.Sequential(conv))  # the name mmdet gives it, in our terms

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Map C2..C5 to P2..P6, all of ``out_channels``."""
        levels = [
            block(merged)
            for block, merged in zip(self.layer_blocks, self._merged(maps, first=0), strict=False)
        ]
        return [*levels, self._extra_level(levels[-1])]

    def _extra_level(self, p5: Tensor) -> Tensor:
        return self.layer_blocks[-1](p5) if self.extra_conv else p5[..., ::2, ::2]

    def solo_levels(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Map C2..C5 to SOLO's levels at strides 8, 8, 16, 32, 32.

        P2 is halved and P6 enlarged to the size of P5, both bilinearly (mmdet's ``resize_feats``).
        An odd last row or column of P2 is dropped.
        """
        c3, c4, c5 = self._merged(maps, first=1)
        convs = [block[0] for block in self.layer_blocks]
        p5 = convs[3](c5)
        p6 = self._extra_level(p5)
        enlarged = F.interpolate(p6, size=p5.shape[-2:], mode="bilinear", align_corners=False)
        return [self._halved_p2(maps, c3), convs[1](c3), convs[2](c4), p5, enlarged]

    def _merged(self, maps: Sequence[Tensor], first: int) -> list[Tensor]:
        """Return the lateral maps from ``first`` on, each plus the enlarged coarser one."""
        blocks = list(self.inner_blocks)[first:]
        merged = [block(feature) for block, feature in zip(blocks, maps[first:], strict=True)]
        for index in reversed(range(len(merged) - 1)):
            merged[index] = merged[index] + enlarge(merged[index + 1], merged[index].shape[-2:])
        return merged

    def _halved_p2(self, maps: Sequence[Tensor], coarser: Tensor) -> Tensor:
        """Return P2 at half its size, from C2 and the merged map of C3."""
        c2, lateral, conv = maps[0], self.inner_blocks[0], self.layer_blocks[0][0]
        height, width = c2.shape[-2:]
        doubled = (height, width) == (coarser.shape[-2] * 2, coarser.shape[-1] * 2)
        if not (doubled and c2.device.type == "cpu" and isinstance(conv, WideConv)):
            return halved_convolution(conv, lateral(c2) + enlarge(coarser, c2.shape[-2:]))
        # In bands of rows: the lateral map of all of C2, the largest of all, never exists.
        bands = []
        for start in range(0, height, _BAND):
            top, bottom = max(start - 1, 0), min(start + _BAND + 1, height)
            upper = coarser[..., top // 2 : (bottom + 1) // 2, :]
            band = enlarge(upper, (upper.shape[-2] * 2, width))[..., top % 2 :, :][..., : bottom - top, :]
            band = band + lateral(c2[..., top:bottom, :])
            bands.append(conv.halved(band, above=int(top == start), below=int(bottom - start <= _BAND)))
        return torch.cat(bands, dim=2)


def enlarge(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Enlarge maps (N, C, H, W) to a size, repeating pixels."""
    return F.interpolate(maps, size=tuple(size), mode="nearest")
