"""Masks of Tiny's cells: tiles beside whole masks, limits, thresholds."""

import pytest
import torch
from helpers.kernels import IMPLEMENTATIONS, use_implementation

from solo_infer.inference import tiny_masks
from solo_infer.inference.tiny_masks import cell_mask_logits, cell_masks, soft_masks
from solo_infer.ops import packed_masks

SIZE = (24, 40)  # of the mask features; 96 x 160 input pixels


@pytest.fixture(params=IMPLEMENTATIONS, autouse=True)
def implementation(request, monkeypatch):
    use_implementation(request.param, monkeypatch)
    return request.param


def random_cells(count, seed=0, size=SIZE, dtype=torch.float32):
    """Return kernels, boxes within and beyond the input, and mask features."""
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(count, 2, 2, generator=generator) * torch.tensor([220.0, 160.0]) - 30
    boxes = torch.cat([corners.amin(dim=1), corners.amax(dim=1)], dim=1)
    kernels = torch.randn(count, 5 + 6, generator=generator)
    features = torch.randn(5, *size, generator=generator).to(dtype)
    return kernels, boxes, features.to(memory_format=torch.preserve_format)


def assert_equal_masks(masks, logits, threshold):
    """Compare masks with logits of all pixels, except where a score is within 1e-5 of the threshold."""
    scores = logits.sigmoid()
    inside = scores > threshold
    statistics = masks.statistics(threshold)
    unsure = ((scores - threshold).abs() < 1e-5).flatten(1).sum(dim=1)
    assert ((statistics.areas - inside.flatten(1).sum(dim=1)).abs() <= unsure).all()
    sums = (scores * inside).flatten(1).sum(dim=1)
    torch.testing.assert_close(statistics.sums, sums, rtol=1e-4, atol=1e-3)
    assert torch.equal(packed_masks.popcount(statistics.packed).float(), statistics.areas)
    index = torch.arange(len(logits)).flip(0)[::2]
    torch.testing.assert_close(masks.soft(index), soft_masks(logits[index]), rtol=0, atol=1e-4)


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", ["rows", "channels_last"])
def test_tiles_equal_whole_masks(threshold, dtype, layout):
    kernels, boxes, features = random_cells(40, dtype=dtype)
    if layout == "channels_last":
        features = features[None].to(memory_format=torch.channels_last)[0]
    masks = cell_masks(kernels, boxes, features)
    assert isinstance(masks, tiny_masks._TiledMasks)
    logits = cell_mask_logits(kernels, boxes, features)
    if threshold == 0.0:  # pixels with the lowest logit are outside
        logits = torch.where(logits <= -15.0, -torch.inf, logits)
        assert masks.statistics(threshold).areas.sum() > 0
        assert ((masks.statistics(threshold).areas - (logits > -15).flatten(1).sum(dim=1)).abs() <= 2).all()
    else:
        assert_equal_masks(masks, logits, threshold)


def test_tiles_are_few_for_small_boxes():
    kernels, _, features = random_cells(3)
    boxes = torch.tensor([[8.0, 8, 20, 20], [40.0, 40, 60, 60], [100.0, 60, 158, 90]])
    masks = cell_masks(kernels, boxes, features)
    assert len(masks._logits) == 1 + 1 + 6
    assert_equal_masks(masks, cell_mask_logits(kernels, boxes, features), 0.5)


@pytest.mark.parametrize("size", [(23, 40), (24, 33)])
def test_sizes_that_tiles_do_not_fill_use_whole_masks(size):
    kernels, boxes, features = random_cells(9, size=size)
    masks = cell_masks(kernels, boxes, features)
    assert not isinstance(masks, tiny_masks._TiledMasks)
    assert_equal_masks(masks, cell_mask_logits(kernels, boxes, features), 0.5)


@pytest.mark.parametrize("size", [(8, 8), (80, 128)])
def test_logits_equal_those_of_torch(size, implementation, monkeypatch):
    if implementation == "torch":
        pytest.skip("needs the kernel")
    kernels, boxes, features = random_cells(30, seed=2, size=size)
    boxes = torch.cat([boxes, torch.tensor([[-50.0, -50, 700, 400], [10, 10, 10, 10], [40, 30, 38, 25]])])
    kernels = torch.cat([kernels, kernels[:3]])
    masks = cell_masks(kernels, boxes, features)
    use_implementation("torch", monkeypatch)
    expected = cell_masks(kernels, boxes, features)
    assert torch.equal(masks._tiles, expected._tiles) and torch.equal(masks._masks, expected._masks)
    # The terms of small boxes are thousands of times as large as their sum.
    torch.testing.assert_close(masks._logits, expected._logits, rtol=0, atol=5e-3)


def test_numbers_of_threads_do_not_change_logits():
    cells, threads = random_cells(60, seed=3), torch.get_num_threads()
    try:
        logits = []
        for number in (1, 2, 5):
            torch.set_num_threads(number)
            logits.append(cell_masks(*cells)._logits)
    finally:
        torch.set_num_threads(threads)
    torch.testing.assert_close(logits[1], logits[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(logits[2], logits[0], rtol=0, atol=1e-5)


def test_products_in_chunks(monkeypatch):
    cells = random_cells(30, seed=1)
    expected = cell_masks(*cells)
    monkeypatch.setattr(tiny_masks, "_PRODUCT_BYTES", 1)
    masks = cell_masks(*cells)
    torch.testing.assert_close(masks._logits, expected._logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize("threshold", [0.0, 0.5, 1.0])
def test_boxes_outside_of_the_input_have_empty_masks(threshold):
    kernels, _, features = random_cells(2)
    boxes = torch.tensor([[300.0, 300, 340, 340], [-80.0, 10, -20, 50]])
    for cells in ((kernels, boxes, features), (kernels[:0], boxes[:0], features)):
        masks = cell_masks(*cells)
        assert not masks.statistics(threshold).areas.any()
        assert masks.soft(torch.arange(len(cells[1]))).shape == (len(cells[1]), *SIZE)


def test_whole_masks_are_outside_at_the_lowest_logit():
    """A threshold of 0 does not select the pixels beyond the box, whose score is just above 0."""
    kernels, _, features = random_cells(1)
    box = torch.tensor([[40.0, 40, 60, 60]])
    logits = cell_mask_logits(kernels, box, features)
    whole = tiny_masks._WholeMasks(logits).statistics(0.0)
    assert whole.areas.tolist() == [(logits > -15).sum().item()]
    assert torch.equal(whole.areas, cell_masks(kernels, box, features).statistics(0.0).areas)
