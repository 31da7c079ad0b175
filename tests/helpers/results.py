"""Results with known masks."""

import numpy as np
import torch

from solo_infer import Result
from solo_infer.config.categories import Categories
from solo_infer.ops import packed_masks

HEIGHT, WIDTH = 20, 29  # not a multiple of 8
PETS = Categories(("cat", "dog", "bird"), (17, 18, 16))


def make_masks(count):
    """Return different masks (N, H, W), bool; the last one is empty."""
    masks = torch.zeros(count, HEIGHT, WIDTH, dtype=torch.bool)
    for index in range(count - 1):
        masks[index, index : index + 3, 2 * index : 2 * index + 5] = True
        masks[index, index, 2 * index] = False
    return masks


def make_result(count=5, categories=PETS, **changes):
    masks = make_masks(count)
    boxes = [[2.0 * i, i, 2 * i + 5, i + 3] for i in range(count - 1)] + [[0.0] * 4] * (count > 0)
    values = {
        "scores": torch.tensor([0.9, 0.8, 0.5, 0.3, 0.1][:count]),
        "labels": torch.tensor([1, 0, 1, 2, 0][:count]),
        "boxes": torch.tensor(boxes).reshape(-1, 4),
        "packed_masks": packed_masks.pack(masks),
        "image_size": (HEIGHT, WIDTH),
        "categories": categories,
        "image": np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8),
        "source": "pets/süß.jpg",
        "timings": {"network": 0.5},
    }
    return Result(**{**values, **changes})


def assert_same(result, expected):
    for name in ("scores", "labels", "boxes", "packed_masks"):
        assert torch.equal(getattr(result, name), getattr(expected, name)), name
        assert getattr(result, name).dtype == getattr(expected, name).dtype
    assert (result.image_size, result.categories) == (expected.image_size, expected.categories)
    assert result.source == expected.source


def assert_same_but_for_rounding(result, expected):
    """Compare results of the same arithmetic in another order: pixels at the threshold may differ."""
    assert torch.equal(result.labels, expected.labels)
    torch.testing.assert_close(result.scores, expected.scores, rtol=0, atol=1e-5)
    differing = (result.masks != expected.masks).flatten(1).sum(dim=1)
    assert (differing <= 2).all() and differing.sum() <= max(5e-7 * result.masks.numel(), 2), differing
    assert result.image_size == expected.image_size
    same = differing == 0
    torch.testing.assert_close(result.boxes[same], expected.boxes[same], rtol=0, atol=1e-3)
