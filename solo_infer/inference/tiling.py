"""Tiles of a large image, and the instances of a tile as fragments of objects of the image."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from solo_infer.config.tiling import Tiling
from solo_infer.inference.detections import Detections
from solo_infer.ops import packed_masks
from solo_infer.ops.mask_crops import MaskCrop

Size = tuple[int, int]  # (height, width) in pixels
Box = tuple[float, float, float, float]  # x1 y1 x2 y2 in pixels


class Window(NamedTuple):
    """Rectangle in pixels of the image, bottom and right edge exclusive."""

    top: int
    left: int
    bottom: int
    right: int

    def intersection(self, other: Window) -> Window:
        """Return the common part."""
        return Window(
            max(self.top, other.top),
            max(self.left, other.left),
            min(self.bottom, other.bottom),
            min(self.right, other.right),
        )

    @property
    def is_empty(self) -> bool:
        """Whether there are no pixels inside."""
        return self.bottom <= self.top or self.right <= self.left


@dataclass(frozen=True)
class TileGrid:
    """Tiles of equal size in rows and columns, numbered row by row.

    Attributes:
        image_size: (height, width) of the image in pixels.
        tile_size: (height, width) of a tile in pixels.
        tops: Top edge of each row of tiles.
        lefts: Left edge of each column of tiles.
    """

    image_size: Size
    tile_size: Size
    tops: tuple[int, ...]
    lefts: tuple[int, ...]

    @classmethod
    def of(cls, image_size: Size, tiling: Tiling) -> TileGrid:
        """Return as few tiles as cover an image with the overlap of a tiling, evenly distributed.

        Tiles are not larger than the image. An image that is not larger than a tile has a single one.
        """
        height, width = (min(side, tiling.size) for side in image_size)
        tops, lefts = (_starts(side, tiling) for side in image_size)
        return cls(image_size, (height, width), tops, lefts)

    def __len__(self) -> int:
        return len(self.tops) * len(self.lefts)

    def window(self, index: int) -> Window:
        """Return the rectangle of a tile."""
        row, column = divmod(index, len(self.lefts))
        top, left = self.tops[row], self.lefts[column]
        return Window(top, left, top + self.tile_size[0], left + self.tile_size[1])

    def overlapping(self, index: int) -> list[int]:
        """Return the numbers of the other tiles that overlap a tile, ascending."""
        row, column = divmod(index, len(self.lefts))
        rows, columns = (
            [number for number, start in enumerate(starts) if abs(start - starts[own]) < side]
            for starts, own, side in zip((self.tops, self.lefts), (row, column), self.tile_size, strict=True)
        )
        numbers = [
            other_row * len(self.lefts) + other_column for other_row in rows for other_column in columns
        ]
        return [number for number in numbers if number != index]


def _starts(length: int, tiling: Tiling) -> tuple[int, ...]:
    """Return the first pixel of each tile along one side of an image."""
    last = length - tiling.size
    if last <= 0:
        return (0,)
    steps = math.ceil(last / (tiling.size - tiling.overlap))
    return tuple(round(last * step / steps) for step in range(steps + 1))


@dataclass(frozen=True, eq=False)
class Fragment:
    """One instance of one tile, in pixels of the image.

    Attributes:
        tile: Number of the tile.
        score: Confidence, 0..1.
        label: Class index.
        box: x1 y1 x2 y2 as detected.
        bounds: Tight rectangle around the mask.
        area: Pixels of the mask.
        crop: Mask inside the bounds.
    """

    tile: int
    score: float
    label: int
    box: Box
    bounds: Window
    area: int
    crop: MaskCrop


def fragments_of(detections: Detections, tile: int, grid: TileGrid) -> Iterator[Fragment]:
    """Iterate over the instances of a tile that have pixels.

    Args:
        detections: Detections of the tile, on any device.
        tile: Number of the tile.
        grid: All tiles of the image.
    """
    window = grid.window(tile)
    packed = detections.packed_masks.cpu()
    areas = packed_masks.popcount(packed).sum(dim=1).tolist()
    bounds = packed_masks.mask_boxes(packed, grid.tile_size[1]).int().tolist()
    scores, labels, boxes = (values.tolist() for values in detections[:3])
    for score, label, (x1, y1, x2, y2), mask, area, (left, top, right, bottom) in zip(
        scores, labels, boxes, packed, areas, bounds, strict=True
    ):
        if area == 0:
            continue
        crop = _crop(mask, Window(top, left, bottom, right), window, grid.image_size)
        yield Fragment(
            tile,
            score,
            label,
            (x1 + window.left, y1 + window.top, x2 + window.left, y2 + window.top),
            Window(top + window.top, left + window.left, bottom + window.top, right + window.left),
            area,
            crop,
        )


def _crop(mask: Tensor, bounds: Window, tile: Window, image_size: Size) -> MaskCrop:
    """Return the packed mask of a tile inside its bounds, with the bytes of the packed rows of the image."""
    first = bounds.left // 8
    packed = mask[bounds.top : bounds.bottom, first : (bounds.right + 7) // 8]
    left = tile.left + 8 * first
    if shift := left % 8:
        # Each byte is divided between two bytes of the image.
        packed = F.pad(packed, (0, 1)) >> shift | F.pad(packed, (1, 0)) << (8 - shift)
    crop = MaskCrop(packed, tile.top + bounds.top, left // 8, image_size)
    columns = (tile.left + bounds.right + 7) // 8 - crop.left
    return replace(crop, packed=packed[:, :columns].clone())
