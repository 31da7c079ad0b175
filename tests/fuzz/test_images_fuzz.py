"""Damaged image files of every format that Pillow writes, through the loaders of prediction and training."""

import functools
import io

import numpy as np
import pytest
from helpers.fuzzing import campaign, mutate_bytes, only_typed_errors
from helpers.image_sources import random_pixels
from PIL import Image

from solo_infer.data.images import load_image
from solo_infer.errors import DataError, ImageError
from solo_infer.training.dataset import read_pixels

pytestmark = [pytest.mark.fuzz, pytest.mark.filterwarnings("ignore")]

MODES = ("RGB", "L", "1", "P", "RGBA", "CMYK", "I;16", "I", "F", "LA")
OPTIONS = {
    "JPEG": ({}, {"progressive": True}, {"restart_marker_blocks": 2}),
    "TIFF": ({}, {"compression": "tiff_lzw"}, {"compression": "tiff_adobe_deflate"}, {"compression": "jpeg"}),
    "WEBP": ({}, {"lossless": True}),
}
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
                buffer = io.BytesIO()
                try:
                    image.save(buffer, file_format, **options)
                except Exception:  # the format lacks the mode, or needs a library that is not installed
                    continue
                files[f"{file_format} {mode} {options}"] = buffer.getvalue()
    return files


def test_many_formats_are_covered():
    formats = {name.split()[0] for name in encoded_images()}
    assert len(formats) >= 20 and {"JPEG", "PNG", "TIFF", "GIF", "BMP", "TGA", "ICO", "PCX", "DDS"} <= formats


@pytest.mark.parametrize("seed", [1])
def test_damaged_images(seed, tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", MAX_PIXELS)
    files, path = list(encoded_images().values()), tmp_path / "image"
    path.touch()
    for rng in campaign(seed):
        data = mutate_bytes(rng.choice(files), rng)
        with only_typed_errors(rng) as predicted:
            pixels = load_image(data).pixels
            assert pixels.ndim == 3 and pixels.shape[2] == 3 and pixels.dtype == np.uint8
            assert pixels.shape[0] * pixels.shape[1] <= 2 * MAX_PIXELS
        assert predicted.error is None or isinstance(predicted.error, ImageError)
        path.write_bytes(data)
        with only_typed_errors(rng, watched=tmp_path) as trained:
            read_pixels(str(path), HEIGHT, WIDTH, longest=rng.choice((None, 12)))
        assert trained.error is None or isinstance(trained.error, DataError)
        if predicted.error is not None:  # what prediction refuses is not a training image either
            assert trained.error is not None
