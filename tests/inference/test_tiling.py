"""Tiles of an image, and instances of tiles as fragments with masks in pixels of the image."""

import numpy as np
import pytest
from helpers.scenes import detections_of

from solo_infer.config.tiling import Tiling, as_tiling
from solo_infer.errors import ConfigError
from solo_infer.inference.tiling import TileGrid, Window, fragments_of


@pytest.mark.parametrize(
    ("tile", "expected"),
    [(None, None), (512, (512, 128)), ((512, 100), (512, 100)), ([64, 32], (64, 32)), (65, (65, 16))],
)
def test_as_tiling(tile, expected):
    tiling = as_tiling(tile)
    assert (tiling and (tiling.size, tiling.overlap)) == expected


@pytest.mark.parametrize(
    ("tile", "message"),
    [
        (0, "size=0"),
        (63, "at least 64"),
        (10**6, "size=1000000"),
        ((512, 0), "overlap=0"),
        ((512, 257), "at most half of the size of a tile, 256"),
        ((512, -1), "overlap=-1"),
        ((512.0, 128), "size=512.0"),
        ((512,), r"tile=\(512,\): expected \(size, overlap\)"),
        ((512, 64, 64), "expected"),
        ("512", "tile='512'"),
        (True, "tile=True"),
        (512.0, "tile=512.0"),
    ],
)
def test_as_tiling_refuses(tile, message):
    with pytest.raises(ConfigError, match=message):
        as_tiling(tile)


@pytest.mark.parametrize("size", [(64, 64), (1, 1000), (65, 129), (300, 64), (100, 500), (1000, 777)])
@pytest.mark.parametrize("tiling", [Tiling(64, 1), Tiling(64, 32), Tiling(100, 37), Tiling(1000, 250)])
def test_grid_covers_the_image_with_the_overlap(size, tiling):
    grid = TileGrid.of(size, tiling)
    covered = np.zeros(size, int)
    for tile in range(len(grid)):
        top, left, bottom, right = grid.window(tile)
        assert 0 <= top < bottom <= size[0] and 0 <= left < right <= size[1]
        assert (bottom - top, right - left) == (min(size[0], tiling.size), min(size[1], tiling.size))
        covered[top:bottom, left:right] += 1
    assert covered.min() == 1 or len(grid) > 1 and covered.min() >= 1
    for starts, side in zip((grid.tops, grid.lefts), size, strict=True):
        steps = np.diff(starts)
        assert (steps <= tiling.size - tiling.overlap).all() and np.ptp(steps) <= 1 if len(steps) else True
        fewer = len(starts) - 1
        assert fewer == 0 or tiling.size * fewer - tiling.overlap * (fewer - 1) < side


def test_image_of_the_size_of_a_tile_has_one_tile():
    assert len(TileGrid.of((64, 64), Tiling(64, 16))) == 1
    assert len(TileGrid.of((64, 65), Tiling(64, 16))) == 2
    assert len(TileGrid.of((10_000, 10_000), Tiling(512, 128))) == 26**2


def test_overlapping_tiles_are_those_with_common_pixels():
    grid = TileGrid.of((150, 330), Tiling(100, 50))  # tiles two steps apart may overlap
    for tile in range(len(grid)):
        expected = [
            other
            for other in range(len(grid))
            if other != tile and not grid.window(tile).intersection(grid.window(other)).is_empty
        ]
        assert grid.overlapping(tile) == expected


@pytest.mark.parametrize("width", [131, 200, 257])
def test_fragments_have_the_pixels_of_the_tile(width):
    rng = np.random.default_rng(width)
    grid = TileGrid.of((90, width), Tiling(75, 20))
    for tile in range(len(grid)):
        masks = [np.zeros((75, 75), bool) for _ in range(6)]
        for mask in masks[1:]:
            top, left = rng.integers(0, 70, 2)
            mask[top : top + rng.integers(1, 75), left : left + rng.integers(1, 75)] = rng.random() < 2
            mask &= rng.random((75, 75)) < 0.7
        masks[0][:] = True
        masks = [mask for mask in masks if mask.any()]
        window = grid.window(tile)
        detections = detections_of(masks, range(len(masks)), [0.5] * len(masks))
        found = list(fragments_of(detections, tile, grid))
        assert [fragment.label for fragment in found] == list(range(len(masks)))
        for fragment, mask in zip(found, masks, strict=True):
            full = np.zeros((90, width), bool)
            full[window.top : window.bottom, window.left : window.right] = mask
            assert np.array_equal(fragment.crop.mask().numpy(), full)
            rows, columns = full.any(axis=1).nonzero()[0], full.any(axis=0).nonzero()[0]
            assert fragment.bounds == Window(rows[0], columns[0], rows[-1] + 1, columns[-1] + 1)
            assert fragment.box == (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
            assert fragment.area == full.sum()
            assert fragment.crop.packed.shape[1] <= (columns[-1] - columns[0]) // 8 + 3


def test_instances_without_pixels_are_left_out():
    grid = TileGrid.of((64, 64), Tiling(64, 16))
    detections = detections_of([np.ones((64, 64), bool)], [0], [0.5])
    empty = detections._replace(packed_masks=detections.packed_masks * 0)
    assert list(fragments_of(empty, 0, grid)) == []
