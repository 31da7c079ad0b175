"""Matrix-NMS in three launches: common pixels on tensor cores, greatest overlap of each, decay of each.

The torch twin is ``batched_nms.decay_factors_torch``. Common pixels are exact: 0 and 1 in float16, summed in
float32 up to 2^24. The factors differ by at most 1e-5, by the rounding of ``exp``.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from solo_infer.errors import ConfigError

_TILE = 32  # masks along a side of the block of pairs that one program counts
_BYTES = 32  # of each mask in one step; a dot product needs at least 16
_PART = 1024  # bytes of each mask that one program counts, so that few masks fill a card too


@triton.jit
def _common_kernel(
    packed, labels, common, slots, width, TILE: tl.constexpr, BYTES: tl.constexpr, PART: tl.constexpr
):
    """Add the common pixels of a tile of pairs, in a part of their bytes, to ``common``."""
    image = tl.program_id(2).to(tl.int64)
    tiles = tl.cdiv(slots, TILE)
    rows = tl.program_id(0) // tiles * TILE + tl.arange(0, TILE)
    columns = tl.program_id(0) % tiles * TILE + tl.arange(0, TILE)
    row_labels = tl.load(labels + image * slots + rows, mask=rows < slots, other=-1)
    column_labels = tl.load(labels + image * slots + columns, mask=columns < slots, other=-2)
    wanted = (row_labels[:, None] == column_labels[None, :]) & (rows[:, None] < columns[None, :])
    if tl.max(wanted.to(tl.int32)) > 0:
        start = packed + image * slots * width
        total = tl.zeros((TILE, TILE), dtype=tl.float32)
        for step in range(0, PART, BYTES):
            at = tl.program_id(1) * PART + step + tl.arange(0, BYTES)
            left = tl.load(
                start + rows[:, None] * width + at[None, :],
                mask=(rows[:, None] < slots) & (at[None, :] < width),
                other=0,
            ).to(tl.int32)
            right = tl.load(
                start + columns[None, :] * width + at[:, None],
                mask=(columns[None, :] < slots) & (at[:, None] < width),
                other=0,
            ).to(tl.int32)
            for bit in tl.static_range(8):
                left_plane = ((left >> bit) & 1).to(tl.float16)
                right_plane = ((right >> bit) & 1).to(tl.float16)
                total += tl.dot(left_plane, right_plane)
        pairs = common + image * slots * slots + rows[:, None] * slots + columns[None, :]
        tl.atomic_add(pairs, total, mask=wanted, sem="relaxed")


@triton.jit
def _overlaps(common, areas, labels, rows, columns, slots):
    """Return the IoU of each row with each column mask, 0 unless it comes before and has its label."""
    inside = (rows[:, None] < columns[None, :]) & (columns[None, :] < slots)
    row_labels = tl.load(labels + rows, mask=rows < slots, other=-1)
    column_labels = tl.load(labels + columns, mask=columns < slots, other=-2)
    inside = inside & (row_labels[:, None] == column_labels[None, :])
    shared = tl.load(common + rows[:, None] * slots + columns[None, :], mask=inside, other=0.0)
    row_areas = tl.load(areas + rows, mask=rows < slots, other=0.0)
    column_areas = tl.load(areas + columns, mask=columns < slots, other=0.0)
    union = row_areas[:, None] + column_areas[None, :] - shared
    return tl.div_rn(shared, tl.maximum(union, 1.0))


@triton.jit
def _compensation_kernel(common, areas, labels, greatest, slots, TILE: tl.constexpr):
    """Store the greatest IoU of each mask with any one before it."""
    image = tl.program_id(1).to(tl.int64)
    columns = tl.program_id(0) * TILE + tl.arange(0, TILE)
    found = tl.zeros((TILE,), dtype=tl.float32)
    for first in range(0, tl.program_id(0) * TILE + TILE, TILE):
        ious = _overlaps(
            common + image * slots * slots,
            areas + image * slots,
            labels + image * slots,
            first + tl.arange(0, TILE),
            columns,
            slots,
        )
        found = tl.maximum(found, tl.max(ious, axis=0))
    tl.store(greatest + image * slots + columns, found, mask=columns < slots)


@triton.jit
def _decay_kernel(
    common, areas, labels, greatest, factors, slots, sigma, GAUSSIAN: tl.constexpr, TILE: tl.constexpr
):
    """Store the least decay of each mask by any one before it; pairs without overlap give 1 or more."""
    image = tl.program_id(1).to(tl.int64)
    columns = tl.program_id(0) * TILE + tl.arange(0, TILE)
    found = tl.full((TILE,), 1.0, dtype=tl.float32)
    for first in range(0, tl.program_id(0) * TILE + TILE, TILE):
        rows = first + tl.arange(0, TILE)
        ious = _overlaps(
            common + image * slots * slots,
            areas + image * slots,
            labels + image * slots,
            rows,
            columns,
            slots,
        )
        most = tl.load(greatest + image * slots + rows, mask=rows < slots, other=0.0)[:, None]
        if GAUSSIAN:
            factor = tl.exp(-sigma * ious * ious) / tl.exp(-sigma * most * most)
        else:
            # Copies of a better mask: 0 / 0 is 0, anything else by 0 infinite; see matrix_nms.decay.
            ratio = tl.div_rn(1.0 - ious, tl.where(most < 1.0, 1.0 - most, 1.0))
            factor = tl.where(most < 1.0, ratio, tl.where(ious < 1.0, float("inf"), 0.0))
        found = tl.minimum(found, tl.min(factor, axis=0))
    tl.store(factors + image * slots + columns, found, mask=columns < slots)


def decay_factors(packed: Tensor, areas: Tensor, labels: Tensor, kernel: str, sigma: float) -> Tensor:
    """Return the factor (N, P) float32 of each slot; see ``batched_nms.decay_factors``.

    Raises:
        ConfigError: The kernel is unknown.
    """
    if kernel not in ("gaussian", "linear"):
        raise ConfigError(f"kernel={kernel!r}: expected 'gaussian' or 'linear'.")
    images, slots, width = packed.shape
    factors = torch.empty((images, slots), device=packed.device)
    if factors.numel() == 0:
        return factors
    packed, areas, labels = packed.contiguous(), areas.contiguous(), labels.contiguous()
    common = pairwise_intersections(packed, labels)
    greatest = torch.empty_like(factors)
    grid = (triton.cdiv(slots, _TILE), images)
    _compensation_kernel[grid](common, areas, labels, greatest, slots, TILE=_TILE, enable_fp_fusion=False)
    gaussian = kernel == "gaussian"
    _decay_kernel[grid](
        common, areas, labels, greatest, factors, slots, float(sigma),
        GAUSSIAN=gaussian, TILE=_TILE, enable_fp_fusion=False,
    )  # fmt: skip
    return factors


def pairwise_intersections(packed: Tensor, labels: Tensor) -> Tensor:
    """Return the common pixels (N, P, P), float32: at [i, j] for i before j of equal label, else 0."""
    images, slots, width = packed.shape
    common = torch.zeros((images, slots, slots), device=packed.device)
    grid = (triton.cdiv(slots, _TILE) ** 2, triton.cdiv(width, _PART), images)
    _common_kernel[grid](
        packed, labels, common, slots, width, TILE=_TILE, BYTES=_BYTES, PART=_PART, enable_fp_fusion=False
    )
    return common
