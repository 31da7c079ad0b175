"""Images from sources that are not trusted."""

import warnings

import numpy as np
import pytest
from helpers.uploads import bomb, encode, icon_with_large_png, png_header
from PIL import Image, features
from PIL.PngImagePlugin import PngImageFile

from solo_infer import ConfigError, ImageError, load_image
from solo_infer.data.uploads import FORMATS, load_upload

UNSUPPORTED = "not an image of a supported format: expected a JPEG, PNG, WebP"


@pytest.mark.parametrize("file_format", [*FORMATS, "MPO"])
def test_pixels_are_those_of_load_image(file_format):
    if file_format == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow reads no AVIF")
    content = encode(file_format, **({"save_all": True} if file_format == "MPO" else {}))
    image = load_upload(content, name="photo")
    assert image.name == "photo"
    assert np.array_equal(image.pixels, load_image(content).pixels)


def test_orientation_is_undone():
    exif = Image.Exif()
    exif[274] = 6
    content = encode("JPEG", exif=exif)
    assert load_upload(content).pixels.shape == (40, 30, 3)


def test_limits_are_inclusive():
    content = encode()
    assert load_upload(content, max_bytes=len(content), max_pixels=1200).pixels.shape == (30, 40, 3)
    with pytest.raises(ImageError, match=f"{len(content)} bytes: expected at most {len(content) - 1}"):
        load_upload(content, max_bytes=len(content) - 1)
    with pytest.raises(ImageError, match="40 x 30 pixels: expected at most 1199"):
        load_upload(content, max_pixels=1199)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "0 bytes: expected a JPEG"),
        (b"not an image", UNSUPPORTED),
        (encode("JPEG")[:300], "damaged, truncated"),
        (encode("PNG")[:300], "damaged, truncated"),
        (png_header(5001, 5000), "5001 x 5000 pixels"),
        (png_header(10_000, 10_000), "10000 x 10000 pixels"),
        (png_header(2**31 - 1, 2**31 - 1), "more pixels than Pillow allows: expected at most 25000000"),
        (bomb(5001), "5001 x 5001 pixels"),
        (icon_with_large_png(), UNSUPPORTED),
        (encode("TIFF"), UNSUPPORTED),
        (encode("PPM"), UNSUPPORTED),
        (encode("ICO"), UNSUPPORTED),
        (encode("EPS"), UNSUPPORTED),
        (encode("PDF"), UNSUPPORTED),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", UNSUPPORTED),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_refused(content, message):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with pytest.raises(ImageError, match=message) as caught:
            load_upload(content)
    assert "MAX_IMAGE_PIXELS" not in str(caught.value)  # it is not the sender's to change


@pytest.mark.parametrize("content", [bomb(8000), icon_with_large_png()], ids=["PNG", "ICO"])
def test_refused_files_are_not_decoded(content, monkeypatch):
    assert len(content) < 100_000
    monkeypatch.setattr(PngImageFile, "load", lambda image: pytest.fail("decoded"))
    with pytest.raises(ImageError, match="8000 x 8000|not an image"):
        load_upload(content)


@pytest.mark.parametrize("content", [encode(), b"not an image"])
def test_pillow_without_a_format(content, monkeypatch):
    monkeypatch.setattr(Image, "OPEN", {name: way for name, way in Image.OPEN.items() if name != "AVIF"})
    if content.startswith(b"not"):
        with pytest.raises(ImageError, match=UNSUPPORTED):
            load_upload(content)
    else:
        assert load_upload(content).pixels.shape == (30, 40, 3)


@pytest.mark.parametrize("limits", [{"max_bytes": 0}, {"max_pixels": -1}, {"max_pixels": 1.5}])
def test_limits_are_checked(limits):
    with pytest.raises(ConfigError, match="expected an integer"):
        load_upload(encode(), **limits)
