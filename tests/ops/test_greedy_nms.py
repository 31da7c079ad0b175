"""Greedy mask NMS beside its definition in plain loops."""

from dataclasses import replace

import pytest
import torch
from helpers.dense_outputs import dense_mask_scores
from helpers.models import HEADS

from solo_infer import PostprocessConfig
from solo_infer.inference import solo
from solo_infer.inference.preprocess import Geometry
from solo_infer.models.solo.scores import class_scores_from_logits
from solo_infer.ops import greedy_nms, packed_masks
from solo_infer.ops.greedy_nms import greedy_nms_packed

LIMITS = {"nms_pre": -1, "max_num": -1, "filter_thr": -1.0}


def reference_nms(masks, labels, scores, iou_thr, nms_pre=-1, max_num=-1, filter_thr=-1.0):
    """Return the kept indices, best first, with one decision after the other on Python integers."""
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
    """Return random boxes as masks, some of them empty or equal, with many equal scores."""
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
def test_greedy_nms_equals_definition(seed, iou_thr):
    masks, labels, scores = random_case(seed)
    result = greedy_nms.greedy_nms(masks, labels, scores, iou_thr=iou_thr)
    expected = reference_nms(masks, labels, scores, iou_thr)
    assert result.keep.tolist() == expected
    assert torch.equal(result.scores, scores[expected]) and torch.equal(result.labels, labels[expected])
    assert (len(expected) == len(scores)) == (iou_thr == 1.0)


@pytest.mark.parametrize(
    "limits",
    [{"nms_pre": 20}, {"max_num": 7}, {"filter_thr": 0.5}, {"nms_pre": 40, "max_num": 9, "filter_thr": 0.3}],
)
def test_limits(limits):
    masks, labels, scores = random_case(9)
    result = greedy_nms.greedy_nms(masks, labels, scores, **limits)
    assert result.keep.tolist() == reference_nms(masks, labels, scores, 0.5, **limits)
    assert len(result.keep) < len(reference_nms(masks, labels, scores, 0.5))


def test_suppressed_masks_suppress_no_others():
    """Neighbors in a chain of three overlap by 4 of 8 columns (IoU 1/3), the ends do not overlap."""
    masks = torch.zeros(3, 2, 16, dtype=torch.bool)
    for index, mask in enumerate(masks):
        mask[:, 4 * index : 4 * index + 8] = True
    scores = torch.tensor([0.9, 0.8, 0.7])
    labels = torch.zeros(3, dtype=torch.int64)
    assert greedy_nms.greedy_nms(masks, labels, scores, iou_thr=0.3).keep.tolist() == [0, 2]
    assert greedy_nms.greedy_nms(masks, labels, scores, iou_thr=1 / 3).keep.tolist() == [0, 1, 2]


def test_first_of_equal_scores_suppresses_equal_labels_only():
    masks = torch.ones(4, 3, 5, dtype=torch.bool)
    labels, scores = torch.tensor([1, 0, 1, 0]), torch.tensor([0.5, 0.5, 0.5, 0.6])
    assert greedy_nms.greedy_nms(masks, labels, scores).keep.tolist() == [3, 0]


def test_greedy_nms_of_no_masks():
    result = greedy_nms.greedy_nms(
        torch.zeros(0, 4, 9, dtype=torch.bool), torch.zeros(0, dtype=torch.int64), torch.zeros(0)
    )
    assert [len(tensor) for tensor in result] == [0, 0, 0] and result.keep.dtype == torch.int64


def test_detections_may_share_a_mask():
    masks, labels, scores = random_case(5)
    mask_index = torch.arange(60) // 2
    result = greedy_nms_packed(
        packed_masks.pack(masks.flatten(1)),
        masks[mask_index].flatten(1).sum(1).float(),
        labels,
        scores,
        iou_thr=0.5,
        mask_index=mask_index,
        **LIMITS,
    )
    assert result.keep.tolist() == reference_nms(masks[mask_index], labels, scores, 0.5)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("nms_iou", [0.2, 0.5])
def test_detections_equal_definition(head, nms_iou, small_models):
    """Candidates are ranked by class score times maskness, as with Matrix-NMS."""
    model = small_models[head]
    settings = PostprocessConfig(score_thr=0.05, nms="greedy", nms_iou=nms_iou)
    geometry = Geometry((60, 79), (91, 120), (96, 128))
    images = torch.randn(1, 3, 96, 128, generator=torch.Generator().manual_seed(3))
    output = model.network(images)
    class_scores = class_scores_from_logits(output.class_logits)
    candidates = solo.find_candidates(class_scores[0], settings.score_thr)
    head, levels = model.network.mask_head, model.network.features(images)
    (masks_of_cells,) = head.masks(levels, [candidates.cells.unique()])
    strides = head.cells.stride

    def detect(thresholds):
        return solo.detect_image(candidates, masks_of_cells, strides, geometry, thresholds)

    result = detect(settings)
    soft = dense_mask_scores(output)[0, candidates.cells]
    masks = soft > settings.mask_thr
    areas = masks.sum((1, 2))
    rescored = candidates.scores * (soft * masks).sum((1, 2)) / areas.clamp(min=1)
    large = torch.nonzero(areas > strides[candidates.cells]).flatten()
    limits = {"nms_pre": 500, "max_num": 100, "filter_thr": 0.05}
    keep = large[reference_nms(masks[large], candidates.labels[large], rescored[large], nms_iou, **limits)]
    assert 3 < len(keep) < len(large)
    assert result.labels.tolist() == candidates.labels[keep].tolist()
    torch.testing.assert_close(result.scores, rescored[keep], rtol=0, atol=1e-5)
    unchanged = detect(replace(settings, nms="matrix"))
    assert unchanged.scores.tolist() != result.scores.tolist()
