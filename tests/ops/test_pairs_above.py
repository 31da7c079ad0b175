"""The search for scores above a threshold equals torch's."""

import pytest
import torch

from solo_infer.ops.pairs_above import pairs_above


@pytest.mark.parametrize("shape", [(0, 80), (5, 0), (1, 1), (300, 7), (7, 300)])
@pytest.mark.parametrize("threshold", [-1.0, 0.1, 0.5, 0.9, 1.0])
def test_equals_nonzero(shape, threshold):
    scores = torch.rand(shape, generator=torch.Generator().manual_seed(1))
    for values in (scores, scores.T.contiguous().T, scores.clone().requires_grad_(True)):
        pairs = pairs_above(values, threshold)
        assert all(index.dtype == torch.int64 for index in pairs)
        for index, expected in zip(pairs, torch.nonzero(scores > threshold, as_tuple=True), strict=True):
            assert torch.equal(index, expected)


def test_thresholds_are_rounded_to_float32():
    scores = torch.tensor([[0.1, 0.3], [0.05, 0.7]])
    for threshold in (0.1, 0.3, 0.05, 0.7):
        expected = torch.nonzero(scores > threshold, as_tuple=True)
        assert all(map(torch.equal, pairs_above(scores, threshold), expected))


def test_nan_is_not_above():
    assert pairs_above(torch.tensor([[float("nan"), 1.0]]), 0.5)[1].tolist() == [1]
