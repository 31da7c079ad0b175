"""Winograd convolutions beside direct ones."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from helpers.kernels import IMPLEMENTATIONS, use_implementation

from solo_infer.ops import winograd, winograd_torch
from solo_infer.ops.native import streams
from solo_infer.ops.native import winograd as winograd_native
from solo_infer.runtime import kept_memory
from solo_infer.runtime.thread_pool import can_limit_threads


@pytest.fixture(params=IMPLEMENTATIONS, autouse=True)
def implementation(request, monkeypatch):
    use_implementation(request.param, monkeypatch)
    return request.param


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def convolve(maps, weight, *args, **kwargs):
    return winograd.convolve(maps, winograd.transform_weight(weight), *args, **kwargs)


@pytest.mark.parametrize("size", [(1, 1), (4, 4), (5, 7), (24, 24), (3, 300), (50, 76)])
@pytest.mark.parametrize(("count", "channels", "outputs"), [(1, 32, 48), (3, 5, 2)])
def test_convolve_equals_direct_convolution(size, count, channels, outputs):
    generator = torch.Generator().manual_seed(hash((size, count)) % 1000)
    x = torch.randn(count, channels, *size, generator=generator)
    weight = torch.randn(outputs, channels, 3, 3, generator=generator) / (3 * channels**0.5)
    bias = torch.randn(outputs, generator=generator)
    (result,) = winograd.convolve([x], winograd.transform_weight(weight), bias)
    expected = F.conv2d(x.double(), weight.double(), bias.double(), padding=1)
    assert result.shape == expected.shape and result.dtype == torch.float32
    assert (result - expected).abs().max() < 1e-5


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


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (7, 8), (9, 9), (48, 50), (5, 400)])
@pytest.mark.parametrize(("count", "channels", "outputs"), [(1, 64, 80), (3, 5, 2)])
@pytest.mark.parametrize("slope", [0, 1])
def test_stride_2_equals_direct_convolution(size, count, channels, outputs, slope):
    x, bias = noise(count, channels, *size), noise(outputs, seed=1)
    weight = noise(outputs, channels, 3, 3, seed=2) / (3 * channels**0.5)
    expected = F.conv2d(x.double(), weight.double(), bias.double(), stride=2, padding=1)
    addend = noise(*expected.shape, seed=3)
    transformed = winograd.transform_weight(weight, stride=2)
    (result,) = winograd.convolve([x], transformed, bias, negative_slope=slope)
    (added,) = winograd.convolve([x], transformed, bias, addends=[addend.clone()], negative_slope=slope)
    for values, reference in ((result, expected), (added, expected + addend)):
        reference = reference if slope else reference.relu()
        assert values.shape == reference.shape and values.dtype == torch.float32
        assert (values - reference).abs().max() < 2e-5


def test_weights_of_stride_2_that_are_zero_are_not_stored(implementation):
    values = winograd.transform_weight(noise(32, 48, 3, 3), stride=2).values
    assert values.numel() == (25 * 4 if implementation == "torch" else 81) * 32 * 48


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [(3, 5), (40, 44)])
def test_streamed_outputs(dtype, size, implementation, monkeypatch):
    if implementation == "torch":
        pytest.skip("needs the kernel")
    maps, weight = [noise(2, 24, *size, seed=seed).to(dtype) for seed in range(2)], noise(64, 24, 3, 3)
    expected = convolve(maps, weight, negative_slope=0)
    monkeypatch.setattr(streams, "_MIN_SIZE", 0)
    results = convolve(maps, weight, negative_slope=0)
    assert all(torch.equal(a, b) for a, b in zip(results, expected, strict=True))


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


def test_values_of_borrowed_memory_do_not_matter(monkeypatch):
    x = torch.randn(1, 8, 30, 40, generator=torch.Generator().manual_seed(0))
    weight = torch.randn(5, 8, 3, 3, generator=torch.Generator().manual_seed(1))
    transformed = winograd.transform_weight(weight)
    (expected,) = winograd.convolve([x], transformed)
    monkeypatch.setattr(
        kept_memory, "empty", lambda shape, dtype=torch.float32: torch.full(tuple(shape), float("nan"))
    )
    assert torch.equal(winograd.convolve([x], transformed)[0], expected)


def test_nan_does_not_spread_beyond_its_tile():
    x = torch.zeros(1, 4, 20, 20)
    x[0, 0, 10, 10] = float("nan")
    (result,) = winograd.convolve([x], winograd.transform_weight(torch.ones(4, 4, 3, 3)))
    rows, columns = torch.nonzero(result.isnan().any(dim=1)[0]).T
    assert len(rows) and rows.min() >= 4 and rows.max() < 16
    assert columns.min() >= 4 and columns.max() < 16


def test_maps_of_different_sizes():
    generator = torch.Generator().manual_seed(4)
    maps = [torch.randn(1, 16, *size, generator=generator) for size in ((40, 40), (1, 9), (90, 88), (12, 12))]
    weight = torch.randn(8, 16, 3, 3, generator=generator) / 12
    result = winograd.convolve(maps, winograd.transform_weight(weight))
    for x, out in zip(maps, result, strict=True):
        torch.testing.assert_close(out, F.conv2d(x, weight, padding=1), rtol=0, atol=4e-5)


@pytest.mark.parametrize("slope", [0, 0.1, 1])
@pytest.mark.parametrize("outputs", [3, 16, 40])
def test_addends_and_activations(slope, outputs):
    maps = [noise(2, 7, 9, 14), noise(1, 7, 5, 4, seed=1)]
    weight, bias = noise(outputs, 7, 3, 3, seed=2) / 8, noise(outputs, seed=3)
    addends = [noise(len(x), outputs, *x.shape[2:], seed=4) for x in maps]
    expected = [
        F.leaky_relu(F.conv2d(x, weight, bias, padding=1) + y, slope)
        if slope < 1
        else F.conv2d(x, weight, bias, padding=1) + y
        for x, y in zip(maps, addends, strict=True)
    ]
    for layout in (torch.contiguous_format, torch.channels_last):
        copies = [y.clone(memory_format=layout) for y in addends]
        result = convolve(maps, weight, bias, addends=copies, negative_slope=slope)
        torch.testing.assert_close(result, expected, rtol=0, atol=2e-5)


def test_addend_of_images_that_share_it():
    x, weight, addend = noise(3, 6, 9, 8), noise(5, 6, 3, 3, seed=1) / 8, noise(1, 9, 8, 5, seed=2)
    addend = addend.permute(0, 3, 1, 2)  # channels_last
    (result,) = convolve([x], weight, addends=[addend.expand(3, -1, -1, -1)])
    expected = F.conv2d(x, weight, padding=1) + addend
    torch.testing.assert_close(result, expected, rtol=0, atol=2e-5)


def test_relu_of_infinities():
    x = torch.zeros(1, 1, 4, 4)
    weight, bias = torch.zeros(3, 1, 3, 3), torch.tensor([-torch.inf, torch.inf, torch.nan])
    (result,) = convolve([x], weight, bias, negative_slope=0)
    expected = F.relu(bias)[:, None, None].expand(1, 3, 4, 4)
    torch.testing.assert_close(result, expected, equal_nan=True)


def test_views_of_larger_maps():
    maps = noise(2, 30, 20, 12).permute(0, 3, 1, 2)  # channels_last
    weight = noise(6, 12, 3, 3, seed=1) / 10
    for view in (maps[:, :, 4:17], maps[:, :, :, 3:11], maps[1:, :, ::2, ::3], maps.flip(2)):
        (result,) = convolve([view], weight)
        torch.testing.assert_close(result, F.conv2d(view, weight, padding=1), rtol=0, atol=2e-5)


def test_no_maps():
    assert convolve([], torch.ones(3, 8, 3, 3)) == []


@pytest.mark.parametrize(
    ("x", "options"),
    [
        (torch.zeros(1, 4, 6, 6), {}),
        (torch.zeros(5, 6, 6), {}),
        (torch.zeros(0, 5, 6, 6), {}),
        (torch.zeros(1, 5, 0, 6), {}),
        (torch.zeros(1, 5, 6, 6, dtype=torch.float64), {}),
        (torch.zeros(1, 5, 6, 6), {"bias": torch.zeros(4)}),
        (torch.zeros(1, 5, 6, 6, dtype=torch.float16), {}),
        (torch.zeros(1, 5, 6, 6), {"addends": [torch.zeros(1, 3, 6, 6, dtype=torch.bfloat16)]}),
        (torch.zeros(1, 5, 6, 6), {"addends": [torch.zeros(1, 3, 6, 5)]}),
        (torch.zeros(1, 5, 6, 6), {"addends": [torch.zeros(1, 3, 6, 6)] * 2}),
    ],
)
def test_operands_that_do_not_fit(x, options):
    with pytest.raises(ValueError, match="expected"):
        convolve([x], torch.zeros(3, 5, 3, 3), **options)


@pytest.mark.parametrize("size", [(100, 152), (40, 40), (3, 3)])
def test_numbers_of_threads_do_not_change_results(size, implementation):
    x, weight = noise(1, 24, *size), noise(40, 24, 3, 3, seed=1) / 15
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results += convolve([x], weight)
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(results[0], F.conv2d(x, weight, padding=1), rtol=0, atol=4e-5)
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], rtol=0, atol=2e-5 if implementation == "torch" else 0)


@pytest.mark.parametrize("channels", [8, 300])
def test_kernel_takes_bounded_memory(channels, implementation, monkeypatch):
    if implementation == "torch":
        pytest.skip("needs the kernel")
    sizes, empty = [], kept_memory.empty

    def record(shape, dtype=torch.float32):
        if len(shape) == 1:  # outputs have four axes
            sizes.append(shape[0])
        return empty(shape, dtype)

    monkeypatch.setattr(kept_memory, "empty", record)
    x, weight = noise(1, channels, 150, 110), noise(channels, channels, 3, 3, seed=1) / (3 * channels**0.5)
    before = torch.get_num_threads()
    try:
        for threads in (1, 40):
            torch.set_num_threads(threads)
            (result,) = convolve([x], weight)
            torch.testing.assert_close(result, F.conv2d(x, weight, padding=1), rtol=0, atol=1e-4)
    finally:
        torch.set_num_threads(before)
    assert sizes[0] < sizes[1] <= winograd_native.MAX_VALUES


def test_threads_of_a_program_do_not_disturb_each_other():
    weight = winograd.transform_weight(noise(16, 16, 3, 3, seed=1) / 12)
    maps = [noise(1, 16, 30 + index, 41, seed=index) for index in range(6)]
    expected = [winograd.convolve([x], weight)[0] for x in maps]
    with ThreadPoolExecutor(3) as pool:
        for _ in range(5):
            results = list(pool.map(lambda x: winograd.convolve([x], weight)[0], maps))
            torch.testing.assert_close(results, expected, rtol=0, atol=0)


@pytest.mark.parametrize("size", [(100, 152), (40, 40), (12, 12)])
def test_bands_run_in_single_threads_within_the_memory_of_one_product(size, implementation, monkeypatch):
    if implementation != "torch" or not can_limit_threads():
        pytest.skip("needs operations of torch, with threads that can be limited")
    seen, compute = [], winograd_torch._convolve_tiles

    def record(group, *arguments):
        seen.append((torch.get_num_threads(), sum(rows.tiles for rows in group)))
        compute(group, *arguments)

    monkeypatch.setattr(winograd_torch, "_convolve_tiles", record)
    x, weight = noise(1, 4, *size, seed=3), noise(4, 4, 3, 3, seed=4) / 6  # outputs of about 1
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        (result,) = convolve([x], weight)
    finally:
        torch.set_num_threads(before)
    assert {threads for threads, _ in seen} == {1}
    assert 2 * max(tiles for _, tiles in seen) <= winograd_torch._MAX_TILES
    torch.testing.assert_close(result, F.conv2d(x, weight, padding=1), rtol=0, atol=4e-5)


# --- bfloat16, which only the kernels read


def rounding_error(values):
    """Return the largest rounding error of bfloat16 values, and some of the float32 computation."""
    return values.abs() * 2**-8 + 2e-5


@pytest.mark.parametrize("channels, outputs", [(32, 48), (5, 3), (67, 33)])
@pytest.mark.parametrize("negative_slope", [1, 0, 0.1])
@pytest.mark.parametrize("adds", [False, True])
def test_bfloat16_is_rounded_once(channels, outputs, negative_slope, adds, implementation):
    if implementation == "torch":
        pytest.skip("needs the kernel")
    maps = [noise(2, channels, *size, seed=size[0]).bfloat16() for size in ((21, 34), (5, 4))]
    weight = (noise(outputs, channels, 3, 3, seed=1) / (3 * channels**0.5)).bfloat16()
    bias, slope = noise(outputs, seed=2).bfloat16(), negative_slope
    addends = [noise(2, outputs, *x.shape[2:], seed=3).bfloat16() for x in maps] if adds else []
    results = convolve(
        maps, weight, bias=bias, addends=[x.clone() for x in addends], negative_slope=negative_slope
    )
    for index, (x, result) in enumerate(zip(maps, results, strict=True)):
        expected = F.conv2d(x.float(), weight.float(), bias.float(), padding=1)
        expected = F.leaky_relu(expected + (addends[index].float() if adds else 0), slope)
        assert result.dtype == torch.bfloat16
        assert bool(((result.float() - expected).abs() <= rounding_error(expected)).all())


def test_halving_in_bfloat16(implementation):
    if implementation == "torch":
        pytest.skip("needs the kernel")
    x, weight = noise(1, 24, 20, 30).bfloat16(), (noise(16, 24, 4, 4, seed=1) / 20).bfloat16()
    result = winograd.convolve_halving(x, winograd.transform_halving_weight(weight))
    expected = F.conv2d(x.float(), weight.float(), stride=2, padding=1)
    assert result.dtype == torch.bfloat16
    assert bool(((result.float() - expected).abs() <= rounding_error(expected)).all())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_values_of_bfloat16_that_are_not_finite(value, implementation):
    if implementation == "torch":
        pytest.skip("needs the kernel")
    x = torch.zeros(1, 4, 20, 20, dtype=torch.bfloat16)
    x[0, 0, 10, 10] = value
    (result,) = convolve([x], torch.ones(4, 4, 3, 3))
    is_finite = result.isfinite()
    assert not bool(is_finite[..., 9:12, 9:12].any())
    assert bool(is_finite[..., :4, :].all()) and bool(is_finite[..., 16:, :].all())


def test_operations_of_torch_refuse_bfloat16(implementation):
    if implementation != "torch":
        pytest.skip("needs operations of torch")
    with pytest.raises(ValueError, match="expected .* torch.float32"):
        convolve([torch.zeros(1, 5, 6, 6, dtype=torch.bfloat16)], torch.zeros(3, 5, 3, 3))


@pytest.mark.parametrize("has_units, is_faster", [(True, False), (False, True), (None, False)])
def test_matrix_units_are_faster_than_winograd(has_units, is_faster, implementation, monkeypatch):
    winograd._has_matrix_units.cache_clear()
    monkeypatch.setattr(winograd, "has_bfloat16_matrix_units", lambda: has_units)
    try:
        assert winograd.is_faster(torch.bfloat16) is (is_faster and implementation != "torch")
    finally:
        winograd._has_matrix_units.cache_clear()
    assert winograd.is_faster(torch.float32) and not winograd.is_faster(torch.float16)
