"""Fragments of tiles to objects: scenes with known masks, seen through tiles."""

from dataclasses import replace

import numpy as np
import pytest
from helpers.scenes import detections_of, ellipse, rectangle, see
from pycocotools import mask as coco

from solo_infer.config.tiling import Tiling
from solo_infer.inference.stitching import stitch
from solo_infer.inference.tiling import TileGrid, fragments_of

SIZE = (230, 330)
TILING = Tiling(100, 30)


def masks_of(instances):
    return [instance.crop.mask().numpy() for instance in instances]


def assert_scene(instances, masks):
    """Assert that the instances are the objects of a scene, in any order."""
    found = masks_of(instances)
    assert len(found) == len(masks), [instance.box for instance in instances]
    for mask in masks:
        assert any(np.array_equal(mask, other) for other in found)


def pieces(part):
    """Return each connected part of a mask as one instance, left to right."""
    columns = np.concatenate([[False], part.any(axis=0), [False]]).astype(int)
    edges = np.flatnonzero(np.diff(columns))
    for first, end in zip(edges[::2], edges[1::2], strict=True):
        piece = np.zeros_like(part)
        piece[:, first:end] = part[:, first:end]
        yield piece


SCENES = {
    "whole in one tile": [rectangle(SIZE, 10, 10, 50, 60)],
    "cut by a vertical border": [rectangle(SIZE, 20, 60, 60, 140)],
    "cut by a horizontal border": [rectangle(SIZE, 60, 20, 140, 60)],
    "cut at a corner of four tiles": [ellipse(SIZE, (80, 85), (30, 30))],
    "in the overlap": [rectangle(SIZE, 20, 80, 50, 92)],
    "whole in one tile and cut by its neighbor": [rectangle(SIZE, 20, 30, 60, 98)],
    "longer than three tiles": [rectangle(SIZE, 40, 5, 60, 325)],
    "as large as the image": [np.ones(SIZE, bool)],
    "ring": [ellipse(SIZE, (115, 165), (110, 160)) & ~ellipse(SIZE, (115, 165), (60, 100))],
    "ends exactly at a border": [rectangle(SIZE, 20, 20, 60, 100), rectangle(SIZE, 120, 100, 160, 150)],
    "neighbors that touch": [rectangle(SIZE, 20, 40, 60, 90), rectangle(SIZE, 20, 90, 60, 140)],
    "rows that touch": [rectangle(SIZE, top, 5, top + 20, 320) for top in range(0, 220, 20)],
    "many small ones": [
        rectangle(SIZE, y, x, y + 11, x + 13) for y in range(62, 115, 12) for x in range(1, 310, 15)
    ],
    "one pixel": [rectangle(SIZE, 85, 86, 86, 87)],
}


@pytest.mark.parametrize("masks", SCENES.values(), ids=SCENES)
@pytest.mark.parametrize("tiling", [TILING, Tiling(64, 32), Tiling(120, 20)], ids=lambda tiling: tiling.size)
def test_scene_seen_exactly_is_found_again(masks, tiling):
    grid, fragments = see(masks, tiling)
    instances = stitch(fragments, grid)
    assert_scene(instances, masks)
    assert [instance.score for instance in instances] == pytest.approx([0.9] * len(masks))
    for instance, mask in zip(instances, masks_of(instances), strict=True):
        rows, columns = mask.any(axis=1).nonzero()[0], mask.any(axis=0).nonzero()[0]
        assert instance.box == (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)


@pytest.mark.parametrize("seed", range(8))
def test_random_scene(seed):
    """Disjoint ellipses of all sizes, in three classes."""
    rng = np.random.default_rng(seed)
    masks, taken = [], np.zeros(SIZE, bool)
    for _ in range(40):
        mask = ellipse(SIZE, rng.uniform((0, 0), SIZE), rng.uniform(4, 70, 2))
        if not (mask & taken).any() and mask.any():
            masks.append(mask)
            taken |= mask
    labels = rng.integers(0, 3, len(masks)).tolist()
    scores = rng.uniform(0.1, 1, len(masks)).tolist()
    grid, fragments = see(masks, TILING, labels, scores)
    instances = stitch(fragments, grid)
    assert_scene(instances, masks)
    best_first = np.argsort(scores)[::-1]
    assert [instance.label for instance in instances] == [labels[index] for index in best_first]
    assert [instance.score for instance in instances] == pytest.approx([scores[i] for i in best_first])


def test_parts_of_one_object_in_one_tile():
    """The legs of a U are two instances of the upper tiles; the lower tiles show that they are connected."""
    mask = rectangle(SIZE, 20, 10, 130, 90) & ~rectangle(SIZE, 0, 35, 110, 65)
    grid, fragments = see([mask], Tiling(100, 45), split=pieces)
    assert len({fragment.tile for fragment in fragments}) < len(fragments)
    assert_scene(stitch(fragments, grid), [mask])


def test_classes_are_not_joined():
    grid, fragments = see([rectangle(SIZE, 20, 10, 60, 310)], TILING)
    labels = {fragment.tile: fragment.tile % 2 for fragment in fragments}
    changed = [replace(fragment, label=labels[fragment.tile]) for fragment in fragments]
    found = stitch(changed, grid)
    assert len(found) == len(fragments) > 2
    assert {instance.label for instance in found} == {0, 1}


def test_masks_that_disagree_in_the_overlap_are_not_joined():
    """Two objects that are cut by the borders of their tiles at different rows."""
    grid = TileGrid.of((100, 170), TILING)
    left = detections_of([rectangle((100, 100), 10, 30, 40, 100)], [0], [0.9])
    right = detections_of([rectangle((100, 100), 35, 0, 80, 60)], [0], [0.9])
    fragments = [*fragments_of(left, 0, grid), *fragments_of(right, 1, grid)]
    assert len(stitch(fragments, grid)) == 2


def test_duplicates_do_not_join_two_objects():
    """A weak mask over two objects of one tile takes neither of them."""
    objects = [rectangle(SIZE, 20, 60, 48, 140), rectangle(SIZE, 52, 60, 80, 140)]
    grid, fragments = see(objects, TILING)
    _, over_both = see([objects[0] | objects[1]], TILING, scores=[0.1])
    strong = [instance for instance in stitch([*fragments, *over_both], grid) if instance.score > 0.5]
    assert_scene(strong, objects)


@pytest.mark.parametrize("kept", [0.3, 0.6])
def test_incomplete_fragment_is_not_a_second_object(kept):
    """A neighbor sees only a part of the object that it cuts."""
    mask = rectangle(SIZE, 20, 30, 60, 98)
    grid, fragments = see([mask], TILING)
    (whole,) = [fragment for fragment in fragments if fragment.area == mask.sum()]
    others = []
    for fragment in fragments:
        if fragment is not whole:
            packed = fragment.crop.packed.clone()
            packed[int(kept * len(packed)) :] = 0
            bounds = fragment.bounds._replace(bottom=fragment.bounds.top + int(kept * len(packed)))
            area = int(np.unpackbits(packed.numpy()).sum())
            crop = replace(fragment.crop, packed=packed)
            others.append(replace(fragment, crop=crop, bounds=bounds, area=area, score=0.2))
    assert others
    (instance,) = stitch([whole, *others], grid)
    assert instance.score == pytest.approx(0.9)
    assert np.array_equal(instance.crop.mask().numpy(), mask)


def test_fragment_of_another_class_that_is_seen_better_elsewhere_is_left_out():
    mask = rectangle(SIZE, 20, 30, 60, 98)
    grid, fragments = see([mask], TILING)
    changed = [replace(fragment, label=int(fragment.area < mask.sum())) for fragment in fragments]
    assert {fragment.label for fragment in changed} == {0, 1}
    (instance,) = stitch(changed, grid)
    assert (instance.label, instance.score) == (0, pytest.approx(0.9))


def test_score_is_the_mean_of_the_tiles_that_show_the_object():
    mask = rectangle(SIZE, 20, 75, 50, 95)  # whole in two tiles
    grid, fragments = see([mask], TILING)
    assert [fragment.area for fragment in fragments] == [mask.sum()] * 2
    first, second = fragments
    (instance,) = stitch([replace(first, score=0.8), replace(second, score=0.4)], grid)
    assert instance.score == pytest.approx(0.6)
    # It is farther from the borders of the second tile, which decides whether it exists.
    assert stitch([first], grid) == []
    (instance,) = stitch([replace(second, score=0.8)], grid)
    assert instance.score == pytest.approx(0.4)


def test_no_fragments():
    assert stitch([], TileGrid.of(SIZE, TILING)) == []


def test_sloppy_masks_of_a_row_of_objects():
    """Masks that differ by some pixels from tile to tile give one object each, close to the true one."""
    rng = np.random.default_rng(0)
    objects = [ellipse(SIZE, (y, x), (24, 34)) for y in (40, 110, 180) for x in (50, 130, 210, 290)]

    def shifted(part):
        yield np.roll(part, rng.integers(-2, 3, 2), axis=(0, 1)) & part

    grid, fragments = see(objects, TILING, split=shifted)
    found = masks_of(stitch(fragments, grid))
    assert len(found) == len(objects)
    encoded = [
        [coco.encode(np.asfortranarray(mask.astype(np.uint8))) for mask in masks]
        for masks in (found, objects)
    ]
    ious = coco.iou(*encoded, [0] * len(objects))
    assert ious.max(axis=0).min() > 0.9
