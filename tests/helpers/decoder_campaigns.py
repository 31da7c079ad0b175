"""Damaged images and videos through the loaders, for tests that run in a process of their own.

A decoder with a fault may write beyond its buffers, after which any other test of the process may crash.
"""

import functools
import io
import itertools
import warnings

import numpy as np
from helpers.fuzzing import campaign, mutate_bytes, only_typed_errors
from helpers.image_sources import random_pixels
from helpers.videos import make_clip
from PIL import Image

from solo_infer.data.images import load_image
from solo_infer.data.video import read_frames
from solo_infer.data.video_sources import Video
from solo_infer.errors import DataError, ImageError
from solo_infer.training.dataset import read_pixels

MODES = ("RGB", "L", "1", "P", "RGBA", "CMYK", "I;16", "I", "F", "LA")
OPTIONS = {
    "JPEG": ({}, {"progressive": True}, {"restart_marker_blocks": 2}),
    "TIFF": ({}, {"compression": "tiff_lzw"}, {"compression": "tiff_adobe_deflate"}, {"compression": "jpeg"}),
    "WEBP": ({}, {"lossless": True}),
}
VIDEO_CODECS = {"mp4": "libx264", "mkv": "libx264", "avi": "mpeg4", "webm": "libvpx", "ts": "libx264"}
MAX_PIXELS = 1_000_000  # limit of Pillow in these tests, so that no image takes much time
HEIGHT, WIDTH = 24, 33


@functools.cache
def encoded_images():
    """Return small files in all formats, modes and options that this version of Pillow writes."""
    Image.init()
    color = Image.fromarray(random_pixels(HEIGHT, WIDTH))
    images = {mode: color.convert("L" if mode in ("I;16", "I", "F") else mode) for mode in MODES}
    images["I;16"] = Image.fromarray(np.asarray(images["L"]).astype(np.uint16) * 257)
    images["I"] = images["L"].convert("I")
    images["F"] = Image.fromarray(np.asarray(images["L"]).astype(np.float32) / 255)
    files = {}
    for file_format in sorted(Image.SAVE):
        for mode, image in images.items():
            for options in OPTIONS.get(file_format, ({},)):
                if options.get("compression") == "jpeg" and mode not in ("RGB", "L"):
                    continue  # libtiff refuses it after it has freed memory twice (Pillow 12.3)
                buffer = io.BytesIO()
                try:
                    image.save(buffer, file_format, **options)
                except Exception:  # the format lacks the mode, or needs a library that is not installed
                    continue
                files[f"{file_format} {mode} {options}"] = buffer.getvalue()
    return files


def check_formats():
    """Check that most formats are tried."""
    formats = {name.split()[0] for name in encoded_images()}
    assert len(formats) >= 20 and {"JPEG", "PNG", "TIFF", "GIF", "BMP", "TGA", "ICO", "PCX", "DDS"} <= formats


def try_damaged_images(seed, folder):
    """Load damaged images for prediction and for training."""
    warnings.simplefilter("ignore")
    Image.MAX_IMAGE_PIXELS = MAX_PIXELS
    files, path = list(encoded_images().values()), folder / "image"
    path.touch()
    for rng in campaign(seed):
        data = mutate_bytes(rng.choice(files), rng)
        with only_typed_errors(rng) as predicted:
            pixels = load_image(data).pixels
            assert pixels.ndim == 3 and pixels.shape[2] == 3 and pixels.dtype == np.uint8
            assert pixels.shape[0] * pixels.shape[1] <= 2 * MAX_PIXELS
        assert predicted.error is None or isinstance(predicted.error, ImageError)
        path.write_bytes(data)
        with only_typed_errors(rng, watched=folder) as trained:
            read_pixels(str(path), HEIGHT, WIDTH, longest=rng.choice((None, 12)))
        assert trained.error is None or isinstance(trained.error, DataError)
        if predicted.error is not None:  # what prediction refuses is not a training image either
            assert trained.error is not None


def try_damaged_videos(seed, folder):
    """Decode damaged videos."""
    warnings.simplefilter("ignore")
    Image.MAX_IMAGE_PIXELS = MAX_PIXELS
    clips = [
        make_clip(folder / f"clip.{extension}", 8, codec=codec) for extension, codec in VIDEO_CODECS.items()
    ]
    originals = {path: path.read_bytes() for path in clips}
    for rng in campaign(seed):
        path = rng.choice(clips)
        path.write_bytes(mutate_bytes(originals[path], rng))
        frames = []
        with only_typed_errors(rng, watched=folder) as outcome:
            frames.extend(read_frames(Video(path)))
        assert outcome.error is None or isinstance(outcome.error, ImageError)
        for frame in frames:
            assert frame.pixels.ndim == 3 and frame.pixels.shape[2] == 3 and frame.pixels.dtype == np.uint8
        times = [frame.frame_time for frame in frames]
        assert all(earlier < later for earlier, later in itertools.pairwise(times))
