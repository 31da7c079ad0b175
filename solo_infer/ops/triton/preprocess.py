"""Resize, normalization, padding and conversion of an image in one kernel.

The result has the bits of the PyTorch implementation. The resize is the integer arithmetic of
``ops.cv2_resize`` with its tables. Each channel has 256 normalized values, which PyTorch computes and the
kernel looks up, so that no division is rounded differently.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from solo_infer.ops.cv2_resize import tables
from solo_infer.ops.preprocess import Size, upload
from solo_infer.runtime.neutral_state import neutral_state

_ROWS, _COLUMNS = 8, 64  # pixels of one program


@triton.jit
def _preprocess_kernel(
    image, columns, rows, values, out, old_width, height, width, padded_height, padded_width,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Write a tile of the network input."""
    y = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    x = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (y[:, None] < height) & (x[None, :] < width)
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
            tl.load(pixels + (top * old_width + left) * 3, mask=inside, other=0).to(tl.int32) * left_weight
        )
        upper += (
            tl.load(pixels + (top * old_width + right) * 3, mask=inside, other=0).to(tl.int32) * right_weight
        )
        lower = (
            tl.load(pixels + (bottom * old_width + left) * 3, mask=inside, other=0).to(tl.int32) * left_weight
        )
        lower += (
            tl.load(pixels + (bottom * old_width + right) * 3, mask=inside, other=0).to(tl.int32)
            * right_weight
        )
        total = (((upper >> 4) * top_weight) >> 16) + (((lower >> 4) * bottom_weight) >> 16)
        value = tl.load(values + channel * 256 + ((total + 2) >> 2), mask=inside, other=0.0)
        target = out + (y[:, None] * padded_width + x[None, :]) * 3 + channel
        tl.store(target, value, mask=stored)


def preprocess(
    images: Sequence[Tensor],
    sizes: Sequence[Size],
    padded: Size,
    mean: Sequence[float],
    std: Sequence[float],
    round_to_uint8: bool,
    device: torch.device,
    dtype: torch.dtype,
) -> Tensor:
    """Launch one kernel per image; see ``ops.preprocess.preprocess``. ``round_to_uint8`` must be True."""
    shape = (len(images), 3, *padded)
    out = torch.empty(shape, dtype=dtype, device=device, memory_format=torch.channels_last)
    values = _normalized_values(tuple(mean), tuple(std), dtype, device)
    grid = (triton.cdiv(padded[1], _COLUMNS), triton.cdiv(padded[0], _ROWS))
    for image, (height, width), target in zip(images, sizes, out, strict=True):
        old_height, old_width = image.shape[:2]
        resize_tables = upload(_joined_tables((old_height, old_width), (height, width)), device)
        rows, columns = resize_tables.split([4 * height, 4 * width])
        _preprocess_kernel[grid](
            upload(image.contiguous(), device), columns, rows, values, target, old_width, height, width,
            *padded, ROWS=_ROWS, COLUMNS=_COLUMNS, enable_fp_fusion=False,
        )  # fmt: skip
    return out


@functools.lru_cache(maxsize=64)
@neutral_state()
def _joined_tables(old: Size, new: Size) -> Tensor:
    """Return the tables of a resize in one host tensor, rows before columns, for a single copy."""
    columns, rows = tables(old, new)
    return torch.cat([rows.flatten(), columns.flatten()])


@functools.lru_cache(maxsize=16)
@neutral_state()
def _normalized_values(
    mean: tuple[float, ...], std: tuple[float, ...], dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Return the normalized values (3, 256) of the pixel values 0..255 in each channel."""
    mean_column, std_column = (
        torch.tensor(values, dtype=torch.float32, device="cpu")[:, None] for values in (mean, std)
    )
    pixels = torch.arange(256, dtype=torch.float32, device="cpu")
    return (pixels - mean_column).div_(std_column).to(dtype).to(device)
