"""Decoding of encoded images, PIL images, arrays and tensors, and the errors for invalid ones."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.image_sources import HEIGHT, ORIENTATION, WIDTH, assert_pixels, encode, gray3, random_pixels
from PIL import Image, ImageFile

from solo_infer.data.images import LoadedImage, load_image
from solo_infer.errors import ImageError


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 4000), (4000, 1)])
def test_extreme_sizes(height: int, width: int) -> None:
    pixels = random_pixels(height, width)
    assert_pixels(encode(pixels), pixels)
    assert_pixels(Image.fromarray(pixels), pixels)
    assert_pixels(pixels, pixels)
    assert_pixels(torch.from_numpy(pixels).permute(2, 0, 1), pixels)


def test_loaded_image_is_frozen() -> None:
    loaded = load_image(random_pixels())
    assert isinstance(loaded, LoadedImage)
    with pytest.raises(AttributeError):
        loaded.name = "other"  # type: ignore[misc]


@pytest.mark.parametrize("source", [None, 3, 2.5, [random_pixels()], object(), io.BytesIO(b"")])
def test_unknown_type_raises_error_with_accepted_types(source: Any) -> None:
    with pytest.raises(ImageError, match=rf"{type(source).__name__}.*PIL image.*numpy array.*torch tensor"):
        load_image(source)


@pytest.mark.parametrize("color", ["RGB", "gbr", "", None])
def test_unknown_color_raises_error(color: Any) -> None:
    with pytest.raises(ImageError, match='expected "rgb" or "bgr"'):
        load_image(random_pixels(), color=color)


def test_jpeg_decodes_as_in_pillow() -> None:
    data = encode(np.asarray(Image.fromarray(random_pixels()).resize((64, 48))), "JPEG", quality=90)
    assert_pixels(data, np.asarray(Image.open(io.BytesIO(data))))


def test_alpha_is_dropped() -> None:
    pixels = random_pixels()
    alpha = random_pixels(seed=1)[:, :, 0]
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
    decoded = load_image(la.convert("La")).pixels
    assert np.abs(decoded.astype(int) - 80).max() <= 1


@pytest.mark.parametrize("transparency", [None, 3, bytes(range(64))])
def test_palettes_with_and_without_transparency(transparency: int | bytes | None) -> None:
    palette = Image.fromarray(random_pixels()).quantize(64)
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


def test_transparent_color_of_rgb_and_gray_is_kept() -> None:
    pixels = random_pixels()
    assert_pixels(encode(pixels, transparency=tuple(pixels[0, 0].tolist())), pixels)
    assert_pixels(encode(pixels[:, :, 0], transparency=int(pixels[0, 0, 0])), gray3(pixels[:, :, 0]))


def test_gray_and_bilevel_are_repeated() -> None:
    gray = random_pixels()[:, :, 0]
    assert_pixels(encode(gray), gray3(gray))
    bilevel = Image.fromarray(gray > 127)
    assert bilevel.mode == "1"
    assert_pixels(bilevel, gray3(np.where(gray > 127, 255, 0)))
    assert_pixels(encode(bilevel), gray3(np.where(gray > 127, 255, 0)))


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "HSV", "LAB"])
def test_color_spaces_are_converted(mode: str) -> None:
    colors = np.array([[(255,) * 3, (0,) * 3, (128,) * 3, (200, 120, 60), (60, 130, 90)]], np.uint8)
    decoded = load_image(Image.fromarray(colors).convert(mode)).pixels
    assert np.abs(decoded.astype(int) - colors).max() <= 6


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


def in_files_and_memory(values: np.ndarray) -> list[Any]:
    image = Image.fromarray(values)
    return [image, encode(image, "TIFF")]


def test_float_pictures_follow_the_rule_of_float_arrays() -> None:
    values = np.array([[0.0, 0.4 / 255, 0.6 / 255, 0.5, 1.0]], np.float32)
    expected = gray3(np.array([[0, 0, 1, 128, 255]], np.uint8))
    for source in (values, *in_files_and_memory(values)):
        assert_pixels(source, expected)
    for wrong in (2.0, -0.5, np.nan, np.inf):
        damaged = np.append(values, np.float32(wrong))[None]
        for source in (damaged, *in_files_and_memory(damaged)):
            with pytest.raises(ImageError, match=r"expected floats in 0\.\.1"):
                load_image(source)


def test_thirty_two_bit_integers_are_bytes() -> None:
    values = np.array([[0, 7, 255]], np.int32)
    for source in in_files_and_memory(values):
        assert_pixels(source, gray3(values.astype(np.uint8)))
    for wrong in (-1, 256, 70000):
        for source in in_files_and_memory(np.array([[0, wrong]], np.int32)):
            with pytest.raises(ImageError, match=rf"mode I .*{wrong}.*expected 0\.\.255"):
                load_image(source)


@pytest.mark.parametrize("file_format", ["GIF", "TIFF", "PNG", "WEBP"])
def test_first_frame_is_loaded(file_format: str) -> None:
    frames = [Image.new("RGB", (8, 6), color) for color in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
    options = {"WEBP": {"lossless": True}}.get(file_format, {})
    data = encode(frames[0], file_format, save_all=True, append_images=frames[1:], **options)
    assert_pixels(data, np.full((6, 8, 3), (255, 0, 0), np.uint8))


def test_current_frame_of_pil_image_is_loaded() -> None:
    frames = [Image.new("RGB", (8, 6), color) for color in ((255, 0, 0), (0, 255, 0))]
    with Image.open(io.BytesIO(encode(frames[0], "TIFF", save_all=True, append_images=frames[1:]))) as image:
        image.seek(1)
        assert_pixels(image, np.full((6, 8, 3), (0, 255, 0), np.uint8))
        assert image.tell() == 1
        image.seek(0)
        assert_pixels(image, np.full((6, 8, 3), (255, 0, 0), np.uint8))


def test_pil_image_is_neither_modified_nor_shared() -> None:
    image = Image.fromarray(random_pixels())
    image.getexif()[ORIENTATION] = 3
    load_image(image).pixels[:] = 0
    np.testing.assert_array_equal(np.asarray(image), random_pixels())
    assert image.getexif()[ORIENTATION] == 3 and image.mode == "RGB"


def test_closed_and_empty_pil_images_raise_error(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encode(random_pixels()))
    image = Image.open(path)
    image.close()
    with pytest.raises(ImageError, match="17x12"):
        load_image(image)
    with pytest.raises(ImageError, match="0x5"):
        load_image(Image.new("RGB", (0, 5)))


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"])
def test_truncated_file_raises_error(file_format: str, tmp_path: Path) -> None:
    data = encode(random_pixels(64, 64), file_format)
    path = tmp_path / f"half.{file_format.lower()}"
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ImageError, match="half"):
        load_image(path)
    with pytest.raises(ImageError, match="Encoded image in memory"):
        load_image(data[: len(data) // 2])
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False


def test_truncated_pil_image_raises_error() -> None:
    data = encode(random_pixels(64, 64), "JPEG")
    with Image.open(io.BytesIO(data[: len(data) // 2])) as image:
        with pytest.raises(ImageError, match="truncated"):
            load_image(image)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_damaged_valuesraise_only_image_errors() -> None:
    random = np.random.default_rng(3)
    for file_format in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"):
        data = encode(random_pixels(), file_format)
        for _ in range(40):
            damaged = np.frombuffer(data, np.uint8).copy()
            damaged[random.integers(0, len(damaged), 4)] = random.integers(0, 256, 4)
            try:
                pixels = load_image(damaged.tobytes()).pixels
            except ImageError:
                continue
            assert pixels.ndim == 3 and pixels.shape[2] == 3


@pytest.mark.parametrize("data", [b"", b"\0", b"<html>not found</html>", b"\xff\xd8\xff"])
def test_content_that_is_not_an_image_raises_error(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "image.jpg"
    path.write_bytes(data)
    with pytest.raises(ImageError, match="image.jpg"):
        load_image(path)
    with pytest.raises(ImageError, match="Encoded image in memory"):
        load_image(data)


def test_postscript_is_not_executed() -> None:
    with pytest.raises(ImageError, match="PostScript"):
        load_image(encode(random_pixels(), "EPS"))


def test_decompression_bomb_raises_error_with_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = random_pixels()
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


# --- Arrays and tensors


def test_arrays_of_all_channel_counts_and_strides() -> None:
    pixels = random_pixels()
    rgba = np.dstack([pixels, random_pixels(seed=1)[:, :, 0]])
    gray = pixels[:, :, 0]
    assert_pixels(rgba, pixels)
    assert_pixels(rgba[:, :, [2, 1, 0, 3]], pixels, color="bgr")
    assert_pixels(gray, gray3(gray))
    assert_pixels(gray[:, :, None], gray3(gray), color="bgr")
    assert_pixels(np.asfortranarray(pixels), pixels)
    assert_pixels(pixels[::-1, ::-2], pixels[::-1, ::-2])
    assert_pixels(pixels[:, :, ::-1], pixels, color="bgr")
    read_only = pixels.copy()
    read_only.flags.writeable = False
    assert_pixels(read_only, pixels)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_arrays_and_tensors_are_copied(channels: int) -> None:
    array = np.zeros((4, 5, channels), np.uint8)
    tensor = torch.zeros(channels, 4, 5, dtype=torch.uint8)
    from_array, from_tensor = load_image(array).pixels, load_image(tensor).pixels
    array[:], tensor[:] = 9, 9
    assert not from_array.any() and not from_tensor.any()


def test_floats_are_rounded_with_tolerance_at_the_limits() -> None:
    values = np.array([[0.0, 0.4 / 255, 0.6 / 255, 1.0, 1 + 5e-7, -5e-7]])
    expected = gray3(np.array([[0, 0, 1, 255, 255, 0]], np.uint8))
    for dtype in (np.float32, np.float64, ">f4"):
        assert_pixels(values.astype(dtype), expected)
    assert_pixels(torch.tensor([[0.0, 1.0]], dtype=torch.bfloat16), gray3(np.array([[0, 255]], np.uint8)))


def test_uint8_values_survive_conversion_to_float() -> None:
    values = np.arange(256, dtype=np.uint8).reshape(16, 16)
    for dtype in (np.float16, np.float32, np.float64):
        assert_pixels((values / 255).astype(dtype), gray3(values))
    assert_pixels(torch.from_numpy(values) / 255, gray3(values))


@pytest.mark.parametrize(
    ("value", "text"),
    [(np.nan, "nan"), (np.inf, "inf"), (-np.inf, "-inf"), (1.001, "1.001"), (-0.5, "-0.5")],
)
def test_floats_out_of_range_raise_error_with_range(value: float, text: str) -> None:
    array = np.full((2, 2, 3), 0.5, np.float32)
    array[1, 1, 1] = value
    for source in (array, array.astype(np.float64), torch.from_numpy(array).permute(2, 0, 1)):
        with pytest.raises(ImageError, match=rf"{text}.*0\.\.1.*uint8"):
            load_image(source)


@pytest.mark.parametrize("dtype", [bool, np.int8, np.uint16, np.int64, np.complex64, object, "U1"])
def test_unsupported_array_dtype_raises_error(dtype: Any) -> None:
    with pytest.raises(ImageError, match=r"\(2, 2, 3\) and dtype .*expected uint8"):
        load_image(np.zeros((2, 2, 3), dtype))


@pytest.mark.parametrize("dtype", [torch.bool, torch.int8, torch.int64, torch.complex64])
def test_unsupported_tensor_dtype_raises_error(dtype: torch.dtype) -> None:
    with pytest.raises(ImageError, match=rf"\(3, 2, 2\) and dtype {dtype}.*expected uint8"):
        load_image(torch.zeros(3, 2, 2, dtype=dtype))


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((3, 20, 30), r"\(3, 20, 30\).*looks like \(C, H, W\).*transpose"),
        ((20, 30, 2), r"\(20, 30, 2\).*expected"),
        ((20, 30, 5), r"\(20, 30, 5\).*expected"),
        ((20,), r"\(20,\).*expected"),
        ((), "expected"),
        ((2, 20, 30, 3), r"batch.*list\(batch\)"),
        ((1, 2, 3, 4, 5), "expected"),
        ((0, 5, 3), r"\(0, 5, 3\).*empty"),
        ((5, 0), "empty"),
    ],
)
def test_unsupported_array_layout_raises_error(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ImageError, match=message):
        load_image(np.zeros(shape, np.uint8))


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((20, 30, 3), r"\(20, 30, 3\).*looks like \(H, W, C\).*permute"),
        ((2, 20, 30), r"\(2, 20, 30\).*expected"),
        ((20,), "expected"),
        ((2, 3, 20, 30), r"batch.*list\(batch\)"),
        ((3, 0, 5), "empty"),
    ],
)
def test_unsupported_tensor_layout_raises_error(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ImageError, match=message):
        load_image(torch.zeros(shape, dtype=torch.uint8))


def test_tensors_of_all_channel_counts_and_strides() -> None:
    pixels = random_pixels()
    rgba = torch.from_numpy(np.dstack([pixels, pixels[:, :, 0]])).permute(2, 0, 1)
    assert_pixels(rgba, pixels)
    assert_pixels(rgba[[2, 1, 0, 3]], pixels, color="bgr")
    assert_pixels(rgba[:1], gray3(pixels[:, :, 0]))
    assert_pixels(rgba[0], gray3(pixels[:, :, 0]))


def test_tensor_without_accessible_pixels_raises_error() -> None:
    with pytest.raises(ImageError, match="no accessible pixels"):
        load_image(torch.zeros(3, 2, 2, device="meta"))
    with pytest.raises(ImageError, match="no accessible pixels"):
        load_image(torch.zeros(3, 2, 2).to_sparse())


def test_negative_bit_and_nested_tensors() -> None:
    """Lazily negated tensors are read, and nested ones are refused, in every layout that images have."""
    pixels = torch.rand(3, 5, 4, generator=torch.Generator().manual_seed(0))
    for image in (pixels, pixels[0], pixels[:1]):
        negated = torch.complex(torch.zeros_like(image), -image).conj().imag
        assert negated.is_neg() and negated.shape == image.shape
        assert np.array_equal(load_image(negated).pixels, load_image(image).pixels)
    layouts = [{}, {"layout": torch.jagged}] if hasattr(torch, "jagged") else [{}]
    for layout in layouts:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # nested tensors are a prototype
            nested = torch.nested.nested_tensor([torch.ones(3, 4), torch.ones(2, 4)], **layout)
        with pytest.raises(ImageError, match="nested tensor is not an image"):
            load_image(nested)
