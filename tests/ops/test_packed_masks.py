"""Bit-packed masks beside NumPy's packbits."""

import numpy as np
import pytest
import torch

from solo_infer.ops import packed_masks


@pytest.mark.parametrize("width", [1, 7, 8, 9, 84])
def test_packed_masks_equal_numpy_packbits(width):
    masks = np.random.default_rng(width).random((3, 5, width)) < 0.5
    packed = packed_masks.pack(torch.from_numpy(masks))
    np.testing.assert_array_equal(packed.numpy(), np.packbits(masks, axis=-1))
    np.testing.assert_array_equal(packed_masks.unpack(packed, width).numpy(), masks)
    np.testing.assert_array_equal(
        packed_masks.unpack_float(packed).numpy()[..., :width], masks.astype(np.float32)
    )
    np.testing.assert_array_equal(packed_masks.popcount(packed).numpy(), masks.sum(axis=-1))
    np.testing.assert_array_equal(
        packed_masks.unpack(packed_masks.union_rows(packed), width).numpy(), masks.any(axis=1)
    )


@pytest.mark.parametrize("width", [8, 12])
def test_masks_with_an_axis_of_length_1_and_any_strides(width):
    generator = torch.Generator().manual_seed(0)
    maps = torch.rand(1, 4, 5, width, generator=generator).contiguous(memory_format=torch.channels_last)
    masks = (maps > 0.5)[:, 0]
    assert masks.stride(2) != 1
    packed = packed_masks.pack(masks)
    assert torch.equal(packed_masks.unpack(packed, width), masks)
    assert torch.equal(packed_masks.popcount(packed), masks.sum(dim=2))


def test_cached_tables_ignore_the_default_dtype_and_device():
    packed_masks._bits_of_bytes.cache_clear()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            bits = packed_masks.unpack_float(torch.from_numpy(np.array([[5]], dtype=np.uint8)))
    finally:
        torch.set_default_dtype(torch.float32)
    assert bits.dtype == torch.float32 and bits.tolist() == [[0, 0, 0, 0, 0, 1, 0, 1]]


def test_boxes_are_tight_with_exclusive_far_edges():
    masks = torch.zeros(4, 6, 9, dtype=torch.bool)
    masks[0, 2:4, 3:8] = True
    masks[1, 5, 0] = True
    masks[3] = True
    expected = torch.tensor([[3, 2, 8, 4], [0, 5, 1, 6], [0, 0, 0, 0], [0, 0, 9, 6]]).float()
    assert torch.equal(packed_masks.mask_boxes(packed_masks.pack(masks), 9), expected)


def test_boxes_of_no_masks():
    boxes = packed_masks.mask_boxes(torch.zeros(0, 6, 2, dtype=torch.uint8), 9)
    assert boxes.shape == (0, 4) and boxes.dtype == torch.float32
