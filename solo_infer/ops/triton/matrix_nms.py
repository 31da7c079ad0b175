"""Matrix-NMS in three kernels: intersections on tensor cores, maximum IoU and decay of each detection.

Intersections are exact: sums of 0 and 1 in float32 up to 2^24. The decays differ from PyTorch by at most
1e-5, because of the rounding of ``exp``.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from solo_infer.ops.matrix_nms import check_kernel

_TILE = 32  # masks along each side of a tile of pairs
_BYTES = 32  # bytes of each mask in one step; a dot product requires at least 16
_SEGMENT = 1024  # bytes of each mask in one program, so that a few masks also occupy a whole GPU


@triton.jit
def _intersections_kernel(
    packed, labels, intersections, count, width,
    TILE: tl.constexpr, BYTES: tl.constexpr, SEGMENT: tl.constexpr,
):  # fmt: skip
    """Add the common pixels of a tile of pairs, in a segment of their bytes, to ``intersections``."""
    image = tl.program_id(2).to(tl.int64)
    tiles = tl.cdiv(count, TILE)
    rows = tl.program_id(0) // tiles * TILE + tl.arange(0, TILE)
    columns = tl.program_id(0) % tiles * TILE + tl.arange(0, TILE)
    row_labels = tl.load(labels + image * count + rows, mask=rows < count, other=-1)
    column_labels = tl.load(labels + image * count + columns, mask=columns < count, other=-2)
    compared = (row_labels[:, None] == column_labels[None, :]) & (rows[:, None] < columns[None, :])
    if tl.max(compared.to(tl.int32)) > 0:
        start = packed + image * count * width
        total = tl.zeros((TILE, TILE), dtype=tl.float32)
        for step in range(0, SEGMENT, BYTES):
            byte = tl.program_id(1) * SEGMENT + step + tl.arange(0, BYTES)
            left = tl.load(
                start + rows[:, None] * width + byte[None, :],
                mask=(rows[:, None] < count) & (byte[None, :] < width),
                other=0,
            ).to(tl.int32)
            right = tl.load(
                start + columns[None, :] * width + byte[:, None],
                mask=(columns[None, :] < count) & (byte[:, None] < width),
                other=0,
            ).to(tl.int32)
            for bit in tl.static_range(8):
                left_plane = ((left >> bit) & 1).to(tl.float16)
                right_plane = ((right >> bit) & 1).to(tl.float16)
                total += tl.dot(left_plane, right_plane)
        pairs = intersections + image * count * count + rows[:, None] * count + columns[None, :]
        tl.atomic_add(pairs, total, mask=compared, sem="relaxed")


@triton.jit
def _ious(intersections, areas, labels, rows, columns, count):
    """Return the IoU of row masks and later column masks of equal label; 0 for other pairs."""
    inside = (rows[:, None] < columns[None, :]) & (columns[None, :] < count)
    row_labels = tl.load(labels + rows, mask=rows < count, other=-1)
    column_labels = tl.load(labels + columns, mask=columns < count, other=-2)
    inside = inside & (row_labels[:, None] == column_labels[None, :])
    intersection = tl.load(intersections + rows[:, None] * count + columns[None, :], mask=inside, other=0.0)
    row_areas = tl.load(areas + rows, mask=rows < count, other=0.0)
    column_areas = tl.load(areas + columns, mask=columns < count, other=0.0)
    union = row_areas[:, None] + column_areas[None, :] - intersection
    return tl.div_rn(intersection, tl.maximum(union, 1.0))


@triton.jit
def _compensation_kernel(intersections, areas, labels, max_ious, count, TILE: tl.constexpr):
    """Store the maximum IoU of each mask with the masks before it."""
    image = tl.program_id(1).to(tl.int64)
    columns = tl.program_id(0) * TILE + tl.arange(0, TILE)
    maxima = tl.zeros((TILE,), dtype=tl.float32)
    for first in range(0, tl.program_id(0) * TILE + TILE, TILE):
        ious = _ious(
            intersections + image * count * count,
            areas + image * count,
            labels + image * count,
            first + tl.arange(0, TILE),
            columns,
            count,
        )
        maxima = tl.maximum(maxima, tl.max(ious, axis=0))
    tl.store(max_ious + image * count + columns, maxima, mask=columns < count)


@triton.jit
def _decay_kernel(
    intersections, areas, labels, max_ious, factors, count, sigma, GAUSSIAN: tl.constexpr, TILE: tl.constexpr
):
    """Store the minimum decay of each mask by the masks before it; pairs without overlap give 1 or more."""
    image = tl.program_id(1).to(tl.int64)
    columns = tl.program_id(0) * TILE + tl.arange(0, TILE)
    minima = tl.full((TILE,), 1.0, dtype=tl.float32)
    for first in range(0, tl.program_id(0) * TILE + TILE, TILE):
        rows = first + tl.arange(0, TILE)
        ious = _ious(
            intersections + image * count * count,
            areas + image * count,
            labels + image * count,
            rows,
            columns,
            count,
        )
        compensation = tl.load(max_ious + image * count + rows, mask=rows < count, other=0.0)[:, None]
        if GAUSSIAN:
            factor = tl.exp(-sigma * ious * ious) / tl.exp(-sigma * compensation * compensation)
        else:
            # Copies of a better mask: 0 / 0 is 0, division by 0 is infinite; see ops.matrix_nms.decay.
            ratio = tl.div_rn(1.0 - ious, tl.where(compensation < 1.0, 1.0 - compensation, 1.0))
            factor = tl.where(compensation < 1.0, ratio, tl.where(ious < 1.0, float("inf"), 0.0))
        minima = tl.minimum(minima, tl.min(factor, axis=0))
    tl.store(factors + image * count + columns, minima, mask=columns < count)


def decay_factors(packed: Tensor, areas: Tensor, labels: Tensor, kernel: str, sigma: float) -> Tensor:
    """Launch the kernels of ``ops.matrix_nms.decay_factors``."""
    check_kernel(kernel)
    images, count, _ = packed.shape
    factors = torch.empty((images, count), dtype=torch.float32, device=packed.device)
    if factors.numel() == 0:
        return factors
    packed, areas, labels = packed.contiguous(), areas.contiguous(), labels.contiguous()
    intersections = pairwise_intersections(packed, labels)
    max_ious = torch.empty_like(factors)
    grid = (triton.cdiv(count, _TILE), images)
    _compensation_kernel[grid](
        intersections, areas, labels, max_ious, count, TILE=_TILE, enable_fp_fusion=False
    )
    _decay_kernel[grid](
        intersections, areas, labels, max_ious, factors, count, float(sigma),
        GAUSSIAN=kernel == "gaussian", TILE=_TILE, enable_fp_fusion=False,
    )  # fmt: skip
    return factors


def pairwise_intersections(packed: Tensor, labels: Tensor) -> Tensor:
    """Return the common pixels (N, P, P) float32 at [i, j] for i before j of equal label, otherwise 0."""
    images, count, width = packed.shape
    intersections = torch.zeros((images, count, count), dtype=torch.float32, device=packed.device)
    grid = (triton.cdiv(count, _TILE) ** 2, triton.cdiv(width, _SEGMENT), images)
    _intersections_kernel[grid](
        packed, labels, intersections, count, width,
        TILE=_TILE, BYTES=_BYTES, SEGMENT=_SEGMENT, enable_fp_fusion=False,
    )  # fmt: skip
    return intersections
