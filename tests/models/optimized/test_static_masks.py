"""Masks with static shapes equal the plain masks."""

import pytest
import torch
from helpers.dense_outputs import dense_mask_scores
from helpers.models import HEADS, randomize, small_config, small_network
from helpers.nested_tensors import random_maps
from torch import nn

from solo_infer.models.optimized.optimize import optimize_for_inference
from solo_infer.models.optimized.static_masks import run_branches, static_masks
from solo_infer.ops.mask_statistics import mask_statistics

# Of two images: cells of all levels, in any order, repeated and missing levels.
CELLS = torch.tensor([[224, 0, 100, 7, 163, 164, 200, 199, 215], [3, 3, 99, 50, 41, 41, 223, 0, 150]])


@pytest.fixture(params=HEADS)
def network(request):
    return randomize(small_network(small_config(request.param)))


@pytest.mark.parametrize("size", [(64, 96), (65, 97), (33, 250), (126, 122)])
@torch.no_grad()
def test_scores_equal_the_plain_masks(network, size):
    images = random_maps((3, *size), count=2)
    expected = dense_mask_scores(network(images))
    for candidate, tolerance in ((network, 1e-5), (optimize_for_inference(network), 2e-3)):
        masks = static_masks(candidate.mask_head, candidate.features(images))
        scores = masks.scores(CELLS)
        assert scores.dtype == torch.float32 and masks.size == tuple(expected.shape[-2:])
        for image in range(2):
            torch.testing.assert_close(scores[image], expected[image, CELLS[image]], rtol=0, atol=tolerance)


@torch.no_grad()
def test_statistics_are_those_of_the_scores(network):
    masks = static_masks(network.mask_head, network.features(random_maps((3, 64, 96), count=2)))
    statistics, expected = masks.statistics(CELLS, 0.5), mask_statistics(masks.scores(CELLS), 0.5)
    assert expected[0].max() > 0
    for values, expected_values in zip(statistics, expected, strict=True):
        torch.testing.assert_close(values, expected_values)


@torch.no_grad()
def test_scores_in_bfloat16(network):
    images = random_maps((3, 64, 96), count=2)
    network.to(torch.bfloat16)
    levels = network.features(images.bfloat16())
    expected = dense_mask_scores(network(images.bfloat16()))
    scores = static_masks(network.mask_head, levels).scores(CELLS)
    assert scores.dtype == torch.float32
    for image in range(2):
        difference = (scores[image] - expected[image, CELLS[image]]).abs()
        assert difference.mean() < 0.01


def test_branches_run_on_levels_of_equal_size_as_one_batch():
    calls = []

    def branches(maps):
        calls.append([tuple(x.shape) for x in maps])
        return [[x + 1 for x in maps], [x * 2 for x in maps]]

    levels = [
        torch.full((2, 4, side, side), float(side + index)) for index, side in enumerate((6, 6, 5, 3, 3))
    ]
    added, doubled = run_branches(branches, levels)
    assert calls == [[(4, 4, 6, 6), (2, 4, 5, 5), (4, 4, 3, 3)]]
    for level, plus_one, twice in zip(levels, added, doubled, strict=True):
        assert torch.equal(plus_one, level + 1) and torch.equal(twice, level * 2)


def test_other_heads_are_refused():
    with pytest.raises(TypeError, match="Linear: expected a SOLOHead, a DecoupledHead or a SOLOv2Head"):
        static_masks(nn.Linear(1, 1), [])
