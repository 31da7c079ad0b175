"""Masks stored as windows against full-size masks."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.results import PETS, assert_same

from solo_infer import Result
from solo_infer.ops import packed_masks, rle
from solo_infer.ops.mask_crops import MaskCrop, MaskCrops

SIZE = (37, 61)  # not multiples of 8


def crop_of(mask):
    """Return a mask (H, W), bool, as the window of its pixels."""
    rows, columns = mask.any(axis=1).nonzero()[0], mask.any(axis=0).nonzero()[0]
    packed = packed_masks.pack(torch.from_numpy(mask))
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0] // 8, columns[-1] // 8 + 1
    return MaskCrop(packed[top:bottom, left:right].clone(), int(top), int(left), mask.shape)


def random_masks(count, seed=0):
    rng = np.random.default_rng(seed)
    masks = np.zeros((count, *SIZE), bool)
    for mask in masks:
        top, left = rng.integers(0, SIZE)
        mask[top : top + rng.integers(1, 40), left : left + rng.integers(1, 65)] = True
        mask &= rng.random(SIZE) < rng.choice([0.5, 0.95, 1.0])
        mask[top, left] = True
    masks[0] = True
    return masks


@pytest.fixture(scope="module")
def masks():
    return random_masks(12)


@pytest.fixture(scope="module")
def crops(masks):
    return MaskCrops.join([crop_of(mask) for mask in masks], SIZE, torch.device("cpu"))


def result_of(packed, count):
    return Result(
        scores=torch.linspace(0.9, 0.1, count),
        labels=torch.arange(count) % 3,
        boxes=torch.arange(4.0 * count).reshape(count, 4),
        packed_masks=packed,
        image_size=SIZE,
        categories=PETS,
    )


def test_full_masks(masks, crops):
    expected = packed_masks.pack(torch.from_numpy(masks))
    assert torch.equal(crops.full(), expected) and crops.shape == expected.shape
    assert np.array_equal(crops.masks().numpy(), masks)
    for crop, mask in zip(crops, masks, strict=True):
        assert np.array_equal(crop.mask().numpy(), mask)
        assert torch.equal(crop.full(), packed_masks.pack(torch.from_numpy(mask)))


@pytest.mark.parametrize("seed", range(5))
def test_rle_of_a_window_is_that_of_the_full_mask(seed):
    for mask in random_masks(40, seed):
        inside, top, left = crop_of(mask).window()
        assert rle.encode_window(inside.numpy(), top, left, SIZE) == rle.encode(mask)


@pytest.mark.parametrize("columns", [slice(None), slice(0, 1), slice(60, 61), slice(8, 24)])
def test_rle_of_full_columns(columns):
    """Runs that continue from the bottom of a column at the top of the next one are one run."""
    mask = np.zeros(SIZE, bool)
    mask[:, columns] = True
    inside, top, left = crop_of(mask).window()
    assert rle.encode_window(inside.numpy(), top, left, SIZE) == rle.encode(mask)


def test_rle_of_an_empty_window():
    assert rle.encode_window(np.zeros((3, 8), bool), 2, 8, SIZE) == rle.encode(np.zeros(SIZE, bool))


@pytest.mark.parametrize(
    "index",
    [
        3,
        -1,
        slice(2, 7),
        slice(None, None, -1),
        [4, 0, 4],
        np.arange(12) % 2 == 0,
        torch.tensor([], dtype=int),
    ],
    ids=str,
)
def test_result_with_windows_is_one_with_full_masks(masks, crops, index):
    windows = result_of(crops, 12)[index]
    full = result_of(packed_masks.pack(torch.from_numpy(masks)), 12)[index]
    if isinstance(index, int):
        assert torch.equal(windows.mask, full.mask)
        assert windows.rle() == full.rle()
        return
    assert_same(result_of_full(windows), full)
    assert torch.equal(windows.masks, full.masks)
    assert windows.to_dict() == full.to_dict()
    assert windows.to_coco() == full.to_coco()
    for instance, expected in zip(windows, full, strict=True):
        assert torch.equal(instance.mask, expected.mask)
        assert (instance.score, instance.box) == (expected.score, expected.box)


def result_of_full(result):
    return replace(result, packed_masks=result.packed_masks.full())


def test_result_with_windows_is_drawn_filtered_and_moved(masks, crops):
    image = np.full((*SIZE, 3), 99, np.uint8)
    windows, full = (result_of(packed, 12) for packed in (crops, packed_masks.pack(torch.from_numpy(masks))))
    boxes = packed_masks.mask_boxes(full.packed_masks, SIZE[1])
    windows.boxes[:], full.boxes[:] = boxes, boxes
    assert np.array_equal(np.array(windows.plot(image)), np.array(full.plot(image)))
    assert len(windows.filter(0.5, classes="cat")) == len(full.filter(0.5, classes="cat")) > 0
    moved = windows.to("cpu")
    assert torch.equal(moved.masks, full.masks) and moved.packed_masks.device == torch.device("cpu")
    assert np.array_equal(windows.numpy()["masks"], masks)


def test_selected_windows_share_no_memory(crops):
    selected = crops[torch.tensor([0, 3])]
    selected.data.zero_()
    assert crops.full()[0].any()
    instance = result_of(crops, 12)[0]
    instance._packed.packed.zero_()
    assert crops.full()[0].any()


def test_no_masks():
    crops = MaskCrops.join([], SIZE, torch.device("cpu"))
    assert len(crops) == 0 and crops.full().shape == (0, 37, 8) and crops.masks().shape == (0, *SIZE)
    assert list(crops) == [] and len(crops[torch.zeros(0, dtype=torch.int64)]) == 0


def test_large_masks_take_the_memory_of_their_windows():
    size = (20_000, 20_000)
    crop = MaskCrop(torch.full((100, 10), 255, dtype=torch.uint8), 7_000, 1_000, size)
    crops = MaskCrops.join([crop] * 5_000, size, torch.device("cpu"))
    assert crops.data.numel() == 5_000 * 1_000
    encoded = result_of(crops, 5_000)[4_999].rle()
    assert encoded["size"] == list(size) and len(encoded["counts"]) < 1_000
