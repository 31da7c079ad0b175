"""From raw outputs of Tiny to detections."""

import math
from dataclasses import replace

import pytest
import torch

from solo_infer.config import TinyPostprocessConfig
from solo_infer.inference.preprocess import Geometry
from solo_infer.inference.tiny import (
    _best_candidates,
    class_scores,
    decode_output,
    duplicate_weights,
    find_instances,
)
from solo_infer.inference.tiny_masks import cell_mask_logits, cell_masks
from solo_infer.models.tiny.head import CellPredictions
from solo_infer.models.tiny.masks import decode_boxes, mask_logits
from solo_infer.models.tiny.network import TinyOutput

THRESHOLDS = TinyPostprocessConfig(box_iou=1.0, nms="greedy", nms_iou=1.0, filter_thr=0.001)
BINS = 8
FEATURES = torch.zeros(2, 16, 24)  # of a network input of 64 x 96


def cells_of(boxes, points, logits):
    """Return predictions of cells whose boxes are given, with kernels of zeros and some class logits."""
    points, boxes = torch.tensor(points), torch.tensor(boxes)
    distances = torch.cat([points[:, :2] - boxes[:, :2], boxes[:, 2:] - points[:, :2]], dim=1) / points[:, 2:]
    low = distances.floor().clamp(0, BINS - 2).long()
    share = (distances - low)[..., None]
    probabilities = torch.zeros(len(boxes), 4, BINS)
    probabilities.scatter_(2, low[..., None], 1 - share).scatter_(2, low[..., None] + 1, share)
    distance_logits = probabilities.clamp(min=1e-20).log().flatten(1)
    assert torch.allclose(decode_boxes(distance_logits, points), boxes, atol=1e-2)
    return CellPredictions(torch.tensor(logits), distance_logits, torch.zeros(len(boxes), 8)), points


def instances_of(boxes, logits, points=None, **thresholds):
    cells, points = cells_of(boxes, points or [[32.0, 32.0, 16.0]] * len(boxes), logits)
    return find_instances(cells, points, FEATURES, replace(THRESHOLDS, **thresholds))


@pytest.mark.parametrize("score_thr", [0.0, 1e-30, 0.05, 0.5, 0.99999, 1 - 1e-7, 1.0])
def test_candidates_are_the_pairs_with_scores_above_the_threshold(score_thr):
    if 0 < score_thr < 1:
        center = math.log(score_thr / (1 - score_thr))
    else:
        center = 30.0 if score_thr else -100.0
    noise = (
        torch.randn(400, 5, generator=torch.Generator().manual_seed(1))
        * torch.logspace(-8, 0.5, 400)[:, None]
    )
    class_logits = noise + center
    class_logits[3, 2], class_logits[4, 1], class_logits[5] = math.nan, -math.inf, math.inf
    class_mask = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0])
    thresholds = replace(THRESHOLDS, score_thr=score_thr, nms_pre=2000)
    for mask in (None, class_mask):
        cells, labels, scores = _best_candidates(class_logits, thresholds, mask)
        expected = class_scores(class_logits, mask)
        above = torch.nonzero(expected > score_thr)
        assert sorted(zip(cells.tolist(), labels.tolist(), strict=True)) == [
            tuple(pair) for pair in above.tolist()
        ]
        assert torch.equal(scores, expected[cells, labels]) and not (scores.diff() > 0).any()


BOX, NEAR, OTHER = [8.0, 8, 72, 56], [10.0, 8, 72, 56], [32.0, 32, 56, 56]


def test_duplicates_are_removed_by_their_boxes_before_masks_are_computed(monkeypatch):
    counts = []

    def count(kernels, boxes, features):
        counts.append(len(boxes))
        return cell_masks(kernels, boxes, features)

    monkeypatch.setattr("solo_infer.inference.tiny.cell_masks", count)
    boxes, logits = [BOX, NEAR, OTHER], [[2.0, -9], [1.0, -9], [0.0, -9]]
    for limit, expected in ((0.6, 2), (0.98, 3), (1.0, 3)):
        assert len(instances_of(boxes, logits, box_iou=limit).scores) == expected
    assert counts == [2, 3, 3]


def test_boxes_of_other_classes_are_kept():
    instances = instances_of([BOX, BOX], [[2.0, -9], [-9, 1.0]], box_iou=0.5)
    assert instances.labels.tolist() == [0, 1]
    instances = instances_of([BOX], [[2.0, 1.0]], box_iou=0.5)
    assert instances.labels.tolist() == [0, 1]


def test_boxes_of_other_classes_beyond_the_top_left_are_kept():
    """Boxes are moved class by class, and must not overlap at negative coordinates."""
    box = [-400.0, -400, 40, 40]
    points = [[8.0, 8.0, 64.0], [8.0, 8.0, 64.0]]
    instances = instances_of([box, box], [[2.0, -9], [-9, 1.0]], points, box_iou=0.5, mask_thr=0.01)
    assert instances.labels.tolist() == [0, 1]


@pytest.mark.parametrize("nms", ["greedy", "matrix"])
def test_masks_that_overlap_are_suppressed(nms):
    boxes, logits = [BOX, NEAR, OTHER], [[1.0, -9], [2.0, -9], [0.0, -9]]
    kept = instances_of(boxes, logits, nms=nms, nms_iou=0.5, filter_thr=0.3)
    assert len(kept.scores) == 2
    assert (kept.scores.diff() <= 0).all()
    expected = mask_logits(torch.zeros(2, 8), torch.tensor([NEAR, OTHER]), FEATURES)
    assert torch.equal(kept.soft > 0.5, expected > 0)


def test_cells_of_one_object_are_merged():
    """The mask is that of the mean box and kernel, weighted with the squares of scores and IoUs."""
    logits = [[2.0, -9], [1.0, -9], [0.0, -9]]
    kept = instances_of([BOX, NEAR, OTHER], logits, box_iou=0.6)
    scores = class_scores(torch.tensor(logits))[:2, 0]
    iou = 62 * 48 / (64 * 48)
    weights = (scores * torch.tensor([1.0, iou])).square()
    left = float((weights * torch.tensor([8.0, 10.0])).sum() / weights.sum())
    box = torch.tensor([[left, 8, 72, 56]])
    assert torch.equal(kept.soft[0] > 0.5, mask_logits(torch.zeros(1, 8), box, FEATURES)[0] > 0)
    alone = instances_of([NEAR, BOX], [[2.0, -9], [-9, 1.0]], box_iou=0.6)
    expected = mask_logits(torch.zeros(2, 8), torch.tensor([NEAR, BOX]), FEATURES)
    assert torch.equal(alone.soft > 0.5, expected > 0)  # other classes are other objects


def test_weights_of_duplicates():
    overlaps = torch.tensor([[1.0, 0.9, 0.74, 0.0], [0.0, 0.0, 0.0, math.nan]])
    weights = duplicate_weights(overlaps, torch.tensor([1e-30, 1e-30, 1.0, 0.0]), torch.tensor([0, 3]))
    assert weights[0].tolist() == pytest.approx([1 / 1.81, 0.81 / 1.81, 0.0, 0.0])
    assert weights[1].tolist() == [0.0, 0.0, 0.0, 0.0]  # a candidate without a score
    weights = duplicate_weights(overlaps, torch.tensor([0.5, 0.5, 1.0, 0.1]), torch.tensor([0, 3]))
    assert weights[1].tolist() == [0.0, 0.0, 0.0, 1.0]  # an empty box


def test_scores_are_products_of_class_scores_and_maskness():
    (instance,) = [instances_of([BOX], [[2.0, -9.0]])]
    scores = mask_logits(torch.zeros(1, 8), torch.tensor([BOX]), FEATURES).sigmoid()
    maskness = float(scores[scores > 0.5].mean())
    assert instance.scores.item() == pytest.approx(maskness / (1 + math.exp(-2.0)), rel=1e-3)


def test_limits_of_numbers_and_scores():
    boxes = [BOX, NEAR, OTHER]
    logits = [[1.0, -9], [2.0, -9], [0.0, -9]]
    assert len(instances_of(boxes, logits, max_per_image=2).scores) == 2
    assert len(instances_of(boxes, logits, nms_pre=1).scores) == 1
    # Scores must be greater than score_thr.
    assert len(instances_of(boxes, logits, score_thr=0.5).scores) == 2
    assert len(instances_of(boxes, logits, score_thr=0.9).scores) == 0
    full = instances_of(boxes, logits)
    assert (full.scores.diff() <= 0).all() and len(full.scores) == 3
    limit = float(full.scores[1]) - 1e-4
    assert len(instances_of(boxes, logits, filter_thr=limit).scores) == 2


@pytest.mark.parametrize("nms", ["greedy", "matrix"])
@pytest.mark.parametrize("filter_thr", [0.0, 0.01])
def test_empty_masks_are_no_instances(nms, filter_thr):
    outside = [112.0, 80, 140, 100]  # right and below of the network input
    points = [[112.0, 80.0, 16.0], [32.0, 32.0, 16.0]]
    instances = instances_of([outside, OTHER], [[2.0, -9], [1.0, -9]], points, nms=nms, filter_thr=filter_thr)
    assert len(instances.scores) == 1
    instances = instances_of([outside], [[2.0, -9]], points[:1], nms=nms, filter_thr=filter_thr)
    assert len(instances.scores) == 0 and instances.soft.shape == (0, 16, 24)


def test_masks_fade_beyond_their_boxes():
    kernels = torch.zeros(1, 8)
    kernels[0, 2] = 50.0  # the constant term: inside everywhere
    box = torch.tensor([[32.0, 24.0, 72.0, 54.0]])
    (logits,) = cell_mask_logits(kernels, box, FEATURES)
    (plain,) = mask_logits(kernels, box, FEATURES)
    for row in range(16):
        for column in range(24):
            x, y = 4 * column + 2, 4 * row + 2
            # Pixels beyond a margin of 4 around the box; 40 and 30 are its sides.
            right, down = max(32 - x, x - 72, 4) - 4, max(24 - y, y - 54, 4) - 4
            expected = plain[row, column] - 20 * (right / 40 + down / 30)
            expected = float(expected.clamp(-15, 15)) if right < 4 and down < 3 else -15.0
            assert logits[row, column].item() == pytest.approx(expected, abs=1e-4)


def test_excluded_classes_have_no_scores():
    logits = torch.tensor([[[3.0, 2.0]]], dtype=torch.bfloat16)
    scores = class_scores(logits, torch.tensor([0.0, 1.0]))
    assert scores.dtype == torch.float32
    assert scores.tolist() == [[[0.0, pytest.approx(1 / (1 + math.exp(-2.0)))]]]


def output_of(*logits):
    """Return the raw outputs for a batch with the same box in each image."""
    images = [cells_of([BOX], [[32.0, 32.0, 16.0]], [image]) for image in logits]
    cells = CellPredictions(*(torch.stack(values) for values in zip(*(c for c, _ in images), strict=True)))
    return TinyOutput(cells, images[0][1], FEATURES.expand(len(logits), -1, -1, -1))


GEOMETRY = Geometry((120, 180), (60, 90), (64, 96))


def test_detections_are_at_the_size_of_the_image():
    first, second = decode_output(output_of([2.0, -9], [-9.0, -9]), [GEOMETRY] * 2, THRESHOLDS)
    assert len(second.scores) == 0 and second.boxes.shape == (0, 4)
    assert first.labels.tolist() == [0] and first.scores.dtype == torch.float32
    # An ellipse in the box, whose half axes are sqrt(2 / softplus(2)) of the half sides.
    left, top, right, bottom = first.boxes[0].tolist()
    ratio = math.sqrt(2 / math.log1p(math.exp(2)))
    expected = [2 * (40 - 32 * ratio), 2 * (32 - 24 * ratio), 2 * (40 + 32 * ratio), 2 * (32 + 24 * ratio)]
    assert [left, top, right, bottom] == pytest.approx(expected, abs=3)


def test_greater_mask_thresholds_give_smaller_masks():
    areas = []
    for mask_thr in (0.0, 0.3, 0.5, 0.8):
        (detections,) = decode_output(
            output_of([2.0, -9]), [GEOMETRY], replace(THRESHOLDS, mask_thr=mask_thr, filter_thr=0.0)
        )
        left, top, right, bottom = detections.boxes[0].tolist()
        areas.append((right - left) * (bottom - top))
    assert areas == sorted(areas, reverse=True) and areas[0] > areas[-1] > 0
    (detections,) = decode_output(output_of([2.0, -9]), [GEOMETRY], replace(THRESHOLDS, mask_thr=1.0))
    assert len(detections.scores) == 0
