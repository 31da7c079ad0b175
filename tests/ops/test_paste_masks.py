"""Pasted masks beside two interpolations in float64."""

import pytest
import torch
import torch.nn.functional as F
from helpers.kernels import IMPLEMENTATIONS, use_implementation

from solo_infer.ops import packed_masks, paste_by_tiles
from solo_infer.ops import paste_masks as paste_masks_module
from solo_infer.ops.native import paste_masks as paste_masks_native
from solo_infer.ops.paste_masks import _paste_by_interpolation, paste_masks

CASES = [
    ((8, 12), (32, 48), (32, 48), (32, 48)),
    ((8, 8), (32, 32), (27, 31), (45, 52)),
    ((5, 7), (20, 28), (19, 28), (9, 13)),
    ((2, 3), (8, 12), (1, 1), (1, 1)),
    ((4, 4), (17, 15), (16, 15), (33, 131)),
    ((10, 11), (40, 44), (40, 44), (3, 5)),
    ((9, 6), (70, 90), (70, 90), (70, 90)),
]


@pytest.fixture(autouse=True, params=IMPLEMENTATIONS)
def implementation(request, monkeypatch):
    use_implementation(request.param, monkeypatch)
    return request.param


def random_masks(size):
    soft = torch.rand(3, *size, generator=torch.Generator().manual_seed(5))
    soft[1] = 0.0
    return soft


def reference_scores(soft, padded, resized, original):
    maps = F.interpolate(soft[None].double(), size=padded, mode="bilinear", align_corners=False)
    maps = maps[:, :, : resized[0], : resized[1]]
    return F.interpolate(maps, size=original, mode="bilinear", align_corners=False)[0]


@pytest.mark.parametrize("size, padded, resized, original", CASES)
def test_both_implementations_equal_two_interpolations(size, padded, resized, original):
    soft, threshold = random_masks(size), 0.4
    scores = reference_scores(soft, padded, resized, original)
    packed, boxes = paste_masks(soft, padded, resized, original, threshold)
    assert torch.equal(boxes, packed_masks.mask_boxes(packed, original[1])) and boxes.dtype == torch.float32
    assert boxes[1].tolist() == [0, 0, 0, 0]
    interpolated = _paste_by_interpolation(soft, padded, resized, original, threshold)
    for result in (packed, interpolated):
        assert result.shape == (3, original[0], (original[1] + 7) // 8) and result.dtype == torch.uint8
        assert not (packed_masks.pack(scores > threshold + 1e-5) & ~result).any()
        assert not (result & ~packed_masks.pack(scores > threshold - 1e-5)).any()


@pytest.mark.parametrize("size, padded, resized, original", CASES)
def test_single_pixels_are_pasted_where_two_interpolations_put_them(size, padded, resized, original):
    soft = torch.zeros(size[0] * size[1], *size)
    soft.view(len(soft), -1).fill_diagonal_(1.0)
    scores = reference_scores(soft, padded, resized, original)
    packed = paste_masks(soft, padded, resized, original, 0.3).packed
    assert not (packed_masks.pack(scores > 0.3 + 1e-5) & ~packed).any()
    assert not (packed & ~packed_masks.pack(scores > 0.3 - 1e-5)).any()


def test_mask_in_the_padding_only_is_empty():
    soft = torch.zeros(1, 8, 8)
    soft[0, 7, 7] = 1.0
    pasted = paste_masks(soft, (32, 32), (16, 16), (40, 40), 0.5)
    assert not pasted.packed.any() and pasted.boxes.tolist() == [[0, 0, 0, 0]]


@pytest.mark.parametrize(
    "settings", [{"TILE_ROWS": 1, "TILE_COLUMNS": 8}, {"TILE_ROWS": 512}, {"TILES_BYTES": 1}]
)
def test_size_of_tiles_does_not_change_masks(monkeypatch, settings, implementation):
    if implementation != "torch":
        pytest.skip("the kernel has no tiles")
    arguments = random_masks((20, 24)), (80, 96), (77, 91), (145, 202), 0.5
    expected = paste_masks(*arguments).packed
    for name, value in settings.items():
        monkeypatch.setattr(paste_by_tiles, f"_{name}", value)
    paste_by_tiles._tiles.cache_clear()
    try:
        assert torch.equal(paste_masks(*arguments).packed, expected)
    finally:
        paste_by_tiles._tiles.cache_clear()


@pytest.mark.parametrize("original", [(145, 202), (300, 411), (60, 72), (1100, 1399)])
def test_disks_and_full_masks(original):
    """Most of their pixels are in tiles that are not computed, because all inputs are inside or outside."""
    y, x = torch.meshgrid(torch.arange(40.0), torch.arange(48.0), indexing="ij")
    disk = ((12.5 - ((y - 17.2) ** 2 + (x - 22.9) ** 2).sqrt()) / 3 + 0.5).clamp(0, 1)
    soft = torch.stack([disk, torch.ones(40, 48), 1 - disk])
    sizes = (160, 192), (151, 190), original
    packed = paste_masks(soft, *sizes, 0.4).packed
    scores = reference_scores(soft, *sizes)
    assert torch.equal(packed, packed_masks.pack(scores > 0.4))
    assert packed_masks.popcount(packed.flatten(1))[1] == original[0] * original[1]


def test_small_masks_in_a_large_image():
    soft = torch.zeros(3, 20, 24)
    soft[0, 0, 0], soft[1, 19, 23], soft[2, 7:9, 11:14] = 1.0, 0.9, 0.8
    sizes = (80, 96), (80, 96), (1600, 1923)
    expected = _paste_by_interpolation(soft, *sizes, 0.5)
    assert (
        torch.equal(paste_masks(soft, *sizes, 0.5).packed, expected) and expected.flatten(1).any(dim=1).all()
    )


def test_masks_do_not_depend_on_the_others():
    soft, sizes = random_masks((20, 24)), ((80, 96), (77, 91), (145, 202))
    expected = paste_masks(soft, *sizes, 0.5).packed
    alone = torch.cat([paste_masks(mask[None], *sizes, 0.5).packed for mask in soft])
    assert torch.equal(alone, expected)


def test_chunks_give_equal_masks(monkeypatch):
    arguments = random_masks((8, 8)), (32, 32), (27, 31), (45, 52), 0.5
    interpolated, packed = _paste_by_interpolation(*arguments), paste_masks(*arguments).packed
    monkeypatch.setattr(paste_masks_module, "_CHUNK_BYTES", 1)
    assert torch.equal(_paste_by_interpolation(*arguments), interpolated)
    assert torch.equal(paste_masks(*arguments).packed, packed)


@pytest.mark.parametrize("paste", [paste_masks, lambda *arguments: (_paste_by_interpolation(*arguments),)])
def test_pasting_no_masks(paste):
    packed, *boxes = paste(torch.zeros(0, 4, 4), (16, 16), (16, 16), (10, 11), 0.5)
    assert packed.shape == (0, 10, 2) and packed.dtype == torch.uint8
    assert all(tensor.shape == (0, 4) for tensor in boxes)


def test_cached_matrices_ignore_the_default_dtype_and_device():
    soft = random_masks((6, 9))
    sizes = (24, 36), (23, 35), (40, 41)
    expected = paste_masks(soft, *sizes, 0.5)
    paste_by_tiles._tiles.cache_clear()
    paste_masks_native._taps.cache_clear()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            pasted = paste_masks(soft, *sizes, 0.5)
    finally:
        torch.set_default_dtype(torch.float32)
        paste_by_tiles._tiles.cache_clear()
    assert all(map(torch.equal, pasted, expected))


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_result_does_not_depend_on_the_number_of_threads(threads):
    soft, sizes = torch.cat([random_masks((20, 24))] * 3), ((80, 96), (77, 91), (145, 202))
    expected = paste_masks(soft[:1], *sizes, 0.5)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        pasted = paste_masks(soft, *sizes, 0.5)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(pasted.packed[::3], expected.packed.expand(3, -1, -1))
    assert torch.equal(pasted.boxes[::3], expected.boxes.expand(3, -1))


def test_masks_that_are_views():
    soft, sizes = random_masks((20, 24)), ((80, 96), (77, 91), (145, 202))
    expected = paste_masks(soft, *sizes, 0.5).packed
    larger = torch.zeros(3, 24, 31)
    larger[:, 2:22, 5:29] = soft
    for view in (larger[:, 2:22, 5:29], soft.mT.contiguous().mT):
        assert torch.equal(paste_masks(view, *sizes, 0.5).packed, expected)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_scores_that_are_not_finite_stay_where_they_are(value):
    soft = torch.zeros(2, 20, 24)
    soft[:, 15:, :9] = 1
    soft[1, 2:4, 18:20] = value
    packed = paste_masks(soft, (80, 96), (80, 96), (160, 192), 0.5).packed
    assert torch.equal(packed[0, :, : 14 * 8 // 8], packed[1, :, : 14 * 8 // 8])
    assert torch.equal(packed[0, 60:], packed[1, 60:]) and packed[0].any()
