"""Area, sum of scores and packed bits of the masks of slots in one launch, without the masks.

The torch twin is ``fixed_slots.measure_torch``. A pixel may be decided otherwise only where its score lies
within 1e-5 of the threshold, by the rounding of ``exp`` and of fused multiplications.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_BYTES = 128  # of eight pixels in one program


@triton.jit
def _taps(where, scale, size):
    """Return the two source pixels of each pixel along one side, and the weight of the second."""
    at = tl.maximum(scale * (where.to(tl.float32) + 0.5) - 0.5, 0.0)
    first = tl.minimum(at.to(tl.int32), size - 1)
    return first, tl.minimum(first + 1, size - 1), at - first.to(tl.float32)


@triton.jit
def _twice(logits, y, x, height, width, inside):
    """Return the scores at (y, x) of logits up-sampled two times."""
    top, bottom, down = _taps(y, 0.5, height)
    left, right, across = _taps(x, 0.5, width)
    top_left = tl.load(logits + top * width + left, mask=inside, other=0.0).to(tl.float32)
    top_right = tl.load(logits + top * width + right, mask=inside, other=0.0).to(tl.float32)
    bottom_left = tl.load(logits + bottom * width + left, mask=inside, other=0.0).to(tl.float32)
    bottom_right = tl.load(logits + bottom * width + right, mask=inside, other=0.0).to(tl.float32)
    upper = (1.0 - across) * top_left + across * top_right
    lower = (1.0 - across) * bottom_left + across * bottom_right
    return 1.0 / (1.0 + tl.exp(-((1.0 - down) * upper + down * lower)))


@triton.jit
def _keep(soft, inside, threshold, slot, byte, row_bytes, packed, areas, sums):
    """Store bits, area and sum of a block of pixels (bytes, 8)."""
    chosen = inside & (soft > threshold)
    bit = tl.arange(0, 8)[None, :]
    value = tl.sum(chosen.to(tl.int32) << (7 - bit), axis=1)
    tl.store(packed + slot * row_bytes + byte, value.to(tl.uint8), mask=byte < row_bytes)
    part = slot * tl.num_programs(1) + tl.program_id(1)
    tl.store(areas + part, tl.sum(chosen.to(tl.int32)))
    tl.store(sums + part, tl.sum(tl.where(chosen, soft, 0.0)))


@triton.jit
def _plain_kernel(
    logits, levels, packed, areas, sums, fine_height, fine_width, middle_height, middle_width, coarse_height,
    coarse_width, out_height, out_width, threshold, BYTES: tl.constexpr,
):  # fmt: skip
    """Measure a block of a mask that is one map of logits, of whatever level."""
    slot = tl.program_id(0).to(tl.int64)
    level = tl.load(levels + slot)
    fine, middle = fine_height * fine_width, middle_height * middle_width
    start = logits + slot * (fine + middle + coarse_height * coarse_width)
    byte = tl.program_id(1) * BYTES + tl.arange(0, BYTES)
    pixel = byte[:, None] * 8 + tl.arange(0, 8)[None, :]
    inside = pixel < out_height * out_width
    y, x = pixel // out_width, pixel % out_width
    if level < 2:
        soft = _twice(start, y, x, fine_height, fine_width, inside)
    else:
        height = tl.where(level == 2, middle_height, coarse_height)
        width = tl.where(level == 2, middle_width, coarse_width)
        start += tl.where(level == 2, fine, fine + middle)
        scale_y = tl.div_rn((height * 2).to(tl.float32), (out_height + 0 * height).to(tl.float32))
        scale_x = tl.div_rn((width * 2).to(tl.float32), (out_width + 0 * width).to(tl.float32))
        top, bottom, down = _taps(y, scale_y, height * 2)
        left, right, across = _taps(x, scale_x, width * 2)
        upper = (1.0 - across) * _twice(start, top, left, height, width, inside)
        upper += across * _twice(start, top, right, height, width, inside)
        lower = (1.0 - across) * _twice(start, bottom, left, height, width, inside)
        lower += across * _twice(start, bottom, right, height, width, inside)
        soft = (1.0 - down) * upper + down * lower
    row_bytes = (out_height * out_width + 7) // 8
    _keep(soft, inside, threshold, slot, byte, row_bytes, packed, areas, sums)


@triton.jit
def _decoupled_kernel(
    column_maps,
    row_maps,
    columns,
    rows,
    packed,
    areas,
    sums,
    slots,
    lines,
    pixels,
    threshold,
    BYTES: tl.constexpr,
):
    """Measure a block of a mask that is the product of two maps."""
    slot = tl.program_id(0).to(tl.int64)
    image = slot // slots * lines
    x = column_maps + (image + tl.load(columns + slot)) * pixels
    y = row_maps + (image + tl.load(rows + slot)) * pixels
    byte = tl.program_id(1) * BYTES + tl.arange(0, BYTES)
    pixel = byte[:, None] * 8 + tl.arange(0, 8)[None, :]
    inside = pixel < pixels
    soft = tl.load(x + pixel, mask=inside, other=0.0) * tl.load(y + pixel, mask=inside, other=0.0)
    _keep(soft, inside, threshold, slot, byte, (pixels + 7) // 8, packed, areas, sums)


def measure_plain(
    logits: Tensor, levels: Tensor, sizes: list[tuple[int, int]], out_size: tuple[int, int], mask_thr: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return areas and sums of scores inside (N, K), float32, and packed masks (N, K, B), uint8.

    Args:
        logits: (N, K, pixels) of each slot as if it lay on level 0 or 1, then 2, then 3 or 4.
        levels: (N, K) int64, the level on which each slot does lie.
        sizes: (height, width) of these three.
        out_size: (height, width) of the masks.
        mask_thr: A pixel is inside where its score is greater.
    """
    outputs, grid = _outputs(levels, out_size[0] * out_size[1])
    _plain_kernel[grid](
        logits.contiguous(), levels.contiguous(), *outputs, *sizes[0], *sizes[1], *sizes[2], *out_size,
        mask_thr, BYTES=_BYTES, enable_fp_fusion=False,
    )  # fmt: skip
    return _summed(*outputs)


def measure_decoupled(
    column_maps: Tensor, row_maps: Tensor, columns: Tensor, rows: Tensor, mask_thr: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return areas and sums of scores inside (N, K), float32, and packed masks (N, K, B), uint8.

    Args:
        column_maps: (N, lines, H/4, W/4) float32.
        row_maps: (N, lines, H/4, W/4) float32.
        columns: (N, K) int64, the column map of each slot.
        rows: (N, K) int64, the row map of each slot.
        mask_thr: A pixel is inside where its score is greater.
    """
    lines, pixels = column_maps.shape[1], column_maps[0, 0].numel()
    outputs, grid = _outputs(columns, pixels)
    _decoupled_kernel[grid](
        column_maps.contiguous(), row_maps.contiguous(), columns.contiguous(), rows.contiguous(), *outputs,
        columns.shape[1], lines, pixels, mask_thr, BYTES=_BYTES, enable_fp_fusion=False,
    )  # fmt: skip
    return _summed(*outputs)


def _outputs(slots: Tensor, pixels: int) -> tuple[tuple[Tensor, Tensor, Tensor], tuple[int, int]]:
    """Return packed masks, areas and sums to be filled, the last two by block, and the grid."""
    row_bytes = (pixels + 7) // 8
    blocks = triton.cdiv(row_bytes, _BYTES)
    packed = torch.empty((*slots.shape, row_bytes), dtype=torch.uint8, device=slots.device)
    areas = torch.empty((*slots.shape, blocks), dtype=torch.int32, device=slots.device)
    return (packed, areas, torch.empty_like(areas, dtype=torch.float32)), (slots.numel(), blocks)


def _summed(packed: Tensor, areas: Tensor, sums: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Add up the blocks, in the same order each time."""
    return areas.sum(2).float(), sums.sum(2), packed
