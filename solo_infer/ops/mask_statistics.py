"""Areas, score sums and packed masks of SOLO's candidates, without holding all mask scores in memory.

The number of candidates is fixed: all shapes depend on the shapes of the arguments only, and no function
synchronizes the device. The Triton kernels and the PyTorch implementations may decide differently on pixels
whose score is within 1e-5 of the threshold.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from solo_infer.ops import packed_masks
from solo_infer.ops.dispatch import is_compiling, triton_kernel
from solo_infer.ops.native import mask_statistics as native
from solo_infer.ops.native.library import kernel_library

# Bytes of float32 scores in one chunk; a chunk needs about six times this.
_CHUNK_BYTES = 256 << 20

Size = tuple[int, int]  # (height, width) in pixels
# First FPN level of each distinct level size: SOLO resizes its five levels to three sizes.
FIRST_LEVELS = (0, 2, 3)


class MaskStatistics(NamedTuple):
    """Statistics of masks (...,)."""

    areas: Tensor  # (...,) float32, pixels inside
    sums: Tensor  # (...,) float32, sum of the scores inside
    packed: Tensor  # (..., ceil(h * w / 8)) uint8, flattened masks, see packed_masks


def mask_statistics(scores: Tensor, threshold: float) -> MaskStatistics:
    """Return the statistics of masks, on the CPU by a compiled kernel where the package has one.

    Args:
        scores: (..., h, w) float32. May be overwritten if it is contiguous.
        threshold: Pixels with a greater score are inside, at least 0.
    """
    scores = scores.flatten(-2)
    library = kernel_library()
    if library is not None and _suits_kernel(scores):
        flat = scores.flatten(0, -2) if scores.dim() > 1 else scores[None]
        parts = native.mask_statistics(library, flat, threshold)
        return MaskStatistics(*(part.view((*scores.shape[:-1], *part.shape[1:])) for part in parts))
    packed = packed_masks.pack(scores > threshold)
    areas = packed_masks.popcount(packed).float()
    return MaskStatistics(areas, F.threshold(scores, threshold, 0.0, inplace=True).sum(dim=-1), packed)


def _suits_kernel(scores: Tensor) -> bool:
    is_plain = (scores.device.type, scores.dtype) == ("cpu", torch.float32) and scores.is_contiguous()
    has_gradient = scores.requires_grad and torch.is_grad_enabled()
    return is_plain and not has_gradient and not is_compiling()


def _supports_cells(
    logits: Tensor,
    levels: Tensor,
    sizes: Sequence[Size],
    out_size: Size,
    threshold: float,
    first_levels: Sequence[int] = FIRST_LEVELS,
) -> bool:
    doubled = 2 * sizes[0][0], 2 * sizes[0][1]
    return tuple(first_levels) == FIRST_LEVELS and tuple(out_size) == doubled and levels.numel() > 0


@triton_kernel(
    "cell mask statistics",
    "solo_infer.ops.triton.mask_statistics:cell_mask_statistics",
    supports=_supports_cells,
)
def cell_mask_statistics(
    logits: Tensor,
    levels: Tensor,
    sizes: Sequence[Size],
    out_size: Size,
    threshold: float,
    first_levels: Sequence[int] = FIRST_LEVELS,
) -> MaskStatistics:
    """Return the statistics (N, K) of candidates with one map of mask logits each.

    Args:
        logits: (N, K, pixels), see ``cell_mask_scores``.
        levels: (N, K) int64, FPN level of each candidate.
        sizes: (height, width) of each distinct level size.
        out_size: (height, width) of the masks.
        threshold: Pixels with a greater score are inside.
        first_levels: First FPN level of each size. Defaults to levels 0, 2 and 3.
    """
    chunks = []
    for chunk_logits, chunk_levels in _chunks(out_size, logits, levels):
        scores = cell_mask_scores(chunk_logits, chunk_levels, sizes, out_size, first_levels)
        chunks.append(mask_statistics(scores, threshold))
    return _concatenate(chunks)


def cell_mask_scores(
    logits: Tensor,
    levels: Tensor,
    sizes: Sequence[Size],
    out_size: Size,
    first_levels: Sequence[int] = FIRST_LEVELS,
) -> Tensor:
    """Return the mask scores of candidates with one map of mask logits each.

    Logits are up-sampled to twice their size; scores are resized to the size of the masks, both bilinearly.

    Args:
        logits: (N, K, pixels), maps of the candidates at each of the sizes, flattened and concatenated.
            Only the map at the size of the candidate's level is used.
        levels: (N, K) int64, FPN level of each candidate.
        sizes: (height, width) of each distinct level size.
        out_size: (height, width) of the masks.
        first_levels: First FPN level of each size, ascending. Defaults to levels 0, 2 and 3.

    Returns:
        (N, K, *out_size) float32 in 0..1.
    """
    levels = levels[..., None, None]
    maps = logits.split([height * width for height, width in sizes], dim=2)
    scores = None
    for first, size, level_logits in zip(first_levels, sizes, maps, strict=True):
        doubled = F.interpolate(
            level_logits.float().unflatten(2, tuple(size)),
            scale_factor=2.0,
            mode="bilinear",
            align_corners=False,
        ).sigmoid_()
        level_scores = _resize(doubled, out_size)
        scores = level_scores if scores is None else torch.where(levels >= first, level_scores, scores)
    if scores is None:
        raise ValueError("sizes is empty: expected the (height, width) of at least one level.")
    return scores


def _supports_axes(
    column_masks: Tensor, row_masks: Tensor, columns: Tensor, rows: Tensor, threshold: float
) -> bool:
    return columns.numel() > 0


@triton_kernel(
    "axis mask statistics",
    "solo_infer.ops.triton.mask_statistics:axis_mask_statistics",
    supports=_supports_axes,
)
def axis_mask_statistics(
    column_masks: Tensor, row_masks: Tensor, columns: Tensor, rows: Tensor, threshold: float
) -> MaskStatistics:
    """Return the statistics (N, K) of candidates of a decoupled head.

    Args:
        column_masks: (N, lines, h, w) float32, scores of the columns of the grids of all levels.
        row_masks: (N, lines, h, w) float32, scores of the rows.
        columns: (N, K) int64, column of each candidate.
        rows: (N, K) int64, row of each candidate.
        threshold: Pixels with a greater score are inside.
    """
    size = column_masks.shape[-2], column_masks.shape[-1]
    chunks = []
    for chunk_columns, chunk_rows in _chunks(size, columns, rows):
        scores = axis_mask_scores(column_masks, row_masks, chunk_columns, chunk_rows)
        chunks.append(mask_statistics(scores, threshold))
    return _concatenate(chunks)


def axis_mask_scores(column_masks: Tensor, row_masks: Tensor, columns: Tensor, rows: Tensor) -> Tensor:
    """Return the mask scores (N, K, h, w) of candidates of a decoupled head; see ``axis_mask_statistics``."""
    image = torch.arange(len(columns), dtype=torch.int64, device=columns.device)[:, None]
    return column_masks[image, columns].mul_(row_masks[image, rows])


def _resize(maps: Tensor, size: Size) -> Tensor:
    if maps.shape[-2:] == torch.Size(size):
        return maps
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)


def _chunks(size: Size, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Split tensors (N, K, ...) along K so that float32 scores of this size fit a chunk."""
    length = max(_CHUNK_BYTES // (4 * max(len(tensors[0]), 1) * size[0] * size[1]), 1)
    return zip(*(tensor.split(length, dim=1) for tensor in tensors), strict=True)


def _concatenate(chunks: list[MaskStatistics]) -> MaskStatistics:
    if len(chunks) == 1:
        return chunks[0]
    areas, sums, packed = (torch.cat(tensors, dim=1) for tensors in zip(*chunks, strict=True))
    return MaskStatistics(areas, sums, packed)
