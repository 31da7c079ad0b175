"""Assignment of instances to the cells of Tiny."""

import pytest
import torch

from solo_infer.models.target import non_crowd_instances
from solo_infer.models.tiny.targets import (
    CELLS_PER_INSTANCE,
    MASK_CELLS_PER_INSTANCE,
    MIN_MASK_IOU,
    assign,
)

SIZE = (64, 64)


def target_of(boxes, labels=None, **entries):
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    masks = torch.zeros(len(boxes), *SIZE, dtype=torch.bool)
    for mask, (left, top, right, bottom) in zip(masks, boxes.int().tolist(), strict=True):
        mask[top:bottom, left:right] = True
    labels = torch.arange(len(boxes)) if labels is None else torch.tensor(labels)
    entries = {name: torch.tensor(value) for name, value in entries.items()}
    return {"boxes": boxes, "labels": labels, "masks": masks, **entries}


def assigned(boxes, target, logits=None):
    """Return the assignment of a target to cells with some predicted boxes, of three classes."""
    boxes = torch.tensor(boxes, dtype=torch.float32)
    logits = torch.zeros(len(boxes), 3) if logits is None else logits
    return assign(logits, boxes, non_crowd_instances(target, SIZE), target)


def shifted(box, count):
    """Return boxes that move to the right pixel by pixel."""
    left, top, right, bottom = box
    return [[left + step, top, right + step, bottom] for step in range(count)]


def test_instances_go_to_the_cells_with_the_best_boxes():
    first, second = [0, 0, 20, 20], [40, 40, 60, 60]
    boxes = [*shifted(first, 12), [0, 0, 1, 1], *shifted(second, 12)]
    assignment = assigned(boxes, target_of([first, second]))
    pairs = set(zip(assignment.cells.tolist(), assignment.instances.tolist(), strict=True))
    best = range(CELLS_PER_INSTANCE)
    assert pairs == {(cell, 0) for cell in best} | {(13 + cell, 1) for cell in best}


def test_scores_decide_between_equal_boxes():
    box = [0, 0, 20, 20]
    logits = torch.zeros(20, 3)
    logits[11:, 1] = 2.0
    assignment = assigned([box] * 20, target_of([box], [1]), logits)
    assert sorted(assignment.cells.tolist()) == list(range(11, 20))


def test_cells_learn_only_the_instance_that_their_box_overlaps_most():
    boxes = shifted([0, 0, 20, 20], 12)
    assignment = assigned(boxes, target_of([[0, 0, 20, 20], [11, 0, 31, 20]]))
    assert len(assignment.cells.unique()) == len(assignment.cells)
    owners = dict(zip(assignment.cells.tolist(), assignment.instances.tolist(), strict=True))
    assert owners == {cell: int(cell > 5) for cell in range(12)}


def test_instances_with_equal_boxes_share_their_cells():
    """Data sets may label one object with several classes."""
    box = [0, 0, 20, 20]
    assignment = assigned(shifted(box, 12), target_of([box, box], [0, 2]))
    pairs = set(zip(assignment.cells.tolist(), assignment.instances.tolist(), strict=True))
    assert pairs == {(cell, instance) for cell in range(CELLS_PER_INSTANCE) for instance in (0, 1)}


def test_best_cell_learns_the_iou_and_others_less():
    boxes = shifted([0, 0, 20, 20], 9)
    assignment = assigned(boxes, target_of([[1, 0, 21, 20]]))
    quality = dict(zip(assignment.cells.tolist(), assignment.quality.tolist(), strict=True))
    assert quality[1] == pytest.approx(1.0)
    iou = 19 / 21
    assert quality[0] == pytest.approx(iou**3, rel=1e-4) and quality[2] == pytest.approx(iou**3, rel=1e-4)
    assert quality[2] > quality[3] > quality[4] > 0


def test_quality_of_an_instance_is_that_of_its_own_cells():
    """A cell of another instance may overlap an instance more than all its own cells."""
    larger, smaller = [0, 0, 20, 20], [0, 0, 20, 16]
    boxes = [[0, 0, 20, 19], [0, 0, 10, 10]]  # IoU with the two: 0.95 and 0.84, 0.25 and 0.31
    assignment = assigned(boxes, target_of([larger, smaller]))
    quality = dict(zip(assignment.cells.tolist(), assignment.quality.tolist(), strict=True))
    assert assignment.instances.tolist() == [0, 1] and assignment.cells.tolist() == [0, 1]
    assert quality[0] == pytest.approx(0.95, rel=1e-4)
    assert quality[1] == pytest.approx(100 / 320, rel=1e-4)


def test_masks_are_learned_by_the_best_cells_with_a_good_box():
    good = shifted([0, 0, 20, 20], 5)
    assignment = assigned([*good, [0, 0, 64, 64]], target_of([[0, 0, 20, 20]]))
    assert sorted(assignment.mask_cells.tolist()) == list(range(MASK_CELLS_PER_INSTANCE))
    assert assignment.mask_instances.tolist() == [0] * MASK_CELLS_PER_INSTANCE
    poor = [0, 0, 20, int(20 * MIN_MASK_IOU) - 1]
    assignment = assigned([poor], target_of([[0, 0, 20, 20]]))
    assert len(assignment.cells) == 1 and len(assignment.mask_cells) == 0
    fair = [0, 0, 20, int(20 * MIN_MASK_IOU) + 2]
    assert assigned([fair], target_of([[0, 0, 20, 20]])).mask_cells.tolist() == [0]


def test_number_of_masks_of_an_image_is_limited():
    boxes = [[column, row, column + 3, row + 3] for column in range(0, 60, 3) for row in range(0, 30, 3)]
    assignment = assigned(boxes, target_of(boxes, [0] * len(boxes)))
    assert len(assignment.cells) == len(boxes) == 200
    assert len(assignment.mask_cells) == len(assignment.mask_instances) == 48
    pairs = set(zip(assignment.cells.tolist(), assignment.instances.tolist(), strict=True))
    assert set(zip(assignment.mask_cells.tolist(), assignment.mask_instances.tolist(), strict=True)) <= pairs


def test_no_instances():
    assignment = assigned(shifted([0, 0, 20, 20], 12), target_of([]))
    for values in assignment[:5]:
        assert len(values) == 0
    assert torch.equal(assignment.weights, torch.ones(12, 3))


def test_instances_that_no_box_overlaps_are_not_learned():
    assignment = assigned([[0, 0, 8, 8]] * 4, target_of([[40, 40, 60, 60]]))
    assert len(assignment.cells) == len(assignment.mask_cells) == 0


def test_quality_is_a_score():
    generator = torch.Generator().manual_seed(0)
    corners = 40 * torch.rand(300, 2, generator=generator)
    boxes = torch.cat([corners, corners + 24 * torch.rand(300, 2, generator=generator)], dim=1)
    logits = 4 * torch.randn(300, 3, generator=generator)
    target = target_of([[2, 3, 30, 40], [20, 20, 60, 50], [4, 4, 9, 9]])
    assignment = assigned(boxes.tolist(), target, logits)
    assert 20 < len(assignment.cells) <= 3 * CELLS_PER_INSTANCE
    assert len(assignment.cells.unique()) == len(assignment.cells)
    assert (assignment.quality > 0).all() and (assignment.quality <= 1).all()


def test_cells_inside_crowd_regions_are_left_out_for_their_class():
    target = target_of([[0, 0, 32, 32], [40, 40, 60, 60]], [1, 2], iscrowd=[True, False])
    boxes = [[0, 0, 20, 20], [16, 0, 46, 30], [18, 0, 64, 30], [40, 40, 60, 60], [5, 5, 5, 5]]
    assignment = assigned(boxes, target)
    weights = torch.ones(5, 3)
    weights[:2, 1] = 0  # at least half of their boxes is in the region
    assert torch.equal(assignment.weights, weights)
    assert assignment.cells.tolist() == [3]


def test_unlabelled_classes_are_left_out():
    target = target_of([[0, 0, 20, 20]], [2], labelled=[2, 0])
    weights = assigned(shifted([0, 0, 20, 20], 4), target).weights
    assert torch.equal(weights, torch.tensor([[1.0, 0.0, 1.0]] * 4))
