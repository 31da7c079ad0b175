"""Geometric changes of samples."""

import numpy as np
import pytest
import torch
from helpers.training_sets import assert_consistent, bitmap, sample_of

from solo_infer.training.sample import (
    crop,
    flip,
    make_sample,
    mask_areas,
    mask_bounds,
    pad,
    resize,
    resize_masks,
    select_instances,
)


@pytest.fixture
def sample():
    """Return a ring-like mask, a small one at the right edge, and a single pixel."""
    ring = bitmap(60, 90, 10, 20, 40, 50)
    ring[30:40, 20:30] = False
    masks = [ring, bitmap(60, 90, 80, 5, 90, 15), bitmap(60, 90, 50, 55, 51, 56)]
    return sample_of(masks, labels=[4, 2, 7], iscrowd=[False, True, False], labelled=torch.tensor([2, 4, 7]))


def test_mask_bounds_and_areas(sample):
    masks, boxes = sample.target["masks"], sample.target["boxes"]
    assert boxes.tolist() == [[10, 20, 40, 50], [80, 5, 90, 15], [50, 55, 51, 56]]
    assert mask_areas(masks, boxes).tolist() == [800, 100, 1] == masks.sum(dim=(1, 2)).tolist()
    assert mask_bounds(torch.zeros(1, 5, 5, dtype=torch.bool)).tolist() == [[0, 0, 0, 0]]
    assert mask_bounds(masks[:1], torch.tensor([[0, 0, 20, 30]])).tolist() == [[10, 20, 20, 30]]
    assert mask_bounds(masks[:0]).shape == (0, 4) and mask_areas(masks[:0], boxes[:0]).shape == (0,)


@pytest.mark.parametrize("shape", [(30, 45), (120, 180), (47, 101), (60, 45), (7, 200)])
def test_resize_takes_the_pixel_at_each_center(sample, shape):
    resized = resize(sample, *shape)
    assert resized.shape == shape
    assert_consistent(resized)
    rows = np.floor((np.arange(shape[0]) + 0.5) * 60 / shape[0]).astype(int)
    columns = np.floor((np.arange(shape[1]) + 0.5) * 90 / shape[1]).astype(int)
    expected = sample.target["masks"].numpy()[:, rows][:, :, columns]
    visible = expected.any(axis=(1, 2))
    assert np.array_equal(resized.target["masks"].numpy(), expected[visible])
    assert resized.target["labels"].tolist() == np.array([4, 2, 7])[visible].tolist()
    assert resized.target["labelled"].tolist() == [2, 4, 7]


def test_resize_drops_vanished_instances(sample):
    assert resize(sample, 20, 90).target["labels"].tolist() == [4, 2, 7]  # the single pixel is at a center
    assert resize(sample, 20, 30).target["labels"].tolist() == [4, 2]


def test_resize_keeps_image_and_masks_aligned():
    mask = bitmap(64, 96, 20, 10, 60, 50)
    image = torch.from_numpy(np.repeat(mask[None] * np.uint8(255), 3, axis=0))
    sample = make_sample(
        image,
        torch.from_numpy(mask[None]),
        torch.tensor([[20.0, 10, 60, 50]]),
        torch.tensor([0]),
        torch.tensor([False]),
        None,
    )
    for shape in [(41, 61), (128, 192), (200, 111)]:
        resized = resize(sample, *shape)
        bright = resized.image[0] > 127
        assert (bright ^ resized.target["masks"][0]).float().mean() < 0.004


def test_resize_masks_without_instances():
    assert resize_masks(torch.zeros(0, 8, 8, dtype=torch.bool), torch.zeros(0, 4), 5, 7).shape == (0, 5, 7)


def test_flip(sample):
    flipped = flip(sample)
    assert_consistent(flipped)
    assert torch.equal(flipped.image, sample.image.flip(-1))
    assert torch.equal(flipped.target["masks"], sample.target["masks"].flip(-1))
    assert flipped.target["boxes"][0].tolist() == [50, 20, 80, 50]
    assert torch.equal(flip(flipped).image, sample.image)


def test_crop(sample):
    cropped = crop(sample, 25, 15, 20, 70)
    assert_consistent(cropped)
    assert torch.equal(cropped.image, sample.image[:, 25:45, 15:85])
    assert cropped.target["labels"].tolist() == [4]  # the other instances have no pixel in the window
    assert torch.equal(cropped.target["masks"][0], sample.target["masks"][0, 25:45, 15:85])
    assert cropped.target["boxes"].tolist() == [[0, 0, 25, 20]]
    hole = crop(sample, 30, 20, 10, 10)
    assert hole.target["labels"].shape == (0,) and hole.target["masks"].shape == (0, 10, 10)


def test_pad(sample):
    padded = pad(sample, 70, 95, fill=(1, 2, 3))
    assert_consistent(padded)
    assert padded.shape == (70, 95)
    assert torch.equal(padded.image[:, :60, :90], sample.image)
    assert padded.image[:, 60:].flatten(1).unique(dim=1).flatten().tolist() == [1, 2, 3]
    assert torch.equal(padded.target["boxes"], sample.target["boxes"])
    assert not padded.target["masks"][:, 60:].any() and not padded.target["masks"][:, :, 90:].any()


def test_select_instances(sample):
    selected = select_instances(sample.target, torch.tensor([True, False, True]))
    assert selected["labels"].tolist() == [4, 7]
    assert len(selected["masks"]) == len(selected["iscrowd"]) == 2
    assert selected["labelled"].tolist() == [2, 4, 7]
    assert sample.target["labels"].tolist() == [4, 2, 7]
