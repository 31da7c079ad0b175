"""Resize, normalize, pad, re-order and cast an image in one launch, equal to the CPU road to the last bit.

The resize is ``resampling``'s integer arithmetic, from the same tables. A pixel value has 256 normalized
values a channel, which are looked up: they were computed by torch, so that no division can round otherwise.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

_ROWS, _COLUMNS = 8, 64  # of pixels in one program


@triton.jit
def _prepare_kernel(
    image, columns, rows, values, out, old_width, height, width, padded_height, padded_width,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Write a tile of the network input."""
    y = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    x = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    filled = (y[:, None] < height) & (x[None, :] < width)
    top = tl.load(rows + y, mask=y < height, other=0)[:, None]
    bottom = tl.load(rows + height + y, mask=y < height, other=0)[:, None]
    top_weight = tl.load(rows + 2 * height + y, mask=y < height, other=0)[:, None]
    bottom_weight = tl.load(rows + 3 * height + y, mask=y < height, other=0)[:, None]
    left = tl.load(columns + x, mask=x < width, other=0)[None, :]
    right = tl.load(columns + width + x, mask=x < width, other=0)[None, :]
    left_weight = tl.load(columns + 2 * width + x, mask=x < width, other=0)[None, :]
    right_weight = tl.load(columns + 3 * width + x, mask=x < width, other=0)[None, :]
    stored = (y[:, None] < padded_height) & (x[None, :] < padded_width)
    for channel in tl.static_range(3):
        pixels = image + channel
        upper = (
            tl.load(pixels + (top * old_width + left) * 3, mask=filled, other=0).to(tl.int32) * left_weight
        )
        upper += (
            tl.load(pixels + (top * old_width + right) * 3, mask=filled, other=0).to(tl.int32) * right_weight
        )
        lower = (
            tl.load(pixels + (bottom * old_width + left) * 3, mask=filled, other=0).to(tl.int32) * left_weight
        )
        lower += (
            tl.load(pixels + (bottom * old_width + right) * 3, mask=filled, other=0).to(tl.int32)
            * right_weight
        )
        total = (((upper >> 4) * top_weight) >> 16) + (((lower >> 4) * bottom_weight) >> 16)
        value = tl.load(values + channel * 256 + ((total + 2) >> 2), mask=filled, other=0.0)
        to = out + (y[:, None] * padded_width + x[None, :]) * 3 + channel
        tl.store(to, value, mask=stored)


def prepare(image: Tensor, columns: Tensor, rows: Tensor, values: Tensor, out: Tensor) -> None:
    """Write an image into a network input.

    Args:
        image: (H, W, 3) uint8, contiguous.
        columns: (4, width) int32 left and right neighbors and their weights, ``resampling.tables``.
        rows: (4, height) int32 upper and lower neighbors and their weights.
        values: (3, 256), what each value of each channel becomes, in the dtype of ``out``.
        out: (3, padded height, padded width), one image of a channels_last batch.
    """
    padded_height, padded_width = out.shape[1:]
    grid = (triton.cdiv(padded_width, _COLUMNS), triton.cdiv(padded_height, _ROWS))
    _prepare_kernel[grid](
        image, columns, rows, values, out, image.shape[1], rows.shape[1], columns.shape[1],
        padded_height, padded_width, ROWS=_ROWS, COLUMNS=_COLUMNS, enable_fp_fusion=False,
    )  # fmt: skip
