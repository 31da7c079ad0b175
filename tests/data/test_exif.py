"""EXIF orientation of pixels and of sizes."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from helpers.image_sources import (
    HEIGHT,
    ORIENTATION,
    WIDTH,
    assert_pixels,
    encode,
    exif_with_orientation,
    random_pixels,
)
from PIL import Image, ImageOps, PngImagePlugin, UnidentifiedImageError

from solo_infer.data.exif import orientation as read_orientation
from solo_infer.data.exif import upright, upright_size
from solo_infer.data.images import load_image


def undo_orientation(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Undo an EXIF orientation, following the table of the EXIF standard."""
    return {
        1: lambda a: a,
        2: np.fliplr,
        3: lambda a: np.rot90(a, 2),
        4: np.flipud,
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, -1),
        7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
        8: np.rot90,
    }[orientation](pixels)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "TIFF", "WEBP"])
def test_exif_orientation_is_applied_once(file_format: str, orientation: int) -> None:
    options = {"JPEG": {"quality": 95}, "WEBP": {"lossless": True}}.get(file_format, {})
    plain = np.asarray(Image.open(io.BytesIO(encode(random_pixels(), file_format, **options))).convert("RGB"))
    expected = undo_orientation(plain, orientation)
    data = encode(random_pixels(), file_format, exif=exif_with_orientation(orientation), **options)
    assert_pixels(data, expected)
    with Image.open(io.BytesIO(data)) as image:
        assert_pixels(image, expected)
        assert_pixels(image, expected)  # not modified by the first call
        assert_pixels(ImageOps.exif_transpose(image), expected)


def test_orientation_of_pil_image_in_memory_is_applied() -> None:
    image = Image.fromarray(random_pixels())
    image.getexif()[ORIENTATION] = 6
    assert_pixels(image, undo_orientation(random_pixels(), 6))


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_orientation_out_of_range_is_ignored(orientation: int) -> None:
    assert_pixels(encode(random_pixels(), exif=exif_with_orientation(orientation)), random_pixels())


def test_orientation_in_xmp_or_text_chunk_is_ignored() -> None:
    xmp = '<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    block = exif_with_orientation(6).tobytes()
    for key, text in (
        ("XML:com.adobe.xmp", xmp),
        ("Raw profile type exif", f"\nexif\n{len(block):8}\n{block.hex()}\n"),
    ):
        info = PngImagePlugin.PngInfo()
        info.add_itxt(key, text)
        assert_pixels(encode(random_pixels(), pnginfo=info), random_pixels())
        assert_pixels(
            encode(random_pixels(), pnginfo=info, exif=exif_with_orientation(3)),
            undo_orientation(random_pixels(), 3),
        )


def test_orientation_in_xmp_of_pil_image_is_ignored() -> None:
    image = Image.fromarray(random_pixels())
    image.info["xmp"] = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    assert_pixels(image, random_pixels())


def test_damaged_exif_is_logged_and_ignored(caplog: pytest.LogCaptureFixture) -> None:
    assert_pixels(encode(random_pixels(), exif=b"Exif\0\0no TIFF header"), random_pixels())
    assert "EXIF orientation ignored" in caplog.text


@pytest.mark.parametrize("orientation", range(1, 9))
def test_upright_returns_a_view(orientation: int) -> None:
    pixels = random_pixels()
    turned = upright(pixels, orientation)
    np.testing.assert_array_equal(turned, undo_orientation(pixels, orientation))
    assert np.shares_memory(turned, pixels)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "TIFF", "WEBP"])
def test_upright_size_is_that_of_the_loaded_image(tmp_path: Path, file_format: str, orientation: int) -> None:
    path = tmp_path / "image"
    path.write_bytes(encode(random_pixels(), file_format, exif=exif_with_orientation(orientation)))
    expected = (WIDTH, HEIGHT) if orientation >= 5 else (HEIGHT, WIDTH)
    assert load_image(path).pixels.shape[:2] == expected
    assert upright_size(path) == upright_size(str(path)) == expected
    with Image.open(path) as image:
        assert upright_size(image) == expected
        assert_pixels(image, load_image(path).pixels)
        assert upright_size(image) == expected  # now loaded


def test_upright_size_does_not_decode(tmp_path: Path) -> None:
    for file_format in ("PNG", "JPEG"):
        content = encode(random_pixels(300, 200), file_format, exif=exif_with_orientation(6))
        path = tmp_path / "truncated"
        path.write_bytes(content[: len(content) // 2])
        assert upright_size(path) == (200, 300)


def test_upright_size_of_png_without_exif(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    path.write_bytes(encode(random_pixels(300, 200))[:1000])
    assert upright_size(path) == (300, 200)


def test_upright_size_ignores_xmp() -> None:
    image = Image.fromarray(random_pixels())
    image.info["xmp"] = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    assert read_orientation(image) == 1
    assert upright_size(image) == (HEIGHT, WIDTH)
    image.info["exif"] = exif_with_orientation(8).tobytes()
    assert read_orientation(image) == 8
    assert upright_size(image) == (WIDTH, HEIGHT)


def test_upright_size_of_other_files_raises_pillow_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        upright_size(tmp_path / "missing.jpg")
    (tmp_path / "text.jpg").write_text("not an image")
    with pytest.raises(UnidentifiedImageError):
        upright_size(tmp_path / "text.jpg")
