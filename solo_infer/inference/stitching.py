"""Stitching of the instances of overlapping tiles to the objects of the whole image.

Objects grow from their best fragment, tile by tile: a fragment of a neighboring tile belongs to an object if
the two masks agree where the tiles overlap. Objects may extend over any number of tiles.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from solo_infer.inference.mask_canvas import Canvas, area_inside, common_area, count_pixels, union
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
            grown, repeats = stitcher.grow(seed)
            if not stitcher.is_seen_better(grown, repeats):
                objects.append(stitcher.merge(grown, repeats))
    return sorted(objects, key=lambda instance: -instance.score)


class _Agreement(NamedTuple):
    """Pixels of a fragment and of an object where both their tiles are."""

    common: int  # in both masks
    fragment: int  # in the mask of the fragment
    object: int  # in the mask of the object

    @property
    def iou(self) -> float:
        return self.common / max(self.fragment + self.object - self.common, 1)


class _Object:
    """Fragments of one object, in the order in which it grew, and the union of their masks."""

    def __init__(self, seed: Fragment) -> None:
        self.fragments = [seed]
        self.tiles = {seed.tile}
        self.bounds, self.crop = seed.bounds, seed.crop

    def add(self, fragment: Fragment) -> None:
        self.fragments.append(fragment)
        self.tiles.add(fragment.tile)
        self.bounds = _hull([self.bounds, fragment.bounds])
        self.crop = union([self.crop, fragment.crop])


class _Stitcher:
    """Fragments that are assigned to objects one by one."""

    def __init__(self, fragments: Sequence[Fragment], grid: TileGrid) -> None:
        self._fragments, self._grid = fragments, grid
        self.is_assigned = [False] * len(fragments)
        self._windows = [grid.window(tile) for tile in range(len(grid))]
        self._overlapping = [grid.overlapping(tile) for tile in range(len(grid))]
        self._by_tile: dict[tuple[int, int], list[int]] = defaultdict(list)
        for index, fragment in enumerate(fragments):
            self._by_tile[fragment.tile, fragment.label].append(index)

    def grow(self, seed: int) -> tuple[_Object, list[Fragment]]:
        """Return the object of a fragment, and other fragments that repeat parts of it."""
        grown, repeats = _Object(self._fragments[seed]), []
        self.is_assigned[seed] = True
        for fragment in grown.fragments:  # grows while it is iterated over
            for candidate in self._candidates(fragment):
                if self._belongs(self._fragments[candidate], grown):
                    self.is_assigned[candidate] = True
                    grown.add(self._fragments[candidate])
        for candidate in sorted({other for part in grown.fragments for other in self._candidates(part)}):
            if self._repeats(self._fragments[candidate], grown):
                self.is_assigned[candidate] = True
                repeats.append(self._fragments[candidate])
        return grown, repeats

    def _candidates(self, fragment: Fragment) -> list[int]:
        """Return the free fragments of other tiles with pixels in common with a fragment, best first."""
        found = []
        for tile in self._overlapping[fragment.tile]:
            if fragment.bounds.intersection(self._windows[tile]).is_empty:
                continue
            for other in self._by_tile.get((tile, fragment.label), ()):
                if not self.is_assigned[other] and common_area(fragment, self._fragments[other]):
                    found.append(other)
        return sorted(found, key=lambda other: -self._fragments[other].score)

    def _belongs(self, fragment: Fragment, grown: _Object) -> bool:
        """Return whether a fragment is a part of an object."""
        if fragment.score < FRAGMENT_SCORE * grown.fragments[0].score:
            return False
        agreement = self._agreement(fragment, grown)
        if fragment.tile not in grown.tiles:
            return agreement.iou >= MATCH_IOU
        # Two parts of one object in one tile: both tiles cut the object.
        return (
            agreement.common >= CONTAINED * agreement.fragment
            and self._is_cut(fragment, grown.tiles)
            and any(self._is_cut(part, [fragment.tile]) for part in grown.fragments)
        )

    def _repeats(self, fragment: Fragment, grown: _Object) -> bool:
        """Return whether a fragment that its tile cuts shows a part of an object."""
        agreement = self._agreement(fragment, grown)
        return agreement.common >= CONTAINED * fragment.area and self._is_cut(fragment, grown.tiles)

    def _agreement(self, fragment: Fragment, grown: _Object) -> _Agreement:
        """Compare a fragment with an object inside the tile of the fragment and the tiles of the object."""
        # There are no pixels of either mask outside of the rectangle around both.
        window = self._windows[fragment.tile].intersection(_hull([fragment.bounds, grown.bounds]))
        own, mask, seen = Canvas(window), Canvas(window), Canvas(window)
        own.draw(fragment.crop)
        mask.draw(grown.crop)
        for tile in grown.tiles:
            seen.fill(self._windows[tile])
        return _Agreement(
            count_pixels(own.packed & mask.packed),
            count_pixels(own.packed & seen.packed),
            count_pixels(mask.packed & seen.packed),
        )

    def _is_cut(self, fragment: Fragment, others: Iterable[int]) -> bool:
        """Return whether a mask ends at a border of its tile beyond which other tiles continue."""
        tile, bounds = self._windows[fragment.tile], fragment.bounds
        vertical, horizontal = (side // _MARGIN for side in self._grid.tile_size)
        for window in (self._windows[other] for other in others):
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

    def is_seen_better(self, grown: _Object, repeats: Sequence[Fragment]) -> bool:
        """Return whether a tile without an object shows nearly all of it, farther from the borders."""
        fragments = [*grown.fragments, *repeats]
        tiles = {fragment.tile for fragment in fragments}
        bounds = _hull(fragment.bounds for fragment in fragments)
        own = max(self._gap(bounds, tile) for tile in tiles)
        others = {other for tile in tiles for other in self._overlapping[tile]} - tiles
        farther = [tile for tile in others if self._gap(bounds, tile) > own]
        if not farther:
            return False
        crop = union([grown.crop, *(fragment.crop for fragment in repeats)])
        area = count_pixels(crop.packed.numpy())
        return any(area_inside(crop, self._windows[tile]) >= SEEN * area for tile in farther)

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

    def merge(self, grown: _Object, repeats: Sequence[Fragment]) -> StitchedInstance:
        """Return the stitched instance of an object; ``repeats`` have a vote only."""
        x1, y1, x2, y2 = zip(*(fragment.box for fragment in grown.fragments), strict=True)
        score = self._vote(grown.crop, [*grown.fragments, *repeats])
        box = min(x1), min(y1), max(x2), max(y2)
        return StitchedInstance(score, grown.fragments[0].label, box, grown.crop)

    def _vote(self, crop: MaskCrop, fragments: Sequence[Fragment]) -> float:
        """Return the mean score of an object in the tiles that show most of it."""
        scores: dict[int, float] = defaultdict(float)
        for fragment in fragments:
            scores[fragment.tile] = max(scores[fragment.tile], fragment.score)
        tiles = {other for tile in scores for other in self._overlapping[tile]} | set(scores)
        areas = {tile: area_inside(crop, self._windows[tile]) for tile in tiles}
        most = max(areas[tile] for tile in scores)
        votes = [scores.get(tile, 0.0) for tile in sorted(tiles) if areas[tile] >= SEEN * most]
        return sum(votes) / len(votes)


def _hull(windows: Iterable[Window]) -> Window:
    """Return the rectangle around some rectangles."""
    tops, lefts, bottoms, rights = zip(*windows, strict=True)
    return Window(min(tops), min(lefts), max(bottoms), max(rights))
