"""Areas, score sums and packed masks of candidates in one kernel, without writing the mask scores.

Pixels may be decided differently than in PyTorch if their score is within 1e-5 of the threshold, because of
the rounding of ``exp`` and of fused multiplications.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from solo_infer.ops.mask_statistics import FIRST_LEVELS, MaskStatistics, Size
from solo_infer.ops.triton.interpolate import bilinear_taps

_BYTES = 128  # packed bytes, of eight pixels each, of one program


@triton.jit
def _doubled_scores(logits, y, x, height, width, inside):
    """Return the scores at (y, x) of logits that are up-sampled to twice their size."""
    top, bottom, bottom_weight = bilinear_taps(y, 0.5, height)
    left, right, right_weight = bilinear_taps(x, 0.5, width)
    top_left = tl.load(logits + top * width + left, mask=inside, other=0.0).to(tl.float32)
    top_right = tl.load(logits + top * width + right, mask=inside, other=0.0).to(tl.float32)
    bottom_left = tl.load(logits + bottom * width + left, mask=inside, other=0.0).to(tl.float32)
    bottom_right = tl.load(logits + bottom * width + right, mask=inside, other=0.0).to(tl.float32)
    upper = (1.0 - right_weight) * top_left + right_weight * top_right
    lower = (1.0 - right_weight) * bottom_left + right_weight * bottom_right
    return 1.0 / (1.0 + tl.exp(-((1.0 - bottom_weight) * upper + bottom_weight * lower)))


@triton.jit
def _store_statistics(scores, inside, threshold, candidate, byte, row_bytes, packed, areas, sums):
    """Store packed bits, area and score sum of a block of pixels (bytes, 8)."""
    selected = inside & (scores > threshold)
    bit = tl.arange(0, 8)[None, :]
    value = tl.sum(selected.to(tl.int32) << (7 - bit), axis=1)
    tl.store(packed + candidate * row_bytes + byte, value.to(tl.uint8), mask=byte < row_bytes)
    block = candidate * tl.num_programs(1) + tl.program_id(1)
    tl.store(areas + block, tl.sum(selected.to(tl.int32)))
    tl.store(sums + block, tl.sum(tl.where(selected, scores, 0.0)))


@triton.jit
def _cell_kernel(
    logits, levels, packed, areas, sums, fine_height, fine_width, middle_height, middle_width, coarse_height,
    coarse_width, out_height, out_width, threshold, BYTES: tl.constexpr,
):  # fmt: skip
    """Process a block of the mask of a candidate with one map of logits."""
    candidate = tl.program_id(0).to(tl.int64)
    level = tl.load(levels + candidate)
    fine, middle = fine_height * fine_width, middle_height * middle_width
    start = logits + candidate * (fine + middle + coarse_height * coarse_width)
    byte = tl.program_id(1) * BYTES + tl.arange(0, BYTES)
    pixel = byte[:, None] * 8 + tl.arange(0, 8)[None, :]
    inside = pixel < out_height * out_width
    y, x = pixel // out_width, pixel % out_width
    if level < 2:
        scores = _doubled_scores(start, y, x, fine_height, fine_width, inside)
    else:
        height = tl.where(level == 2, middle_height, coarse_height)
        width = tl.where(level == 2, middle_width, coarse_width)
        start += tl.where(level == 2, fine, fine + middle)
        scale_y = tl.div_rn((height * 2).to(tl.float32), (out_height + 0 * height).to(tl.float32))
        scale_x = tl.div_rn((width * 2).to(tl.float32), (out_width + 0 * width).to(tl.float32))
        top, bottom, bottom_weight = bilinear_taps(y, scale_y, height * 2)
        left, right, right_weight = bilinear_taps(x, scale_x, width * 2)
        upper = (1.0 - right_weight) * _doubled_scores(start, top, left, height, width, inside)
        upper += right_weight * _doubled_scores(start, top, right, height, width, inside)
        lower = (1.0 - right_weight) * _doubled_scores(start, bottom, left, height, width, inside)
        lower += right_weight * _doubled_scores(start, bottom, right, height, width, inside)
        scores = (1.0 - bottom_weight) * upper + bottom_weight * lower
    row_bytes = (out_height * out_width + 7) // 8
    _store_statistics(scores, inside, threshold, candidate, byte, row_bytes, packed, areas, sums)


@triton.jit
def _axis_kernel(
    column_masks, row_masks, columns, rows, packed, areas, sums, candidates, lines, pixels, threshold,
    BYTES: tl.constexpr,
):  # fmt: skip
    """Process a block of the mask of a candidate that is the product of two maps."""
    candidate = tl.program_id(0).to(tl.int64)
    first_line = candidate // candidates * lines
    column_mask = column_masks + (first_line + tl.load(columns + candidate)) * pixels
    row_mask = row_masks + (first_line + tl.load(rows + candidate)) * pixels
    byte = tl.program_id(1) * BYTES + tl.arange(0, BYTES)
    pixel = byte[:, None] * 8 + tl.arange(0, 8)[None, :]
    inside = pixel < pixels
    scores = tl.load(column_mask + pixel, mask=inside, other=0.0)
    scores = scores * tl.load(row_mask + pixel, mask=inside, other=0.0)
    _store_statistics(scores, inside, threshold, candidate, byte, (pixels + 7) // 8, packed, areas, sums)


def cell_mask_statistics(
    logits: Tensor,
    levels: Tensor,
    sizes: Sequence[Size],
    out_size: Size,
    threshold: float,
    first_levels: Sequence[int] = FIRST_LEVELS,
) -> MaskStatistics:
    """Launch the kernel of ``ops.mask_statistics.cell_mask_statistics``.

    The kernel requires three sizes, ``first_levels`` (0, 2, 3) and masks of twice the first size.
    """
    outputs, grid = _allocate(levels, out_size[0] * out_size[1])
    _cell_kernel[grid](
        logits.contiguous(), levels.contiguous(), *outputs, *sizes[0], *sizes[1], *sizes[2], *out_size,
        threshold, BYTES=_BYTES, enable_fp_fusion=False,
    )  # fmt: skip
    return _sum_blocks(*outputs)


def axis_mask_statistics(
    column_masks: Tensor, row_masks: Tensor, columns: Tensor, rows: Tensor, threshold: float
) -> MaskStatistics:
    """Launch the kernel of ``ops.mask_statistics.axis_mask_statistics``."""
    lines, pixels = column_masks.shape[1], column_masks[0, 0].numel()
    outputs, grid = _allocate(columns, pixels)
    _axis_kernel[grid](
        column_masks.contiguous(), row_masks.contiguous(), columns.contiguous(), rows.contiguous(), *outputs,
        columns.shape[1], lines, pixels, threshold, BYTES=_BYTES, enable_fp_fusion=False,
    )  # fmt: skip
    return _sum_blocks(*outputs)


def _allocate(candidates: Tensor, pixels: int) -> tuple[tuple[Tensor, Tensor, Tensor], tuple[int, int]]:
    """Return uninitialized packed masks, areas and sums, the latter two by block, and the grid."""
    row_bytes = (pixels + 7) // 8
    blocks = triton.cdiv(row_bytes, _BYTES)
    packed = torch.empty((*candidates.shape, row_bytes), dtype=torch.uint8, device=candidates.device)
    areas = torch.empty((*candidates.shape, blocks), dtype=torch.int32, device=candidates.device)
    return (packed, areas, torch.empty_like(areas, dtype=torch.float32)), (candidates.numel(), blocks)


def _sum_blocks(packed: Tensor, areas: Tensor, sums: Tensor) -> MaskStatistics:
    """Sum the blocks in a fixed order."""
    return MaskStatistics(areas.sum(2).float(), sums.sum(2), packed)
