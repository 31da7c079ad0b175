"""Damaged image files of every format that Pillow writes, through the loaders of prediction and training."""

import pytest
from helpers.decoder_campaigns import check_formats, try_damaged_images
from helpers.fresh_processes import run

pytestmark = pytest.mark.fuzz


def test_many_formats_are_covered():
    process = run(check_formats)
    assert process.returncode == 0, process.stderr


@pytest.mark.parametrize("seed", [1])
def test_damaged_images(seed, tmp_path):
    process = run(try_damaged_images, seed, tmp_path)
    assert process.returncode == 0, process.stderr
