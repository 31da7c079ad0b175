"""Bilinear resizing of feature maps."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def resize(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize maps (N, C, H, W) bilinearly to (height, width); maps of that size are returned unchanged."""
    # Comparing a side that torch.export traces as a symbol would fix it to the size of the example.
    is_known = all(isinstance(side, int) for side in maps.shape[-2:])
    if is_known and maps.shape[-2:] == size:
        return maps
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)


def upsample(maps: Tensor) -> Tensor:
    """Up-sample maps (N, C, H, W) bilinearly by a factor of 2."""
    return F.interpolate(maps, scale_factor=2.0, mode="bilinear", align_corners=False)
