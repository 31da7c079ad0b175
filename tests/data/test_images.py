"""How encoded pictures and PIL images are decoded, and which are refused."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.picture_sources import HEIGHT, ORIENTATION, WIDTH, assert_pixels, encode, exif_of, gray3, picture
from PIL import Image, ImageFile, ImageOps, PngImagePlugin

from solo_infer.data.images import LoadedImage, load_image
from solo_infer.errors import ImageError


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 4000), (4000, 1)])
def test_extreme_sizes(height: int, width: int) -> None:
    pixels = picture(height, width)
    assert_pixels(encode(pixels), pixels)
    assert_pixels(Image.fromarray(pixels), pixels)
    assert_pixels(pixels, pixels)
    assert_pixels(torch.from_numpy(pixels).permute(2, 0, 1), pixels)


def test_loaded_images_are_frozen() -> None:
    loaded = load_image(picture())
    assert isinstance(loaded, LoadedImage)
    with pytest.raises(AttributeError):
        loaded.name = "other"  # type: ignore[misc]


@pytest.mark.parametrize("source", [None, 3, 2.5, [picture()], object(), io.BytesIO(b"")])
def test_unknown_types_are_refused_with_what_is_accepted(source: Any) -> None:
    with pytest.raises(ImageError, match=rf"{type(source).__name__}.*PIL image.*numpy array.*torch tensor"):
        load_image(source)


@pytest.mark.parametrize("color", ["RGB", "gbr", "", None])
def test_unknown_colors_are_refused(color: Any) -> None:
    with pytest.raises(ImageError, match='expected "rgb" or "bgr"'):
        load_image(picture(), color=color)


def test_jpeg_decodes_as_pillow_does() -> None:
    data = encode(np.asarray(Image.fromarray(picture()).resize((64, 48))), "JPEG", quality=90)
    assert_pixels(data, np.asarray(Image.open(io.BytesIO(data))))


def upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Undo an EXIF orientation, spelt out after the table of the EXIF standard."""
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
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP"])
def test_exif_orientation_is_applied_once(kind: str, orientation: int) -> None:
    options = {"JPEG": {"quality": 95}, "WEBP": {"lossless": True}}.get(kind, {})
    plain = np.asarray(Image.open(io.BytesIO(encode(picture(), kind, **options))).convert("RGB"))
    expected = upright(plain, orientation)
    data = encode(picture(), kind, exif=exif_of(orientation), **options)
    assert_pixels(data, expected)
    with Image.open(io.BytesIO(data)) as image:
        assert_pixels(image, expected)
        assert_pixels(image, expected)  # the first call left it as it was
        assert_pixels(ImageOps.exif_transpose(image), expected)


def test_orientation_set_on_a_pil_image_in_memory() -> None:
    image = Image.fromarray(picture())
    image.getexif()[ORIENTATION] = 6
    assert_pixels(image, upright(picture(), 6))


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_orientations_out_of_range_mean_upright(orientation: int) -> None:
    assert_pixels(encode(picture(), exif=exif_of(orientation)), picture())


def test_orientation_in_xmp_or_a_text_chunk_does_not_count() -> None:
    xmp = '<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    block = exif_of(6).tobytes()
    for key, text in (
        ("XML:com.adobe.xmp", xmp),
        ("Raw profile type exif", f"\nexif\n{len(block):8}\n{block.hex()}\n"),
    ):
        info = PngImagePlugin.PngInfo()
        info.add_itxt(key, text)
        assert_pixels(encode(picture(), pnginfo=info), picture())
        assert_pixels(encode(picture(), pnginfo=info, exif=exif_of(3)), upright(picture(), 3))


def test_orientation_in_the_xmp_of_a_pil_image_does_not_count() -> None:
    image = Image.fromarray(picture())
    image.info["xmp"] = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    assert_pixels(image, picture())


def test_damaged_exif_is_reported_and_ignored(caplog: pytest.LogCaptureFixture) -> None:
    assert_pixels(encode(picture(), exif=b"Exif\0\0no TIFF header"), picture())
    assert "EXIF orientation ignored" in caplog.text


def test_alpha_is_dropped_not_blended() -> None:
    pixels = picture()
    alpha = picture(seed=1)[:, :, 0]
    rgba = Image.fromarray(np.dstack([pixels, alpha]))
    assert_pixels(rgba, pixels)
    assert_pixels(encode(rgba), pixels)
    la = Image.merge("LA", [Image.fromarray(pixels[:, :, 0]), Image.fromarray(alpha)])
    assert_pixels(la, gray3(pixels[:, :, 0]))
    assert_pixels(encode(la), gray3(pixels[:, :, 0]))


def test_premultiplied_alpha_is_undone() -> None:
    rgba = Image.new("RGBA", (3, 2), (200, 100, 50, 255))
    assert_pixels(rgba.convert("RGBa"), np.full((2, 3, 3), (200, 100, 50), np.uint8))
    la = Image.new("LA", (3, 2), (80, 128))
    found = load_image(la.convert("La")).pixels
    assert np.abs(found.astype(int) - 80).max() <= 1


@pytest.mark.parametrize("transparency", [None, 3, bytes(range(64))])
def test_palettes_with_and_without_transparency(transparency: int | bytes | None) -> None:
    palette = Image.fromarray(picture()).quantize(64)
    expected = np.asarray(palette.convert("RGB"))
    options = {} if transparency is None else {"transparency": transparency}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_pixels(encode(palette, **options), expected)
        assert_pixels(palette.convert("PA"), expected)
        with Image.open(io.BytesIO(encode(palette, **options))) as image:
            assert_pixels(image, expected)
            assert image.info.get("transparency") == transparency
            assert image.palette is not None and image.palette.mode == "RGB"


def test_a_transparent_color_of_rgb_and_gray_pictures_is_kept_as_it_is() -> None:
    pixels = picture()
    assert_pixels(encode(pixels, transparency=tuple(pixels[0, 0].tolist())), pixels)
    assert_pixels(encode(pixels[:, :, 0], transparency=int(pixels[0, 0, 0])), gray3(pixels[:, :, 0]))


def test_gray_and_bilevel_are_repeated() -> None:
    gray = picture()[:, :, 0]
    assert_pixels(encode(gray), gray3(gray))
    bilevel = Image.fromarray(gray > 127)
    assert bilevel.mode == "1"
    assert_pixels(bilevel, gray3(np.where(gray > 127, 255, 0)))
    assert_pixels(encode(bilevel), gray3(np.where(gray > 127, 255, 0)))


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "HSV", "LAB"])
def test_color_spaces_are_converted(mode: str) -> None:
    colors = np.array([[(255,) * 3, (0,) * 3, (128,) * 3, (200, 120, 60), (60, 130, 90)]], np.uint8)
    found = load_image(Image.fromarray(colors).convert(mode)).pixels
    assert np.abs(found.astype(int) - colors).max() <= 6


def test_sixteen_bit_gray_keeps_its_high_byte() -> None:
    values = np.random.default_rng(2).integers(0, 65536, (HEIGHT, WIDTH)).astype(np.uint16)
    expected = gray3((values >> 8).astype(np.uint8))
    assert_pixels(encode(Image.fromarray(values)), expected)
    assert_pixels(encode(Image.fromarray(values), "TIFF"), expected)
    assert_pixels(Image.fromarray(values), expected)
    pgm = b"P5 %d %d 65535\n" % (WIDTH, HEIGHT) + values.astype(">u2").tobytes()
    assert_pixels(pgm, expected)
    for mode in ("I;16L", "I;16B"):
        assert_pixels(Image.new(mode, (3, 2), 0x1234), np.full((2, 3, 3), 0x12, np.uint8))


def test_thirty_two_bit_integers_and_floats_are_clipped() -> None:
    values = np.array([[-5, 0, 7, 255, 256, 70000]])
    expected = gray3(np.array([[0, 0, 7, 255, 255, 255]], np.uint8))
    for dtype in (np.int32, np.float32):
        image = Image.fromarray(values.astype(dtype))
        assert image.mode in ("I", "F")
        assert_pixels(image, expected)
        assert_pixels(encode(image, "TIFF"), expected)
    with pytest.raises(ImageError, match="NaN"):
        load_image(Image.fromarray(np.array([[0.0, np.nan]], np.float32)))


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "PNG", "WEBP"])
def test_of_several_frames_the_first_is_taken(kind: str) -> None:
    frames = [Image.new("RGB", (8, 6), color) for color in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
    options = {"WEBP": {"lossless": True}}.get(kind, {})
    data = encode(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert_pixels(data, np.full((6, 8, 3), (255, 0, 0), np.uint8))


def test_a_pil_image_is_taken_at_its_frame_and_left_there() -> None:
    frames = [Image.new("RGB", (8, 6), color) for color in ((255, 0, 0), (0, 255, 0))]
    with Image.open(io.BytesIO(encode(frames[0], "TIFF", save_all=True, append_images=frames[1:]))) as image:
        image.seek(1)
        assert_pixels(image, np.full((6, 8, 3), (0, 255, 0), np.uint8))
        assert image.tell() == 1
        image.seek(0)
        assert_pixels(image, np.full((6, 8, 3), (255, 0, 0), np.uint8))


def test_the_callers_pil_image_is_neither_modified_nor_shared() -> None:
    image = Image.fromarray(picture())
    image.getexif()[ORIENTATION] = 3
    load_image(image).pixels[:] = 0
    np.testing.assert_array_equal(np.asarray(image), picture())
    assert image.getexif()[ORIENTATION] == 3 and image.mode == "RGB"


def test_closed_and_empty_pil_images_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encode(picture()))
    image = Image.open(path)
    image.close()
    with pytest.raises(ImageError, match="17x12"):
        load_image(image)
    with pytest.raises(ImageError, match="0x5"):
        load_image(Image.new("RGB", (0, 5)))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"])
def test_truncated_files_are_refused(kind: str, tmp_path: Path) -> None:
    data = encode(picture(64, 64), kind)
    path = tmp_path / f"half.{kind.lower()}"
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ImageError, match="half"):
        load_image(path)
    with pytest.raises(ImageError, match="bytes given"):
        load_image(data[: len(data) // 2])
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False


def test_a_truncated_pil_image_is_refused() -> None:
    data = encode(picture(64, 64), "JPEG")
    with Image.open(io.BytesIO(data[: len(data) // 2])) as image:
        with pytest.raises(ImageError, match="truncated"):
            load_image(image)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_damaged_bytes_never_raise_anything_else() -> None:
    random = np.random.default_rng(3)
    for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"):
        data = encode(picture(), kind)
        for _ in range(40):
            damaged = np.frombuffer(data, np.uint8).copy()
            damaged[random.integers(0, len(damaged), 4)] = random.integers(0, 256, 4)
            try:
                pixels = load_image(damaged.tobytes()).pixels
            except ImageError:
                continue
            assert pixels.ndim == 3 and pixels.shape[2] == 3


@pytest.mark.parametrize("data", [b"", b"\0", b"<html>not found</html>", b"\xff\xd8\xff"])
def test_what_is_no_image_is_refused(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "picture.jpg"
    path.write_bytes(data)
    with pytest.raises(ImageError, match="picture.jpg"):
        load_image(path)
    with pytest.raises(ImageError, match="bytes"):
        load_image(data)


def test_postscript_is_refused_before_it_is_run() -> None:
    with pytest.raises(ImageError, match="PostScript"):
        load_image(encode(picture(), "EPS"))


def test_decompression_bombs_are_refused_with_counts_and_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = picture()
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ImageError, match=r"204 pixels.*PIL\.Image\.MAX_IMAGE_PIXELS \(now 100\)"):
        load_image(encode(pixels))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 150)
    with pytest.warns(Image.DecompressionBombWarning):
        assert_pixels(encode(pixels), pixels)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ImageError, match="204 pixels"):
            load_image(encode(pixels))
