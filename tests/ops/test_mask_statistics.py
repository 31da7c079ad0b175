"""Statistics of masks beside their definitions."""

import pytest
import torch
import torch.nn.functional as F
from helpers.kernels import IMPLEMENTATIONS, use_implementation

from solo_infer.ops import mask_statistics as module
from solo_infer.ops import packed_masks
from solo_infer.ops.mask_statistics import (
    axis_mask_scores,
    axis_mask_statistics,
    cell_mask_scores,
    cell_mask_statistics,
    mask_statistics,
)

SIZES, OUT_SIZE = ((8, 12), (4, 6), (2, 3)), (16, 24)


def random_logits(images=2, count=7, sizes=SIZES):
    pixels = sum(height * width for height, width in sizes)
    return 8 * torch.rand(images, count, pixels, generator=torch.Generator().manual_seed(0)) - 4


def random_axes():
    generator = torch.Generator().manual_seed(1)
    column_masks, row_masks = torch.rand(2, 2, 5, 9, 13, generator=generator)
    columns, rows = torch.randint(5, (2, 2, 7), generator=generator)
    return column_masks, row_masks, columns, rows


def assert_statistics(statistics, scores, threshold):
    inside = scores > threshold
    assert statistics.areas.dtype == statistics.sums.dtype == torch.float32
    assert torch.equal(statistics.areas, inside.sum((-1, -2)).float())
    torch.testing.assert_close(statistics.sums, (scores * inside).sum((-1, -2)), rtol=1e-5, atol=1e-5)
    assert torch.equal(statistics.packed, packed_masks.pack(inside.flatten(-2)))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("shape", [(5, 9, 7), (2, 3, 4, 8), (0, 4, 4), (3, 5), (2, 0, 4), (3, 80, 61)])
@pytest.mark.parametrize("threshold", [0.0, 0.4, 1.0])
def test_mask_statistics(shape, threshold, implementation, monkeypatch):
    use_implementation(implementation, monkeypatch)
    scores = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    scores[scores < 0.05] = 0.0
    assert_statistics(mask_statistics(scores.clone(), threshold), scores, threshold)
    strided = scores.transpose(0, 1).contiguous().transpose(0, 1)
    assert_statistics(mask_statistics(strided, threshold), scores, threshold)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_scores_that_are_not_finite(implementation, monkeypatch):
    use_implementation(implementation, monkeypatch)
    scores = torch.rand(3, 40, 50, generator=torch.Generator().manual_seed(0))
    scores[0, ::3, ::7], scores[1, 5, 5], scores[2, 8, 8] = torch.nan, torch.inf, -torch.inf
    statistics = mask_statistics(scores.clone(), 0.5)
    inside = scores > 0.5
    assert torch.equal(statistics.packed, packed_masks.pack(inside.flatten(1)))
    assert torch.equal(statistics.areas, inside.flatten(1).sum(dim=1).float())
    assert statistics.sums[1] == torch.inf and statistics.sums[2].isfinite()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_gradients_of_sums(implementation, monkeypatch):
    use_implementation(implementation, monkeypatch)
    scores = torch.rand(2, 5, 6, generator=torch.Generator().manual_seed(0)).requires_grad_(True)
    mask_statistics(scores * 1.0, 0.5).sums.sum().backward()
    assert torch.equal(scores.grad, (scores > 0.5).float())


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_sums_of_large_masks(implementation, monkeypatch):
    use_implementation(implementation, monkeypatch)
    scores = torch.full((1, 2000, 2000), 0.7)
    assert mask_statistics(scores, 0.5).sums.item() == pytest.approx(0.7 * 4e6, rel=1e-5)


def test_cell_mask_scores_of_each_level():
    logits, levels = random_logits(count=5), torch.arange(5).expand(2, 5)
    scores = cell_mask_scores(logits, levels, SIZES, OUT_SIZE)
    assert scores.shape == (2, 5, *OUT_SIZE)
    maps = logits.split([height * width for height, width in SIZES], dim=2)
    for level, size_index in enumerate((0, 0, 1, 2, 2)):
        height, width = SIZES[size_index]
        logit_map = maps[size_index][:, level, None].unflatten(2, (height, width))
        expected = F.interpolate(logit_map, size=(2 * height, 2 * width), mode="bilinear").sigmoid()
        expected = F.interpolate(expected, size=OUT_SIZE, mode="bilinear")
        torch.testing.assert_close(scores[:, level, None], expected, rtol=0, atol=1e-6)


def test_cell_mask_scores_of_other_level_sizes():
    """All five levels have one size, or all have different ones."""
    sizes = [(4, 6)]
    logits, levels = random_logits(count=5, sizes=sizes), torch.arange(5).expand(2, 5)
    scores = cell_mask_scores(logits, levels, sizes, (8, 12), first_levels=[0])
    doubled = F.interpolate(logits.unflatten(2, (4, 6)), scale_factor=2.0, mode="bilinear")
    torch.testing.assert_close(scores, doubled.sigmoid(), rtol=0, atol=1e-6)
    sizes = [(10, 12), (8, 9), (4, 6), (3, 2), (1, 1)]
    logits = random_logits(count=5, sizes=sizes)
    scores = cell_mask_scores(logits, levels, sizes, (20, 24), first_levels=range(5))
    maps = logits.split([height * width for height, width in sizes], dim=2)
    for level, (size, level_logits) in enumerate(zip(sizes, maps, strict=True)):
        expected = cell_mask_scores(level_logits, levels, [size], (20, 24), first_levels=[0])
        assert torch.equal(scores[:, level], expected[:, level])
    statistics = cell_mask_statistics(logits, levels, sizes, (20, 24), 0.5, first_levels=range(5))
    assert_statistics(statistics, scores, 0.5)


def test_cell_mask_scores_need_sizes():
    with pytest.raises(ValueError, match="sizes is empty"):
        cell_mask_scores(torch.zeros(1, 1, 0), torch.zeros(1, 1).long(), (), (4, 4), ())


@pytest.mark.parametrize("chunk_bytes", [1, 3 * 2 * 4 * 16 * 24, 1 << 30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cell_mask_statistics(dtype, chunk_bytes, monkeypatch):
    monkeypatch.setattr(module, "_CHUNK_BYTES", chunk_bytes)
    logits, levels = random_logits().to(dtype), torch.arange(14).view(2, 7) % 5
    scores = cell_mask_scores(logits, levels, SIZES, OUT_SIZE)
    assert scores.dtype == torch.float32
    assert_statistics(cell_mask_statistics(logits, levels, SIZES, OUT_SIZE, 0.4), scores, 0.4)


@pytest.mark.parametrize("chunk_bytes", [1, 3 * 2 * 4 * 9 * 13, 1 << 30])
def test_axis_mask_statistics(chunk_bytes, monkeypatch):
    monkeypatch.setattr(module, "_CHUNK_BYTES", chunk_bytes)
    column_masks, row_masks, columns, rows = random_axes()
    scores = axis_mask_scores(column_masks, row_masks, columns, rows)
    assert torch.equal(scores[1, 3], column_masks[1, columns[1, 3]] * row_masks[1, rows[1, 3]])
    assert_statistics(axis_mask_statistics(column_masks, row_masks, columns, rows, 0.3), scores, 0.3)


def test_kernel_supports_three_level_sizes_only():
    logits, levels = torch.zeros(1, 1, 126), torch.zeros(1, 1).long()
    assert module._supports_cells(logits, levels, SIZES, OUT_SIZE, 0.5)
    assert module._supports_cells(logits, levels, SIZES, [16, 24], 0.5, first_levels=[0, 2, 3])
    assert not module._supports_cells(logits, levels, SIZES, (16, 25), 0.5)
    assert not module._supports_cells(logits, levels, SIZES, OUT_SIZE, 0.5, (0, 1, 2))
    assert not module._supports_cells(logits[:, :0], levels[:, :0], SIZES, OUT_SIZE, 0.5)
    assert not module._supports_axes(None, None, levels[:, :0], levels[:, :0], 0.5)
