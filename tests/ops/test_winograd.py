"""Winograd convolutions beside direct ones."""

import pytest
import torch
import torch.nn.functional as F

from solo_infer.ops import winograd
from solo_infer.runtime import scratch_memory
from solo_infer.runtime.thread_pool import can_limit_threads


@pytest.mark.parametrize("size", [(1, 1), (4, 4), (5, 7), (24, 24), (3, 300), (50, 76)])
@pytest.mark.parametrize(("count", "channels", "outputs"), [(1, 32, 48), (3, 5, 2)])
@pytest.mark.parametrize("tile", [4, 6])
def test_convolve_equals_direct_convolution(size, count, channels, outputs, tile):
    generator = torch.Generator().manual_seed(hash((size, count)) % 1000)
    x = torch.randn(count, channels, *size, generator=generator)
    weight = torch.randn(outputs, channels, 3, 3, generator=generator) / (3 * channels**0.5)
    bias = torch.randn(outputs, generator=generator)
    (result,) = winograd.convolve([x], winograd.transform_weight(weight, tile), bias)
    expected = F.conv2d(x.double(), weight.double(), bias.double(), padding=1)
    assert result.shape == expected.shape and result.dtype == torch.float32
    assert (result - expected).abs().max() < (1e-5 if tile == 4 else 5e-5)


@pytest.mark.parametrize("size", [(2, 2), (8, 8), (10, 14), (48, 48), (6, 400), (76, 50)])
def test_convolve_halving_equals_direct_convolution(size):
    generator = torch.Generator().manual_seed(size[0])
    x = torch.randn(2, 24, *size, generator=generator)
    weight = torch.randn(7, 24, 4, 4, generator=generator) / 20
    bias = torch.randn(7, generator=generator)
    result = winograd.convolve_halving(x, winograd.transform_halving_weight(weight), bias)
    expected = F.conv2d(x.double(), weight.double(), bias.double(), stride=2, padding=1)
    assert result.shape == expected.shape and result.dtype == torch.float32
    assert (result - expected).abs().max() < 3e-5


def test_layouts_and_missing_bias():
    x = torch.randn(2, 16, 13, 17, generator=torch.Generator().manual_seed(0))
    transformed = winograd.transform_weight(
        torch.randn(8, 16, 3, 3, generator=torch.Generator().manual_seed(1))
    )
    (expected,) = winograd.convolve([x], transformed)
    assert expected.is_contiguous(memory_format=torch.channels_last) or expected.stride(1) == 1
    assert torch.equal(
        winograd.convolve([x.contiguous(memory_format=torch.channels_last)], transformed)[0], expected
    )


def test_images_of_a_batch_are_independent():
    x = torch.randn(2, 8, 9, 9, generator=torch.Generator().manual_seed(0))
    transformed = winograd.transform_weight(
        torch.randn(8, 8, 3, 3, generator=torch.Generator().manual_seed(1))
    )
    assert torch.equal(winograd.convolve([x], transformed)[0][1:], winograd.convolve([x[1:]], transformed)[0])


@pytest.mark.parametrize("tile", [4, 6])
def test_values_of_borrowed_memory_do_not_matter(tile, monkeypatch):
    x = torch.randn(1, 8, 30, 40, generator=torch.Generator().manual_seed(0))
    weight = torch.randn(5, 8, 3, 3, generator=torch.Generator().manual_seed(1))
    transformed = winograd.transform_weight(weight, tile)
    (expected,) = winograd.convolve([x], transformed)
    monkeypatch.setattr(scratch_memory, "_free", [torch.full((10**6,), float("nan"))])
    assert torch.equal(winograd.convolve([x], transformed)[0], expected)


def test_nan_does_not_spread_beyond_its_tile():
    x = torch.zeros(1, 4, 20, 20)
    x[0, 0, 10, 10] = float("nan")
    for tile in (4, 6):
        (result,) = winograd.convolve([x], winograd.transform_weight(torch.ones(4, 4, 3, 3), tile))
        rows, columns = torch.nonzero(result.isnan().any(dim=1)[0]).T
        assert (
            len(rows)
            and rows.min() >= 10 // tile * tile - tile
            and rows.max() <= 10 // tile * tile + 2 * tile
        )
        assert columns.min() >= 10 // tile * tile - tile and columns.max() <= 10 // tile * tile + 2 * tile


@pytest.mark.parametrize(
    ("sizes", "tile"),
    [
        ([(96, 168)], 6),
        ([(64, 108), (64, 108), (32, 54), (16, 27)], 6),
        ([(48, 84)], 4),  # few tiles
        ([(40, 40), (36, 36), (24, 24), (16, 16), (12, 12)], 4),
        ([(1, 2000)], 4),  # many pixels beyond the map
        ([], 4),
    ],
)
def test_suitable_tile(sizes, tile):
    assert winograd.suitable_tile([torch.empty(1, 1, *size) for size in sizes]) == tile


@pytest.mark.parametrize("tile", [4, 6])
def test_maps_of_different_sizes(tile):
    generator = torch.Generator().manual_seed(4)
    maps = [torch.randn(1, 16, *size, generator=generator) for size in ((40, 40), (1, 9), (90, 88), (12, 12))]
    weight = torch.randn(8, 16, 3, 3, generator=generator) / 12
    result = winograd.convolve(maps, winograd.transform_weight(weight, tile))
    for x, out in zip(maps, result, strict=True):
        torch.testing.assert_close(out, F.conv2d(x, weight, padding=1), rtol=0, atol=1e-5 * tile)


@pytest.mark.parametrize("tile", [4, 6])
@pytest.mark.parametrize("size", [(100, 152), (40, 40), (12, 12)])
def test_bands_run_in_single_threads_within_the_memory_of_one_product(size, tile, monkeypatch):
    if not can_limit_threads():
        pytest.skip("this build of torch cannot limit the threads of one thread")
    seen, compute = [], winograd._convolve_tiles

    def record(group, *arguments):
        seen.append((torch.get_num_threads(), sum(rows.tiles for rows in group)))
        compute(group, *arguments)

    monkeypatch.setattr(winograd, "_convolve_tiles", record)
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(1, 4, *size, generator=generator)
    weight = torch.randn(4, 4, 3, 3, generator=generator) / 6  # outputs of about 1
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        (result,) = winograd.convolve([x], winograd.transform_weight(weight, tile))
    finally:
        torch.set_num_threads(before)
    assert {threads for threads, _ in seen} == {1}
    assert 2 * max(tiles for _, tiles in seen) <= winograd._MAX_TILES[tile]
    torch.testing.assert_close(result, F.conv2d(x, weight, padding=1), rtol=0, atol=1e-5 * tile)
