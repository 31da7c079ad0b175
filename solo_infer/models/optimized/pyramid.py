"""Feature pyramids whose lateral convolutions add the coarser level themselves (``fused_operators``)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from solo_infer.models.optimized.fused_operators import add_convolution, is_plain, operators_work
from solo_infer.models.solo.neck import PyramidNeck
from solo_infer.ops.dispatch import is_compiling
from solo_infer.runtime import kept_memory


class FusedPyramidNeck(nn.Module):
    """``PyramidNeck`` with fused additions.

    Args:
        neck: Its modules are used as they are.
    """

    def __init__(self, neck: PyramidNeck) -> None:
        super().__init__()
        self.neck = neck

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Map C2 to C5 to the inputs of the head."""
        merged = merge_laterals(self.neck.inner_blocks, maps)
        levels = [block(feature) for block, feature in zip(self.neck.layer_blocks, merged, strict=False)]
        return self.neck.head_inputs([*levels, self.neck.extra_level(levels[-1])])


def merge_laterals(laterals: Sequence[nn.Module] | nn.ModuleList, maps: Sequence[Tensor]) -> list[Tensor]:
    """Return the lateral map of each level, plus the enlarged merged map of the coarser level.

    Args:
        laterals: 1x1 convolution of each level, or a block that holds one.
        maps: Maps (N, C, H, W) of the backbone, the finest one first.
    """
    merged = [laterals[len(maps) - 1](maps[-1])]
    for index in reversed(range(len(maps) - 1)):
        merged.insert(0, merge_lateral(laterals[index], maps[index], merged[0]))
    return merged


def merge_lateral(lateral: nn.Module, x: Tensor, coarse: Tensor) -> Tensor:
    """Return the lateral map of one level plus the enlarged merged map of the coarser level."""
    enlarged = enlarge(coarse, x.shape[-2:])
    conv = lateral[0] if isinstance(lateral, nn.Sequential) and len(lateral) == 1 else lateral
    is_separate = torch.is_grad_enabled() or is_compiling() or x.device.type != "cpu"
    if is_separate or not (is_plain(conv) and operators_work(x.device, x.dtype)):
        return lateral(x) + enlarged
    enlarged, x = (maps.contiguous(memory_format=torch.channels_last) for maps in (enlarged, x))
    return add_convolution(enlarged, conv, x)


def enlarge(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Enlarge maps (N, C, H, W) to a size by repeating pixels."""
    if torch.is_grad_enabled() or is_compiling() or maps.device.type != "cpu":
        return F.interpolate(maps, size=tuple(size), mode="nearest")
    enlarged = kept_memory.empty((len(maps), *size, maps.shape[1]), maps.dtype).permute(0, 3, 1, 2)
    return torch.ops.aten.upsample_nearest2d.out(maps, tuple(size), out=enlarged)
