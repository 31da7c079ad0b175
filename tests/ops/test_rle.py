"""Run-length encoding of masks."""

import numpy as np
import pytest
from helpers.coco_sets import HEIGHT, WIDTH, compressed, uncompressed

from solo_infer.ops.rle import decode, encode, run_lengths


def test_encode_and_decode():
    mask = np.random.default_rng(0).uniform(size=(HEIGHT, WIDTH)) < 0.5
    assert encode(mask) == compressed(mask.astype(np.uint8))
    np.testing.assert_array_equal(decode(encode(mask)), mask)


def test_run_lengths():
    random = np.random.default_rng(0)
    for density in (0.0, 0.001, 0.1, 0.5, 1.0):
        mask = np.zeros((HEIGHT, WIDTH), np.uint8)
        mask[random.uniform(size=mask.shape) < density] = 1
        counts = compressed(mask)["counts"].encode()
        assert run_lengths(counts).tolist() == uncompressed(mask)["counts"]


@pytest.mark.parametrize("counts", [b"", b"\x10", b"p", b"a", b"PPPPPPPP1"])
def test_damaged_counts_raise_error(counts):
    with pytest.raises(ValueError, match="damaged"):
        run_lengths(counts)
