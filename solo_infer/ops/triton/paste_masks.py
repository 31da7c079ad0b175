"""Up-sampling, crop, resize, threshold and packing of masks in one kernel, without the large maps.

Positions and weights are those of ``F.interpolate`` without ``align_corners``. Pixels may be decided
differently than in PyTorch if their score is within 1e-5 of the threshold.
"""

from __future__ import annotations

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from solo_infer.ops.paste_masks import PastedMasks, Size
from solo_infer.ops.triton.interpolate import bilinear_taps

_ROWS = 8  # rows of pixels of one program
_BYTES = 16  # packed bytes, of eight pixels each, in each of these rows
_FAR = 1 << 30  # beyond any image


@triton.jit
def _interpolate_row(soft, row, left, right, right_weight, width, inside):
    """Return a row of the map, interpolated between two columns."""
    left_score = tl.load(soft + row * width + left, mask=inside, other=0.0)
    right_score = tl.load(soft + row * width + right, mask=inside, other=0.0)
    return (1.0 - right_weight) * left_score + right_weight * right_score


@triton.jit
def _input_scores(soft, y, x, map_scale_y, map_scale_x, height, width, inside):
    """Return the scores at (y, x) of the map that is up-sampled to the network input."""
    top, bottom, bottom_weight = bilinear_taps(y, map_scale_y, height)
    left, right, right_weight = bilinear_taps(x, map_scale_x, width)
    upper = _interpolate_row(soft, top, left, right, right_weight, width, inside)
    lower = _interpolate_row(soft, bottom, left, right, right_weight, width, inside)
    return (1.0 - bottom_weight) * upper + bottom_weight * lower


@triton.jit
def _paste_kernel(
    soft, packed, boxes, height, width, resized_height, resized_width, out_height, out_width,
    map_scale_y, map_scale_x, scale_y, scale_x, threshold,
    ROWS: tl.constexpr, BYTES: tl.constexpr, FAR: tl.constexpr,
):  # fmt: skip
    """Threshold and pack a tile of one mask, and extend its box."""
    mask_index = tl.program_id(2).to(tl.int64)
    row_bytes = tl.cdiv(out_width, 8)
    y = (tl.program_id(1) * ROWS + tl.arange(0, ROWS))[:, None, None]
    byte = (tl.program_id(0) * BYTES + tl.arange(0, BYTES))[None, :, None]
    bit = tl.arange(0, 8)[None, None, :]
    x = byte * 8 + bit
    inside = (y < out_height) & (x < out_width)
    top, bottom, bottom_weight = bilinear_taps(y, scale_y, resized_height)
    left, right, right_weight = bilinear_taps(x, scale_x, resized_width)
    mask = soft + mask_index * height * width
    left_weight = 1.0 - right_weight
    upper = left_weight * _input_scores(mask, top, left, map_scale_y, map_scale_x, height, width, inside)
    upper += right_weight * _input_scores(mask, top, right, map_scale_y, map_scale_x, height, width, inside)
    lower = left_weight * _input_scores(mask, bottom, left, map_scale_y, map_scale_x, height, width, inside)
    lower += right_weight * _input_scores(
        mask, bottom, right, map_scale_y, map_scale_x, height, width, inside
    )
    selected = inside & ((1.0 - bottom_weight) * upper + bottom_weight * lower > threshold)
    value = tl.sum(selected.to(tl.int32) << (7 - bit), axis=2)
    rows = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    row_byte = tl.program_id(0) * BYTES + tl.arange(0, BYTES)
    target = packed + (mask_index * out_height + rows[:, None]) * row_bytes + row_byte[None, :]
    stored = (rows[:, None] < out_height) & (row_byte[None, :] < row_bytes)
    tl.store(target, value.to(tl.uint8), mask=stored)
    if tl.max(value) > 0:
        box = boxes + mask_index * 4
        tl.atomic_min(box, tl.min(tl.where(selected, x, FAR)), sem="relaxed")
        tl.atomic_min(box + 1, tl.min(tl.where(selected, y, FAR)), sem="relaxed")
        tl.atomic_max(box + 2, tl.max(tl.where(selected, x + 1, 0)), sem="relaxed")
        tl.atomic_max(box + 3, tl.max(tl.where(selected, y + 1, 0)), sem="relaxed")


def paste_masks(soft: Tensor, padded: Size, resized: Size, original: Size, threshold: float) -> PastedMasks:
    """Launch the kernel of ``ops.paste_masks.paste_masks``."""
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
        _paste_kernel[grid](
            soft.contiguous(), packed, boxes, height, width, *resized, out_height, out_width,
            *scales, threshold, ROWS=_ROWS, BYTES=_BYTES, FAR=_FAR, enable_fp_fusion=False,
        )  # fmt: skip
    return PastedMasks(packed, boxes.float() * (boxes[:, 2:3] > 0))
