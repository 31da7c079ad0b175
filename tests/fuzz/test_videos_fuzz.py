"""Damaged videos of several formats through the decoder."""

import pytest
from helpers.decoder_campaigns import try_damaged_videos
from helpers.fresh_processes import run

pytest.importorskip("av", reason="PyAV is not installed (pip install 'solo-infer[video]')")
pytestmark = pytest.mark.fuzz


@pytest.mark.parametrize("seed", [1])
def test_damaged_videos(seed, tmp_path):
    process = run(try_damaged_videos, seed, tmp_path)
    assert process.returncode == 0, process.stderr
