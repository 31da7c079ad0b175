"""Up-sample to the network input, crop, resize, threshold and pack in one launch: the large maps never exist.

The torch twin is ``enlarging.enlarge_torch``. Positions and weights are those of ``F.interpolate`` without
``align_corners``; a pixel may be decided otherwise only where its score lies within 1e-5 of the threshold.
"""

from __future__ import annotations

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

_ROWS = 8  # of pixels in one program
_BYTES = 16  # of eight pixels in each row
_FAR = 1 << 30  # beyond any image


@triton.jit
def _taps(where, scale, size):
    """Return the two source pixels of each pixel along one side, and the weight of the second."""
    at = tl.maximum(scale * (where.to(tl.float32) + 0.5) - 0.5, 0.0)
    first = tl.minimum(at.to(tl.int32), size - 1)
    return first, tl.minimum(first + 1, size - 1), at - first.to(tl.float32)


@triton.jit
def _row_of_input(soft, row, left, right, part, width, inside):
    """Return a row of the map interpolated between two columns."""
    from_left = tl.load(soft + row * width + left, mask=inside, other=0.0)
    from_right = tl.load(soft + row * width + right, mask=inside, other=0.0)
    return (1.0 - part) * from_left + part * from_right


@triton.jit
def _at_input(soft, y, x, map_scale_y, map_scale_x, height, width, inside):
    """Return the pixels (y, x) of the map at the size of the network input."""
    top, bottom, down = _taps(y, map_scale_y, height)
    left, right, across = _taps(x, map_scale_x, width)
    upper = _row_of_input(soft, top, left, right, across, width, inside)
    lower = _row_of_input(soft, bottom, left, right, across, width, inside)
    return (1.0 - down) * upper + down * lower


@triton.jit
def _enlarge_kernel(
    soft, packed, boxes, height, width, resized_height, resized_width, out_height, out_width,
    map_scale_y, map_scale_x, scale_y, scale_x, threshold,
    ROWS: tl.constexpr, BYTES: tl.constexpr, FAR: tl.constexpr,
):  # fmt: skip
    """Decide and pack a tile of one mask, and widen its box."""
    mask_index = tl.program_id(2).to(tl.int64)
    row_bytes = tl.cdiv(out_width, 8)
    y = (tl.program_id(1) * ROWS + tl.arange(0, ROWS))[:, None, None]
    byte = (tl.program_id(0) * BYTES + tl.arange(0, BYTES))[None, :, None]
    bit = tl.arange(0, 8)[None, None, :]
    x = byte * 8 + bit
    inside = (y < out_height) & (x < out_width)
    top, bottom, down = _taps(y, scale_y, resized_height)
    left, right, across = _taps(x, scale_x, resized_width)
    own = soft + mask_index * height * width
    upper = (1.0 - across) * _at_input(own, top, left, map_scale_y, map_scale_x, height, width, inside)
    upper += across * _at_input(own, top, right, map_scale_y, map_scale_x, height, width, inside)
    lower = (1.0 - across) * _at_input(own, bottom, left, map_scale_y, map_scale_x, height, width, inside)
    lower += across * _at_input(own, bottom, right, map_scale_y, map_scale_x, height, width, inside)
    chosen = inside & ((1.0 - down) * upper + down * lower > threshold)
    value = tl.sum(chosen.to(tl.int32) << (7 - bit), axis=2)
    rows = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    bytes_at = tl.program_id(0) * BYTES + tl.arange(0, BYTES)
    to = (mask_index * out_height + rows[:, None]) * row_bytes + bytes_at[None, :]
    stored = (rows[:, None] < out_height) & (bytes_at[None, :] < row_bytes)
    tl.store(packed + to, value.to(tl.uint8), mask=stored)
    if tl.max(value) > 0:
        box = boxes + mask_index * 4
        tl.atomic_min(box, tl.min(tl.where(chosen, x, FAR)), sem="relaxed")
        tl.atomic_min(box + 1, tl.min(tl.where(chosen, y, FAR)), sem="relaxed")
        tl.atomic_max(box + 2, tl.max(tl.where(chosen, x + 1, 0)), sem="relaxed")
        tl.atomic_max(box + 3, tl.max(tl.where(chosen, y + 1, 0)), sem="relaxed")


def enlarge(
    soft: Tensor,
    padded: tuple[int, int],
    resized: tuple[int, int],
    original: tuple[int, int],
    mask_thr: float,
) -> tuple[Tensor, Tensor]:
    """Return packed masks (K, height, ceil(width / 8)) and boxes (K, 4); see ``enlarging.enlarge``."""
    count, height, width = soft.shape
    out_height, out_width = original
    row_bytes = (out_width + 7) // 8
    packed = torch.empty((count, out_height, row_bytes), dtype=torch.uint8, device=soft.device)
    boxes = torch.zeros((count, 4), dtype=torch.int32, device=soft.device)
    boxes[:, :2] = _FAR
    if count:
        scales = [
            float(np.float32(old) / np.float32(new))
            for old, new in zip((height, width, *resized), (*padded, *original), strict=True)
        ]
        grid = (triton.cdiv(row_bytes, _BYTES), triton.cdiv(out_height, _ROWS), count)
        _enlarge_kernel[grid](
            soft.contiguous(), packed, boxes, height, width, *resized, out_height, out_width,
            *scales, mask_thr, ROWS=_ROWS, BYTES=_BYTES, FAR=_FAR, enable_fp_fusion=False,
        )  # fmt: skip
    return packed, boxes.float() * (boxes[:, 2:3] > 0)
