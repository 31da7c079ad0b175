"""Masks as packed bits: an eighth of the memory of bool, and exact.

A row of W pixels becomes ceil(W / 8) bytes, the first pixel in the highest bit, as
``numpy.packbits(axis=-1)`` does it.
"""

from __future__ import annotations

import sys
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

_SHIFTS = (7, 6, 5, 4, 3, 2, 1, 0)
# A product with it moves the lowest bits of eight bytes into the highest byte, the first byte's on top.
_GATHER = 0x8040201008040201 if sys.byteorder == "little" else 0x0102040810204080
_GATHER -= 1 << 64 if _GATHER >= 1 << 63 else 0  # as int64, whose products wrap around


def pack(masks: Tensor) -> Tensor:
    """Pack bool masks (..., W) into uint8 (..., ceil(W / 8)); missing last pixels count as False."""
    short = -masks.shape[-1] % 8
    if short:
        masks = F.pad(masks, (0, short))
    words = masks.contiguous().view(torch.uint8).view(torch.int64)
    return ((words * _GATHER) >> 56).to(torch.uint8)


def unpack(packed: Tensor, width: int) -> Tensor:
    """Return the bool masks (..., width) of packed bits (..., ceil(width / 8))."""
    shifts = torch.arange(7, -1, -1, dtype=torch.uint8, device=packed.device)
    eights = (packed[..., None] >> shifts) & 1
    return eights.bool().flatten(-2)[..., :width]


def unpack_float(packed: Tensor) -> Tensor:
    """Return packed bits (..., B) as zeros and ones (..., 8 * B) float32."""
    return F.embedding(packed.int(), _table(packed.device)).flatten(-2)


@cache
def _table(device: torch.device) -> Tensor:
    values = torch.arange(256, dtype=torch.int32)[:, None]
    return ((values >> torch.tensor(_SHIFTS)) & 1).float().to(device)  # (256, 8)


def count(packed: Tensor) -> Tensor:
    """Return how many bits are set, (...) int64, in packed bits (..., B)."""
    short = -packed.shape[-1] % 8
    if short:
        packed = F.pad(packed, (0, short))
    # Sums of neighboring bits, pairs and nibbles, side by side in 64 bits (Warren, "Hacker's Delight", 5-1).
    words = packed.contiguous().view(torch.int64)
    words = words - ((words >> 1) & 0x5555555555555555)
    words = (words & 0x3333333333333333) + ((words >> 2) & 0x3333333333333333)
    words = (words + (words >> 4)) & 0x0F0F0F0F0F0F0F0F
    return ((words * 0x0101010101010101) >> 56).sum(dim=-1)


def union_rows(packed: Tensor) -> Tensor:
    """Return the union (N, B) of the rows of packed bits (N, H, B)."""
    while packed.shape[1] > 1:
        half = packed.shape[1] // 2
        united = packed[:, :half] | packed[:, -half:]
        packed = torch.cat([united, packed[:, half : half + 1]], dim=1) if packed.shape[1] % 2 else united
    return packed[:, 0]
