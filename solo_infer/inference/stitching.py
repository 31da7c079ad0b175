"""Stitching of the instances of overlapping tiles to the objects of the whole image.

Objects grow from their best fragment, tile by tile: a fragment of a neighboring tile belongs to an object if
the two masks agree where the tiles overlap. Objects may extend over any number of tiles.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch

from solo_infer.inference.tiling import Box, Fragment, TileGrid, Window
from solo_infer.ops.mask_crops import MaskCrop

MATCH_IOU = 0.5  # least IoU with the mask of the object, where the tiles overlap
CONTAINED = 0.8  # least fraction of a mask inside the object that makes it a fragment of the object
FRAGMENT_SCORE = 0.2  # least score of a fragment that extends an object, relative to the best one
SEEN = 0.9  # least pixels of an object in a tile that votes, relative to the tile that shows most of it
_MARGIN = 32  # a mask is cut by a border if the gap between them is at most the side of the tile / this


class StitchedInstance(NamedTuple):
    """One object of the whole image."""

    score: float  # mean of the scores in the tiles that show most of it
    label: int
    box: Box  # x1 y1 x2 y2 in pixels, around the boxes of its fragments
    crop: MaskCrop  # union of their masks


def stitch(fragments: Sequence[Fragment], grid: TileGrid) -> list[StitchedInstance]:
    """Return the objects of the whole image, best first.

    The score of an object is the mean of its scores in the tiles that show most of it, where a tile without
    it counts as 0: an object that is whole in one tile only has the score of that tile, and an object that is
    whole in several tiles is not more likely to pass a threshold than in one. An object is left out if a tile
    without it shows nearly all of it, farther from the borders of the tile.

    Args:
        fragments: Instances of all tiles, in any order. Masks are compared on packed bits, where both have
            pixels.
        grid: Tiles of the image.
    """
    stitcher = _Stitcher(fragments, grid)
    objects = []
    for seed in sorted(range(len(fragments)), key=lambda index: -fragments[index].score):
        if not stitcher.is_assigned[seed]:
            members, repeats = stitcher.grow(seed)
            if not stitcher.is_seen_better(members + repeats):
                objects.append(stitcher.merge(members, repeats))
    return sorted(objects, key=lambda instance: -instance.score)


class _Agreement(NamedTuple):
    """Pixels of a fragment and of an object where both their tiles are."""

    common: int  # in both masks
    fragment: int  # in the mask of the fragment
    object: int  # in the mask of the object

    @property
    def iou(self) -> float:
        return self.common / max(self.fragment + self.object - self.common, 1)


class _Stitcher:
    """Fragments that are assigned to objects one by one."""

    def __init__(self, fragments: Sequence[Fragment], grid: TileGrid) -> None:
        self._fragments, self._grid = fragments, grid
        self.is_assigned = [False] * len(fragments)
        self._windows = [grid.window(tile) for tile in range(len(grid))]
        self._by_tile: dict[tuple[int, int], list[int]] = defaultdict(list)
        for index, fragment in enumerate(fragments):
            self._by_tile[fragment.tile, fragment.label].append(index)

    def grow(self, seed: int) -> tuple[list[int], list[int]]:
        """Return the fragments of the object of a fragment, and others that repeat parts of it."""
        members, repeats = [seed], []
        self.is_assigned[seed] = True
        for member in members:  # grows while it is iterated over
            for candidate in self._candidates(member):
                if self._belongs(candidate, members):
                    self.is_assigned[candidate] = True
                    members.append(candidate)
        for candidate in sorted({other for member in members for other in self._candidates(member)}):
            if self._repeats(candidate, members):
                self.is_assigned[candidate] = True
                repeats.append(candidate)
        return members, repeats

    def _candidates(self, member: int) -> list[int]:
        """Return the free fragments of other tiles with pixels in common with a fragment, best first."""
        fragment = self._fragments[member]
        found = []
        for tile in self._grid.overlapping(fragment.tile):
            if fragment.bounds.intersection(self._windows[tile]).is_empty:
                continue
            for other in self._by_tile.get((tile, fragment.label), ()):
                if not self.is_assigned[other] and common_area(fragment, self._fragments[other]):
                    found.append(other)
        return sorted(found, key=lambda other: -self._fragments[other].score)

    def _belongs(self, candidate: int, members: Sequence[int]) -> bool:
        """Return whether a fragment is a part of an object."""
        fragment, best = self._fragments[candidate], self._fragments[members[0]]
        if fragment.score < FRAGMENT_SCORE * best.score:
            return False
        agreement = self._agreement(fragment, members)
        if all(self._fragments[member].tile != fragment.tile for member in members):
            return agreement.iou >= MATCH_IOU
        # Two parts of one object in one tile: both tiles cut the object.
        return (
            agreement.common >= CONTAINED * agreement.fragment
            and self._is_cut(fragment, members)
            and any(self._is_cut(self._fragments[member], [candidate]) for member in members)
        )

    def _repeats(self, candidate: int, members: Sequence[int]) -> bool:
        """Return whether a fragment that its tile cuts shows a part of an object."""
        fragment = self._fragments[candidate]
        agreement = self._agreement(fragment, members)
        return agreement.common >= CONTAINED * fragment.area and self._is_cut(fragment, members)

    def _agreement(self, fragment: Fragment, members: Iterable[int]) -> _Agreement:
        """Compare a fragment with an object inside the tile of the fragment and the tiles of the object."""
        tile, others = self._windows[fragment.tile], [self._fragments[member] for member in members]
        # There are no pixels of either mask outside of the rectangle around both.
        window = tile.intersection(_hull(other.bounds for other in (fragment, *others)))
        mask, seen = _Canvas(window), _Canvas(window)
        for other in others:
            if seen.fill(self._windows[other.tile]):
                mask.draw(other.crop)
        own = _Canvas(window)
        own.draw(fragment.crop)
        return _Agreement(
            _count(own.packed & mask.packed),
            _count(own.packed & seen.packed),
            _count(mask.packed & seen.packed),
        )

    def _is_cut(self, fragment: Fragment, others: Iterable[int]) -> bool:
        """Return whether a mask ends at a border of its tile beyond which tiles of other masks continue."""
        tile, bounds = self._windows[fragment.tile], fragment.bounds
        vertical, horizontal = (side // _MARGIN for side in self._grid.tile_size)
        for window in {self._windows[self._fragments[other].tile] for other in others}:
            if tile.intersection(window).is_empty:
                continue
            if (
                (window.top < tile.top and bounds.top - tile.top <= vertical)
                or (window.left < tile.left and bounds.left - tile.left <= horizontal)
                or (window.bottom > tile.bottom and tile.bottom - bounds.bottom <= vertical)
                or (window.right > tile.right and tile.right - bounds.right <= horizontal)
            ):
                return True
        return False

    def is_seen_better(self, members: Sequence[int]) -> bool:
        """Return whether a tile without an object shows nearly all of it, farther from the borders."""
        fragments = [self._fragments[index] for index in members]
        tiles = {fragment.tile for fragment in fragments}
        bounds = _hull(fragment.bounds for fragment in fragments)
        own = max(self._gap(bounds, tile) for tile in tiles)
        others = {other for tile in tiles for other in self._grid.overlapping(tile)} - tiles
        farther = [tile for tile in others if self._gap(bounds, tile) > own]
        if not farther:
            return False
        crop = _union([fragment.crop for fragment in fragments])
        area = _count(crop.packed.numpy())
        return any(_area_inside(crop, self._windows[tile]) >= SEEN * area for tile in farther)

    def _gap(self, bounds: Window, tile: int) -> int:
        """Return the distance in pixels between a mask and the borders of a tile inside the image."""
        (height, width), window = self._grid.image_size, self._windows[tile]
        gaps = [
            (window.top > 0, bounds.top - window.top),
            (window.left > 0, bounds.left - window.left),
            (window.bottom < height, window.bottom - bounds.bottom),
            (window.right < width, window.right - bounds.right),
        ]
        return max(min((gap for is_inner, gap in gaps if is_inner), default=max(height, width)), 0)

    def merge(self, members: Sequence[int], repeats: Sequence[int]) -> StitchedInstance:
        """Return the object of its fragments; ``repeats`` have a vote only."""
        fragments = [self._fragments[index] for index in members]
        lows, highs = zip(*((fragment.box[:2], fragment.box[2:]) for fragment in fragments), strict=True)
        (x1, y1), (x2, y2) = map(min, zip(*lows, strict=True)), map(max, zip(*highs, strict=True))
        crop = _union([fragment.crop for fragment in fragments])
        score = self._vote(crop, [*fragments, *(self._fragments[index] for index in repeats)])
        return StitchedInstance(score, fragments[0].label, (x1, y1, x2, y2), crop)

    def _vote(self, crop: MaskCrop, fragments: Sequence[Fragment]) -> float:
        """Return the mean score of an object in the tiles that show most of it."""
        scores: dict[int, float] = defaultdict(float)
        for fragment in fragments:
            scores[fragment.tile] = max(scores[fragment.tile], fragment.score)
        tiles = {other for tile in scores for other in self._grid.overlapping(tile)} | set(scores)
        areas = {tile: _area_inside(crop, self._windows[tile]) for tile in tiles}
        most = max(areas[tile] for tile in scores)
        votes = [scores.get(tile, 0.0) for tile in sorted(tiles) if areas[tile] >= SEEN * most]
        return sum(votes) / len(votes)


class _Canvas:
    """Packed pixels of a window; its first and last bytes may extend beyond it."""

    def __init__(self, window: Window) -> None:
        self._window, self._left = window, window.left // 8
        columns = (window.right + 7) // 8 - self._left
        self.packed = np.zeros((window.bottom - window.top, columns), np.uint8)

    def draw(self, crop: MaskCrop) -> None:
        """Add a mask."""
        packed = crop.packed.numpy()
        top, left = crop.top - self._window.top, crop.left - self._left
        rows, columns = packed.shape
        target = self.packed[max(top, 0) : max(top + rows, 0), max(left, 0) : max(left + columns, 0)]
        target |= packed[max(-top, 0) :, max(-left, 0) :][: target.shape[0], : target.shape[1]]

    def fill(self, window: Window) -> bool:
        """Add the pixels of another window, and return whether there are any."""
        part = self._window.intersection(window)
        if part.is_empty:
            return False
        bits = np.full((part.right + 7) // 8 - part.left // 8, 0xFF, np.uint8)
        bits[0] &= 0xFF >> part.left % 8
        bits[-1] &= 0xFF << -part.right % 8 & 0xFF
        first = part.left // 8 - self._left
        self.packed[
            part.top - self._window.top : part.bottom - self._window.top, first : first + len(bits)
        ] |= bits
        return True


def _count(packed: np.ndarray) -> int:
    """Return the number of pixels inside packed masks."""
    return int.from_bytes(packed.tobytes(), "little").bit_count()


def _hull(windows: Iterable[Window]) -> Window:
    """Return the rectangle around some rectangles."""
    tops, lefts, bottoms, rights = zip(*windows, strict=True)
    return Window(min(tops), min(lefts), max(bottoms), max(rights))


def _area_inside(crop: MaskCrop, window: Window) -> int:
    """Return the number of pixels of a mask inside a window."""
    rows, columns = crop.packed.shape
    window = window.intersection(Window(crop.top, 8 * crop.left, crop.top + rows, 8 * (crop.left + columns)))
    if window.is_empty:
        return 0
    mask, inside = _Canvas(window), _Canvas(window)
    mask.draw(crop)
    inside.fill(window)
    return _count(mask.packed & inside.packed)


def common_area(first: Fragment, second: Fragment) -> int:
    """Return the number of pixels in both masks."""
    window = first.bounds.intersection(second.bounds)
    if window.is_empty:
        return 0
    parts = [
        fragment.crop.packed.numpy()[
            window.top - fragment.crop.top : window.bottom - fragment.crop.top,
            window.left // 8 - fragment.crop.left : (window.right + 7) // 8 - fragment.crop.left,
        ]
        for fragment in (first, second)
    ]
    return _count(parts[0] & parts[1])


def _union(crops: Sequence[MaskCrop]) -> MaskCrop:
    """Return the union of masks."""
    if len(crops) == 1:
        return crops[0]
    top, left = min(crop.top for crop in crops), min(crop.left for crop in crops)
    bottom = max(crop.top + crop.packed.shape[0] for crop in crops)
    right = max(crop.left + crop.packed.shape[1] for crop in crops)
    packed = torch.zeros((bottom - top, right - left), dtype=torch.uint8, device="cpu")
    for crop in crops:
        rows, columns = crop.packed.shape
        packed[crop.top - top :, crop.left - left :][:rows, :columns] |= crop.packed
    return MaskCrop(packed, top, left, crops[0].image_size)
