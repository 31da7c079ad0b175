"""Bit-packed masks: an eighth of the memory of bool masks, without loss.

A row of W pixels becomes ceil(W / 8) bytes. The first pixel is the highest bit of the first byte, as in
``numpy.packbits(axis=-1)``.
"""

from __future__ import annotations

import sys
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from solo_infer.runtime.neutral_state import neutral_state

# Multiplication by this constant moves the lowest bits of eight bytes into the highest byte of an int64, the
# bit of the first byte in front. The product wraps around.
_GATHER = 0x8040201008040201 if sys.byteorder == "little" else 0x0102040810204080
_GATHER -= 1 << 64 if _GATHER >= 1 << 63 else 0


def pack(masks: Tensor) -> Tensor:
    """Pack bool masks (..., W) into uint8 (..., ceil(W / 8)); the bits after the last pixel are 0."""
    padding = -masks.shape[-1] % 8
    if padding:
        masks = F.pad(masks, (0, padding))
    # Flattened, because views need a last stride of 1, which axes of length 1 may lack.
    words = masks.reshape(-1).contiguous().view(torch.uint8).view(torch.int64)
    packed = ((words * _GATHER) >> 56).to(torch.uint8)
    return packed.view(*masks.shape[:-1], masks.shape[-1] // 8)


def unpack(packed: Tensor, width: int) -> Tensor:
    """Return the bool masks (..., width) of packed masks (..., ceil(width / 8))."""
    shifts = torch.arange(7, -1, -1, dtype=torch.uint8, device=packed.device)
    bits = (packed[..., None] >> shifts) & 1
    return bits.bool().flatten(-2)[..., :width]


def unpack_float(packed: Tensor) -> Tensor:
    """Return packed masks (..., B) as zeros and ones (..., 8 * B) float32."""
    return F.embedding(packed.int(), _bits_of_bytes(packed.device)).flatten(-2)


@cache
@neutral_state()
def _bits_of_bytes(device: torch.device) -> Tensor:
    """Return the bits (256, 8) float32 of each byte, the highest bit first."""
    values = torch.arange(256, dtype=torch.uint8, device="cpu")[:, None]
    return unpack(values, 8).to(device, torch.float32)


def popcount(packed: Tensor) -> Tensor:
    """Return the number of set bits (...) int64 in packed masks (..., B)."""
    return count_bits(as_words(packed))


def as_words(packed: Tensor) -> Tensor:
    """Return packed masks (..., B) as words (..., ceil(B / 8)) int64, the last one filled up with zeros."""
    padding = -packed.shape[-1] % 8
    if padding:
        packed = F.pad(packed, (0, padding))
    return packed.reshape(-1).contiguous().view(torch.int64).view(*packed.shape[:-1], packed.shape[-1] // 8)


def count_bits(words: Tensor) -> Tensor:
    """Return the number of set bits (...) int64 in words (..., W) int64."""
    # Parallel sums of bits, pairs and nibbles in words of 64 bits (Warren, "Hacker's Delight", 5-1).
    words = words - ((words >> 1) & 0x5555555555555555)
    words = (words & 0x3333333333333333) + ((words >> 2) & 0x3333333333333333)
    words = (words + (words >> 4)) & 0x0F0F0F0F0F0F0F0F
    return ((words * 0x0101010101010101) >> 56).sum(dim=-1)


def union_rows(packed: Tensor) -> Tensor:
    """Return the union (N, B) of the rows of packed masks (N, H, B)."""
    return _union(packed, dim=1)


def _union(packed: Tensor, dim: int) -> Tensor:
    """Return the union of packed masks along an axis, which is removed."""
    while packed.shape[dim] > 1:
        length = packed.shape[dim]
        merged = packed.narrow(dim, 0, length // 2) | packed.narrow(dim, length - length // 2, length // 2)
        if length % 2:
            merged = torch.cat([merged, packed.narrow(dim, length // 2, 1)], dim=dim)
        packed = merged
    return packed.select(dim, 0)


def mask_boxes(packed: Tensor, width: int) -> Tensor:
    """Return the tight boxes of packed masks.

    Args:
        packed: (N, H, ceil(width / 8)) uint8.
        width: Width of the masks in pixels.

    Returns:
        (N, 4) float32 x1 y1 x2 y2 with exclusive right and bottom edges; zeros for empty masks.
    """
    columns, rows = unpack(union_rows(packed), width), _union(packed, dim=2) > 0
    edges = []
    for occupied in (columns, rows):
        first = occupied.int().argmax(dim=1)
        end = occupied.shape[1] - occupied.flip(1).int().argmax(dim=1)
        edges.append((first, end))
    (left, right), (top, bottom) = edges
    return torch.stack([left, top, right, bottom], dim=1).float() * rows.any(dim=1)[:, None]
