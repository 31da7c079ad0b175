"""Numpy arrays and torch tensors as image sources."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from helpers.picture_sources import assert_pixels, gray3, picture

from solo_infer.data.images import load_image
from solo_infer.errors import ImageError


def test_arrays_of_any_channels_and_strides() -> None:
    pixels = picture()
    rgba = np.dstack([pixels, picture(seed=1)[:, :, 0]])
    gray = pixels[:, :, 0]
    assert_pixels(rgba, pixels)
    assert_pixels(rgba[:, :, [2, 1, 0, 3]], pixels, color="bgr")
    assert_pixels(gray, gray3(gray))
    assert_pixels(gray[:, :, None], gray3(gray), color="bgr")
    assert_pixels(np.asfortranarray(pixels), pixels)
    assert_pixels(pixels[::-1, ::-2], pixels[::-1, ::-2])
    assert_pixels(pixels[:, :, ::-1], pixels, color="bgr")
    read_only = pixels.copy()
    read_only.flags.writeable = False
    assert_pixels(read_only, pixels)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_arrays_and_tensors_are_copied(channels: int) -> None:
    array = np.zeros((4, 5, channels), np.uint8)
    tensor = torch.zeros(channels, 4, 5, dtype=torch.uint8)
    from_array, from_tensor = load_image(array).pixels, load_image(tensor).pixels
    array[:], tensor[:] = 9, 9
    assert not from_array.any() and not from_tensor.any()


def test_floats_are_rounded_and_a_tiny_overshoot_is_forgiven() -> None:
    values = np.array([[0.0, 0.4 / 255, 0.6 / 255, 1.0, 1 + 5e-7, -5e-7]])
    expected = gray3(np.array([[0, 0, 1, 255, 255, 0]], np.uint8))
    for dtype in (np.float32, np.float64, ">f4"):
        assert_pixels(values.astype(dtype), expected)
    assert_pixels(torch.tensor([[0.0, 1.0]], dtype=torch.bfloat16), gray3(np.array([[0, 255]], np.uint8)))


def test_every_byte_survives_the_way_through_floats() -> None:
    bytes_ = np.arange(256, dtype=np.uint8).reshape(16, 16)
    for dtype in (np.float16, np.float32, np.float64):
        assert_pixels((bytes_ / 255).astype(dtype), gray3(bytes_))
    assert_pixels(torch.from_numpy(bytes_) / 255, gray3(bytes_))


@pytest.mark.parametrize(
    ("value", "shown"),
    [(np.nan, "nan"), (np.inf, "inf"), (-np.inf, "-inf"), (1.001, "1.001"), (-0.5, "-0.5")],
)
def test_floats_out_of_range_are_refused_with_their_range(value: float, shown: str) -> None:
    array = np.full((2, 2, 3), 0.5, np.float32)
    array[1, 1, 1] = value
    for source in (array, array.astype(np.float64), torch.from_numpy(array).permute(2, 0, 1)):
        with pytest.raises(ImageError, match=rf"{shown}.*0\.\.1.*uint8"):
            load_image(source)


@pytest.mark.parametrize("dtype", [bool, np.int8, np.uint16, np.int64, np.complex64, object, "U1"])
def test_other_array_dtypes_are_refused(dtype: Any) -> None:
    with pytest.raises(ImageError, match=r"\(2, 2, 3\) and dtype .*expected uint8"):
        load_image(np.zeros((2, 2, 3), dtype))


@pytest.mark.parametrize("dtype", [torch.bool, torch.int8, torch.int64, torch.complex64])
def test_other_tensor_dtypes_are_refused(dtype: torch.dtype) -> None:
    with pytest.raises(ImageError, match=rf"\(3, 2, 2\) and dtype {dtype}.*expected uint8"):
        load_image(torch.zeros(3, 2, 2, dtype=dtype))


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((3, 20, 30), r"\(3, 20, 30\).*looks like \(C, H, W\).*transpose"),
        ((20, 30, 2), r"\(20, 30, 2\).*expected"),
        ((20, 30, 5), r"\(20, 30, 5\).*expected"),
        ((20,), r"\(20,\).*expected"),
        ((), "expected"),
        ((2, 20, 30, 3), r"batch.*list\(batch\)"),
        ((1, 2, 3, 4, 5), "expected"),
        ((0, 5, 3), r"\(0, 5, 3\).*empty"),
        ((5, 0), "empty"),
    ],
)
def test_array_layouts_that_are_refused(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ImageError, match=message):
        load_image(np.zeros(shape, np.uint8))


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((20, 30, 3), r"\(20, 30, 3\).*looks like \(H, W, C\).*permute"),
        ((2, 20, 30), r"\(2, 20, 30\).*expected"),
        ((20,), "expected"),
        ((2, 3, 20, 30), r"batch.*list\(batch\)"),
        ((3, 0, 5), "empty"),
    ],
)
def test_tensor_layouts_that_are_refused(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ImageError, match=message):
        load_image(torch.zeros(shape, dtype=torch.uint8))


def test_tensors_of_any_channels_and_strides() -> None:
    pixels = picture()
    rgba = torch.from_numpy(np.dstack([pixels, pixels[:, :, 0]])).permute(2, 0, 1)
    assert_pixels(rgba, pixels)
    assert_pixels(rgba[[2, 1, 0, 3]], pixels, color="bgr")
    assert_pixels(rgba[:1], gray3(pixels[:, :, 0]))
    assert_pixels(rgba[0], gray3(pixels[:, :, 0]))


def test_tensors_without_plain_pixels_are_refused() -> None:
    with pytest.raises(ImageError, match="plain pixels"):
        load_image(torch.zeros(3, 2, 2, device="meta"))
    with pytest.raises(ImageError, match="plain pixels"):
        load_image(torch.zeros(3, 2, 2).to_sparse())
