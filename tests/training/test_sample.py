import numpy as np
import pytest
import torch
from helpers.training_sets import bitmap, pixels_of

from solo_infer.training.sample import (
    areas,
    bounds,
    chosen,
    crop,
    flip,
    make_sample,
    pad,
    resize,
    resize_masks,
)


def sample_of(masks, labels=None, iscrowd=None, labelled=None, name="x"):
    masks = torch.from_numpy(np.asarray(masks))
    count, height, width = masks.shape
    return make_sample(
        torch.from_numpy(pixels_of(name, height, width)).permute(2, 0, 1),
        masks,
        bounds(masks),
        torch.arange(count) if labels is None else torch.tensor(labels),
        torch.zeros(count, dtype=torch.bool) if iscrowd is None else torch.tensor(iscrowd),
        labelled,
    )


@pytest.fixture
def sample():
    """A ring-like mask, a small one at the right edge, and a single pixel."""
    ring = bitmap(60, 90, 10, 20, 40, 50)
    ring[30:40, 20:30] = False
    masks = [ring, bitmap(60, 90, 80, 5, 90, 15), bitmap(60, 90, 50, 55, 51, 56)]
    return sample_of(masks, labels=[4, 2, 7], iscrowd=[False, True, False], labelled=torch.tensor([2, 4, 7]))


def assert_fits(sample):
    """What holds of every sample."""
    image, target = sample
    assert image.dtype == torch.uint8 and target["masks"].dtype == torch.bool
    assert target["masks"].shape[1:] == image.shape[1:]
    assert target["masks"].flatten(1).any(dim=1).all()
    assert torch.equal(bounds(target["masks"]), target["boxes"].as_subclass(torch.Tensor))
    assert target["boxes"].canvas_size == tuple(image.shape[1:])
    assert len(target["labels"]) == len(target["iscrowd"]) == len(target["masks"])


def test_bounds_and_areas(sample):
    masks, boxes = sample.target["masks"], sample.target["boxes"]
    assert boxes.tolist() == [[10, 20, 40, 50], [80, 5, 90, 15], [50, 55, 51, 56]]
    assert areas(masks, boxes).tolist() == [800, 100, 1] == masks.sum(dim=(1, 2)).tolist()
    assert bounds(torch.zeros(1, 5, 5, dtype=torch.bool)).tolist() == [[0, 0, 0, 0]]
    assert bounds(masks[:1], torch.tensor([[0, 0, 20, 30]])).tolist() == [[10, 20, 20, 30]]
    assert bounds(masks[:0]).shape == (0, 4) and areas(masks[:0], boxes[:0]).shape == (0,)


@pytest.mark.parametrize("shape", [(30, 45), (120, 180), (47, 101), (60, 45), (7, 200)])
def test_resize(sample, shape):
    resized = resize(sample, *shape)
    assert resized.shape == shape
    assert_fits(resized)
    # Each new pixel takes the old one under its center.
    rows = np.floor((np.arange(shape[0]) + 0.5) * 60 / shape[0]).astype(int)
    columns = np.floor((np.arange(shape[1]) + 0.5) * 90 / shape[1]).astype(int)
    expected = sample.target["masks"].numpy()[:, rows][:, :, columns]
    left = expected.any(axis=(1, 2))
    assert np.array_equal(resized.target["masks"].numpy(), expected[left])
    assert resized.target["labels"].tolist() == [
        label for label, some in zip([4, 2, 7], left, strict=True) if some
    ]
    assert resized.target["labelled"].tolist() == [2, 4, 7]


def test_resize_drops_what_vanishes(sample):
    assert resize(sample, 20, 90).target["labels"].tolist() == [4, 2, 7]  # the pixel lies under a center
    assert resize(sample, 20, 30).target["labels"].tolist() == [4, 2]


def test_resize_moves_image_and_masks_alike():
    mask = bitmap(64, 96, 20, 10, 60, 50)
    image = torch.from_numpy(np.repeat(mask[None] * np.uint8(255), 3, axis=0))
    made = make_sample(
        image,
        torch.from_numpy(mask[None]),
        torch.tensor([[20.0, 10, 60, 50]]),
        torch.tensor([0]),
        torch.tensor([False]),
        None,
    )
    for shape in [(41, 61), (128, 192), (200, 111)]:
        resized = resize(made, *shape)
        bright = resized.image[0] > 127
        assert (bright ^ resized.target["masks"][0]).float().mean() < 0.004


def test_resize_masks_of_nothing():
    assert resize_masks(torch.zeros(0, 8, 8, dtype=torch.bool), torch.zeros(0, 4), 5, 7).shape == (0, 5, 7)


def test_flip(sample):
    flipped = flip(sample)
    assert_fits(flipped)
    assert torch.equal(flipped.image, sample.image.flip(-1))
    assert torch.equal(flipped.target["masks"], sample.target["masks"].flip(-1))
    assert flipped.target["boxes"][0].tolist() == [50, 20, 80, 50]
    assert torch.equal(flip(flipped).image, sample.image)


def test_crop(sample):
    cropped = crop(sample, 25, 15, 20, 70)
    assert_fits(cropped)
    assert torch.equal(cropped.image, sample.image[:, 25:45, 15:85])
    assert cropped.target["labels"].tolist() == [4]  # the others have no pixel in it
    assert torch.equal(cropped.target["masks"][0], sample.target["masks"][0, 25:45, 15:85])
    assert cropped.target["boxes"].tolist() == [[0, 0, 25, 20]]
    hole = crop(sample, 30, 20, 10, 10)
    assert hole.target["labels"].shape == (0,) and hole.target["masks"].shape == (0, 10, 10)


def test_pad(sample):
    padded = pad(sample, 70, 95, fill=(1, 2, 3))
    assert_fits(padded)
    assert padded.shape == (70, 95)
    assert torch.equal(padded.image[:, :60, :90], sample.image)
    assert padded.image[:, 60:].flatten(1).unique(dim=1).flatten().tolist() == [1, 2, 3]
    assert torch.equal(padded.target["boxes"], sample.target["boxes"])
    assert not padded.target["masks"][:, 60:].any() and not padded.target["masks"][:, :, 90:].any()


def test_chosen(sample):
    kept = chosen(sample.target, torch.tensor([True, False, True]))
    assert kept["labels"].tolist() == [4, 7] and len(kept["masks"]) == len(kept["iscrowd"]) == 2
    assert kept["labelled"].tolist() == [2, 4, 7]
    assert sample.target["labels"].tolist() == [4, 2, 7]
