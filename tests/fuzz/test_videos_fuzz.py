"""Damaged videos of several formats through the decoder."""

import itertools

import numpy as np
import pytest
from helpers.fuzzing import campaign, mutate_bytes, only_typed_errors
from helpers.videos import make_clip

from solo_infer.data.video import read_frames
from solo_infer.data.video_sources import Video
from solo_infer.errors import ImageError

pytest.importorskip("av", reason="PyAV is not installed (pip install 'solo-infer[video]')")
pytestmark = [pytest.mark.fuzz, pytest.mark.filterwarnings("ignore")]

FORMATS = {"mp4": "libx264", "mkv": "libx264", "avi": "mpeg4", "webm": "libvpx", "ts": "libx264"}
MAX_PIXELS = 1_000_000  # limit of Pillow in these tests, so that no frame takes much time


@pytest.mark.parametrize("seed", [1])
def test_damaged_videos(seed, tmp_path, monkeypatch):
    monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", MAX_PIXELS)
    clips = [
        make_clip(tmp_path / f"clip.{extension}", 8, codec=codec) for extension, codec in FORMATS.items()
    ]
    originals = {path: path.read_bytes() for path in clips}
    for rng in campaign(seed):
        path = rng.choice(clips)
        path.write_bytes(mutate_bytes(originals[path], rng))
        frames = []
        with only_typed_errors(rng, watched=tmp_path) as outcome:
            frames.extend(read_frames(Video(path)))
        assert outcome.error is None or isinstance(outcome.error, ImageError)
        for frame in frames:
            assert frame.pixels.ndim == 3 and frame.pixels.shape[2] == 3 and frame.pixels.dtype == np.uint8
        times = [frame.frame_time for frame in frames]
        assert all(earlier < later for earlier, later in itertools.pairwise(times))
