"""Masks of Tiny's cells, each of which fades beyond the box of its cell.

The plain implementation computes every mask at every pixel. On the CPU, masks are computed only in the tiles
of 8 x 8 pixels that their boxes touch, which are a fraction of all unless objects fill the image.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor

from solo_infer.inference.preprocess import Geometry
from solo_infer.models.tiny.masks import (
    COORDINATE_UNIT,
    MASK_STRIDE,
    coordinate_maps,
    mask_logits,
    mask_weights,
)
from solo_infer.ops.mask_statistics import MaskStatistics, mask_statistics
from solo_infer.ops.native import tile_masks
from solo_infer.ops.native.library import kernel_library
from solo_infer.ops.native.tile_masks import TILE, Confinement
from solo_infer.ops.paste_masks import PastedMasks, paste_masks
from solo_infer.runtime.neutral_state import neutral_state

# Boxes are not exact, but masks leak into neighbors. Beyond some input pixels around its box, the logit of a
# mask falls, by ``_SLOPE`` over the length of a side; a tenth of the sides farther, it is the lowest.
_MARGIN = 4.0
_SLOPE, _REACH = 20.0, 0.1
_MIN_SIDE = 8.0  # input pixels; the sides of smaller boxes count as this
# Logits are clipped to this before masks are resized, so that one pixel cannot outweigh its neighbors.
_LOGIT_LIMIT = 15.0
# Score of the pixels that the lowest logit stands for. They are outside, whatever the threshold.
_LOWEST_SCORE = 3.1e-7

_PRODUCT_BYTES = 32 << 20  # of the float32 logits that are computed at a time


class CellMasks(Protocol):
    """Masks of K cells of one image at the size of the mask features."""

    def statistics(self, threshold: float) -> MaskStatistics:
        """Return areas (K,), sums of the mask scores inside (K,) and masks packed in any order of pixels.

        Args:
            threshold: Pixels with a greater mask score are inside, 0..1.
        """
        ...

    def soft(self, index: Tensor) -> Tensor:
        """Return the soft masks (M, h, w) float32 of some cells (M,) int64; see ``soft_masks``."""
        ...


def cell_masks(kernels: Tensor, boxes: Tensor, features: Tensor) -> CellMasks:
    """Compute the masks of cells.

    Args:
        kernels: (K, C + 6) kernels.
        boxes: (K, 4) float32 x1 y1 x2 y2 in input pixels.
        features: (C, h, w) mask features of the image.
    """
    height, width = features.shape[-2:]
    if features.device.type == "cpu" and height % TILE == width % TILE == 0:
        return _TiledMasks(kernels, boxes, features)
    return _WholeMasks(cell_mask_logits(kernels, boxes, features))


class _WholeMasks:
    """Masks with a logit for every pixel.

    Args:
        logits: (K, h, w) from ``cell_mask_logits``.
    """

    def __init__(self, logits: Tensor) -> None:
        self._logits = logits

    def statistics(self, threshold: float) -> MaskStatistics:
        return mask_statistics(self._logits.sigmoid(), inside_threshold(threshold))

    def soft(self, index: Tensor) -> Tensor:
        return soft_masks(self._logits[index])


class _TiledMasks:
    """Masks with logits in the tiles that their widened boxes touch; P pairs of a tile and a mask.

    Args:
        kernels: (K, C + 6) kernels.
        boxes: (K, 4) float32 x1 y1 x2 y2 in input pixels.
        features: (C, h, w) mask features of the image, sides multiples of ``TILE``.
    """

    def __init__(self, kernels: Tensor, boxes: Tensor, features: Tensor) -> None:
        self._count = len(boxes)
        self._rows, self._columns = features.shape[-2] // TILE, features.shape[-1] // TILE
        touched = _touched_tiles(_widened(boxes), self._rows, self._columns)
        # (P,) each, tile by tile
        self._tiles, self._masks = (index.contiguous() for index in torch.nonzero(touched, as_tuple=True))
        weights = mask_weights(kernels, boxes)
        is_suitable = features.dtype in (torch.float32, torch.bfloat16)
        self._library = kernel_library() if is_suitable else None
        if self._library is None:
            logits = _tile_logits(weights, _feature_tiles(features), touched)
            self._logits = self._confined(logits.unflatten(1, (TILE, TILE)), boxes[self._masks])
        else:
            self._logits = tile_masks.tile_logits(
                self._library,
                features.permute(1, 2, 0).contiguous(),
                weights.contiguous(),
                boxes.contiguous(),
                (self._tiles, self._masks),
                (MASK_STRIDE, COORDINATE_UNIT),
                Confinement(_MARGIN, _SLOPE, _REACH, _MIN_SIDE, _LOGIT_LIMIT),
            )

    def _confined(self, logits: Tensor, boxes: Tensor) -> Tensor:
        """Confine the logits (P, 8, 8) of the pairs to boxes (P, 4)."""
        offsets = torch.arange(TILE, dtype=torch.float32, device=boxes.device) + 0.5
        row = self._tiles.div(self._columns, rounding_mode="floor")
        y = (offsets + row[:, None] * TILE) * MASK_STRIDE
        x = (offsets + (self._tiles - row * self._columns)[:, None] * TILE) * MASK_STRIDE
        return _confined(logits, x, y, boxes)

    def statistics(self, threshold: float) -> MaskStatistics:
        limit, tiles = inside_threshold(threshold), self._rows * self._columns
        if self._library is not None:
            size = self._count, tiles
            pairs = self._tiles, self._masks
            return MaskStatistics(
                *tile_masks.tile_statistics(self._library, self._logits, pairs, size, limit)
            )
        parts = mask_statistics(self._logits.sigmoid(), limit)
        areas, sums = (
            part.new_zeros(self._count).index_add_(0, self._masks, part) for part in (parts.areas, parts.sums)
        )
        packed = parts.packed.new_zeros((self._count, tiles, TILE * TILE // 8))
        packed[self._masks, self._tiles] = parts.packed
        return MaskStatistics(areas, sums, packed.flatten(1))

    def soft(self, index: Tensor) -> Tensor:
        position = torch.full((self._count,), -1, dtype=torch.int64, device=index.device)
        position[index] = torch.arange(len(index), dtype=torch.int64, device=index.device)
        if self._library is not None:
            size = len(index), self._rows, self._columns
            pairs = self._tiles, self._masks
            return tile_masks.soft_masks(self._library, self._logits, pairs, position, size, _LOGIT_LIMIT)
        mask = position[self._masks]
        chosen = torch.nonzero(mask >= 0).flatten()
        mask, tile = mask[chosen], self._tiles[chosen]
        row = tile.div(self._columns, rounding_mode="floor")
        soft = self._logits.new_zeros((len(index), self._rows, TILE, self._columns, TILE))
        soft[mask, row, :, tile - row * self._columns] = soft_masks(self._logits[chosen])
        return soft.flatten(3).flatten(1, 2)


def _touched_tiles(limits: Tensor, rows: int, columns: int) -> Tensor:
    """Return which tiles have a pixel in limits (K, 4), (tiles, K) bool."""
    left, top, right, bottom = limits.unbind(dim=1)
    side, center = TILE * MASK_STRIDE, MASK_STRIDE / 2
    y, x = (
        torch.arange(number, dtype=torch.float32, device=limits.device)[:, None] * side
        for number in (rows, columns)
    )
    in_rows = (y + center < bottom) & (y + (side - center) > top)
    in_columns = (x + center < right) & (x + (side - center) > left)
    return (in_rows[:, None] & in_columns).flatten(0, 1)


def _feature_tiles(features: Tensor) -> Tensor:
    """Return mask features and coordinates of each tile, (tiles, 64, C + 6) float32."""
    channels, height, width = features.shape
    coordinates = _coordinate_tiles(height, width)
    tiles = coordinates.new_empty((*coordinates.shape[:2], channels + coordinates.shape[2]))
    tiles[..., :channels] = _in_tiles(features)
    tiles[..., channels:] = coordinates
    return tiles


@lru_cache(maxsize=16)
@neutral_state()
def _coordinate_tiles(height: int, width: int) -> Tensor:
    return _in_tiles(coordinate_maps(height, width, torch.device("cpu"))).contiguous()


def _in_tiles(maps: Tensor) -> Tensor:
    """Return maps (C, h, w) as tiles (tiles, 64, C)."""
    tiles = maps.permute(1, 2, 0).unflatten(1, (-1, TILE)).unflatten(0, (-1, TILE))
    return tiles.transpose(1, 2).flatten(2, 3).flatten(0, 1)


def _tile_logits(weights: Tensor, tiles: Tensor, touched: Tensor) -> Tensor:
    """Return the logits (P, 64) of the touched pairs of a tile and a mask, tile by tile.

    Args:
        weights: (K, C + 6) float32 weights of the masks.
        tiles: (tiles, 64, C + 6) float32 from ``_feature_tiles``.
        touched: (tiles, K) bool.
    """
    most = int(touched.sum(dim=1).max())
    logits = [weights.new_empty((0, tiles.shape[1]))]
    step = max(_PRODUCT_BYTES // (4 * tiles.shape[1] * max(most, 1)), 1)
    for chunk, chunk_touched in zip(tiles.split(step), touched.split(step), strict=True):
        tile, mask = torch.nonzero(chunk_touched, as_tuple=True)
        slot = (chunk_touched.cumsum(dim=1) - 1)[tile, mask]
        # All tiles of a product have the same number of masks, of which the last ones may be unused.
        padded = mask.new_zeros((len(chunk), most)).index_put_((tile, slot), mask)
        logits.append((weights[padded] @ chunk.mT)[tile, slot])
    return torch.cat(logits)


def cell_mask_logits(kernels: Tensor, boxes: Tensor, features: Tensor) -> Tensor:
    """Return the mask logits (..., K, h, w) float32 of cells, clipped, and lower beyond their boxes.

    Args:
        kernels: (..., K, C + 6) kernels.
        boxes: (..., K, 4) float32 x1 y1 x2 y2 in input pixels.
        features: (..., C, h, w) mask features of the images.
    """
    logits = mask_logits(kernels, boxes, features)
    y, x = (
        (torch.arange(side, dtype=torch.float32, device=boxes.device) + 0.5) * MASK_STRIDE
        for side in logits.shape[-2:]
    )
    return _confined(logits, x, y, boxes)


def _confined(logits: Tensor, x: Tensor, y: Tensor, boxes: Tensor) -> Tensor:
    """Return the logits (..., h, w), lower beyond the boxes, and clipped; the argument is overwritten.

    Args:
        logits: (..., h, w) float32 mask logits.
        x: (..., w) float32 centers of the columns in input pixels.
        y: (..., h) float32 centers of the rows.
        boxes: (..., 4) float32 x1 y1 x2 y2 in input pixels.
    """
    left, top, right, bottom = boxes[..., None].unbind(dim=-2)
    beyond_x, outside_x = _beyond(x, left, right)
    beyond_y, outside_y = _beyond(y, top, bottom)
    logits -= _SLOPE * (beyond_y[..., None] + beyond_x[..., None, :])
    outside = outside_y[..., None] | outside_x[..., None, :]
    return logits.clamp_(-_LOGIT_LIMIT, _LOGIT_LIMIT).masked_fill_(outside, -_LOGIT_LIMIT)


def _beyond(positions: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Return how far positions are beyond an interval and a margin, in its lengths, and whether too far."""
    distance = torch.maximum(low - positions, positions - high) - _MARGIN
    length = high - low
    return distance.clamp(min=0) / length.clamp(min=_MIN_SIDE), distance >= _REACH * length


def _widened(boxes: Tensor) -> Tensor:
    """Return the boxes (..., 4) outside of which masks have the lowest logit."""
    margin = _REACH * (boxes[..., 2:] - boxes[..., :2]) + _MARGIN
    return torch.cat([boxes[..., :2] - margin, boxes[..., 2:] + margin], dim=-1)


def inside_threshold(mask_thr: float) -> float:
    """Return the mask score that pixels inside a mask exceed, for a threshold 0..1 of the settings."""
    return max(mask_thr, _LOWEST_SCORE)


def soft_masks(logits: Tensor) -> Tensor:
    """Return clipped mask logits as soft masks in 0..1, which are linear in the logit and 0.5 at 0.

    Logits are resized, not scores: between two pixels, the outline then lies where the nearly linear logit
    crosses the threshold.
    """
    return logits / (2 * _LOGIT_LIMIT) + 0.5


def paste_soft_masks(soft: Tensor, geometry: Geometry, mask_thr: float) -> PastedMasks:
    """Return packed masks and boxes of soft masks (K, h, w) at the original size of the image.

    Args:
        soft: From ``soft_masks``.
        geometry: Sizes of the image.
        mask_thr: Mask score that a pixel of a mask must exceed, 0..1.
    """
    threshold = min(max(logit(mask_thr) / (2 * _LOGIT_LIMIT) + 0.5, 0.0), 1.0)
    return paste_masks(soft, geometry.padded, geometry.resized, geometry.original, threshold)


def logit(score: float) -> float:
    """Return the logit of a score 0..1."""
    return math.log(score / (1 - score)) if 0 < score < 1 else math.copysign(math.inf, score - 0.5)
