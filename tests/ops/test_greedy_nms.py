"""Greedy mask NMS beside the rule written out, pair by pair."""

from dataclasses import replace

import pytest
import torch
from helpers import reference_solo
from helpers.models import HEADS

from solo_infer import PostprocessConfig
from solo_infer.inference import solo
from solo_infer.inference.preprocess import Geometry
from solo_infer.ops import greedy_nms, packed_masks
from solo_infer.ops.greedy_nms import greedy_nms_packed

LIMITS = {"nms_pre": -1, "max_num": -1, "filter_thr": -1.0}


def by_hand(masks, labels, scores, iou_thr, nms_pre=-1, max_num=-1, filter_thr=-1.0):
    """Return the indices that are kept, best first: one decision after the other, on Python's integers."""
    order = sorted(range(len(scores)), key=lambda index: -float(scores[index]))
    order = order[:nms_pre] if nms_pre > 0 else order
    kept = []
    for index in order:
        for better in kept:
            common = int((masks[index] & masks[better]).sum())
            union = int((masks[index] | masks[better]).sum())
            if labels[index] == labels[better] and union and common / union > iou_thr:
                break
        else:
            kept.append(index)
    kept = [index for index in kept if filter_thr <= 0 or scores[index] >= filter_thr]
    return kept[:max_num] if max_num > 0 else kept


def random_case(seed, count=60, labels=3, size=(13, 21)):
    """Boxes of random sizes, a few empty, a few equal, with scores of which many are equal."""
    generator = torch.Generator().manual_seed(seed)
    masks = torch.zeros(count, *size, dtype=torch.bool)
    for mask in masks:
        top, left = (int(torch.randint(0, side, (), generator=generator)) for side in size)
        height, width = (int(torch.randint(0, side, (), generator=generator)) for side in size)
        mask[top : top + height, left : left + width] = True
    masks[count // 2 : count // 2 + 5] = masks[:5]
    scores = torch.randint(1, 21, (count,), generator=generator) / 20
    return masks, torch.randint(0, labels, (count,), generator=generator), scores


@pytest.mark.parametrize("iou_thr", [0.0, 0.25, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("seed", range(4))
def test_equals_the_rule_written_out(seed, iou_thr):
    masks, labels, scores = random_case(seed)
    found = greedy_nms.greedy_nms(masks, labels, scores, iou_thr=iou_thr)
    expected = by_hand(masks, labels, scores, iou_thr)
    assert found.keep.tolist() == expected
    assert torch.equal(found.scores, scores[expected]) and torch.equal(found.labels, labels[expected])
    assert (len(expected) == len(scores)) == (iou_thr == 1.0)


@pytest.mark.parametrize(
    "limits",
    [{"nms_pre": 20}, {"max_num": 7}, {"filter_thr": 0.5}, {"nms_pre": 40, "max_num": 9, "filter_thr": 0.3}],
)
def test_limits(limits):
    masks, labels, scores = random_case(9)
    found = greedy_nms.greedy_nms(masks, labels, scores, **limits)
    assert found.keep.tolist() == by_hand(masks, labels, scores, 0.5, **limits)
    assert len(found.keep) < len(by_hand(masks, labels, scores, 0.5))


def test_a_dropped_mask_drops_no_other():
    """A chain: each overlaps the next by 4 of 8 columns (IoU 1/3), the first and third not at all."""
    masks = torch.zeros(3, 2, 16, dtype=torch.bool)
    for index, mask in enumerate(masks):
        mask[:, 4 * index : 4 * index + 8] = True
    scores = torch.tensor([0.9, 0.8, 0.7])
    labels = torch.zeros(3, dtype=torch.int64)
    assert greedy_nms.greedy_nms(masks, labels, scores, iou_thr=0.3).keep.tolist() == [0, 2]
    assert greedy_nms.greedy_nms(masks, labels, scores, iou_thr=1 / 3).keep.tolist() == [0, 1, 2]


def test_only_equal_labels_and_the_first_of_equal_scores():
    masks = torch.ones(4, 3, 5, dtype=torch.bool)
    labels, scores = torch.tensor([1, 0, 1, 0]), torch.tensor([0.5, 0.5, 0.5, 0.6])
    assert greedy_nms.greedy_nms(masks, labels, scores).keep.tolist() == [3, 0]


def test_nothing():
    found = greedy_nms.greedy_nms(
        torch.zeros(0, 4, 9, dtype=torch.bool), torch.zeros(0, dtype=torch.int64), torch.zeros(0)
    )
    assert [len(part) for part in found] == [0, 0, 0] and found.keep.dtype == torch.int64


def test_several_detections_may_share_a_mask():
    masks, labels, scores = random_case(5)
    owners = torch.arange(60) // 2
    found = greedy_nms_packed(
        packed_masks.pack(masks.flatten(1)),
        masks[owners].flatten(1).sum(1).float(),
        labels,
        scores,
        iou_thr=0.5,
        owners=owners,
        **LIMITS,
    )
    assert found.keep.tolist() == by_hand(masks[owners], labels, scores, 0.5)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("nms_iou", [0.2, 0.5])
def test_detections_equal_the_plain_road(head, nms_iou, small_models):
    """Ordered by class score times maskness, as with Matrix-NMS."""
    model = small_models[head]
    settings = PostprocessConfig(score_thr=0.05, nms="greedy", nms_iou=nms_iou)
    geometry = Geometry((60, 79), (91, 120), (96, 128))
    images = torch.randn(1, 3, 96, 128, generator=torch.Generator().manual_seed(3))
    levels, scores = model.network(images)
    candidates = solo.find_candidates(scores[0], settings.score_thr)
    maps = model.network.mask_maps(levels, candidates.cells)

    def detect(thresholds):
        return solo.detect(candidates, maps, 0, model._strides, geometry, thresholds)

    found = detect(settings)
    soft = reference_solo.all_masks(model.network, levels)[0][candidates.cells]
    masks = soft > settings.mask_thr
    areas = masks.sum((1, 2))
    rescored = candidates.scores * (soft * masks).sum((1, 2)) / areas.clamp(min=1)
    large = torch.nonzero(areas > model._strides[candidates.cells]).flatten()
    limits = {"nms_pre": 500, "max_num": 100, "filter_thr": 0.05}
    keep = large[by_hand(masks[large], candidates.labels[large], rescored[large], nms_iou, **limits)]
    assert 3 < len(keep) < len(large)
    assert found.labels.tolist() == candidates.labels[keep].tolist()
    torch.testing.assert_close(found.scores, rescored[keep], rtol=0, atol=1e-5)
    unchanged = detect(replace(settings, nms="matrix"))
    assert unchanged.scores.tolist() != found.scores.tolist()
