"""Any image source to RGB pixels: the same picture gives the same pixels by every road.

Encoded pictures decode as OpenCV's ``imread`` with ``IMREAD_COLOR`` decodes them, which is what the
published models were trained and measured with: EXIF orientation is applied, alpha is dropped (not
blended), gray is repeated, and of 16-bit gray the high byte counts.
"""

from __future__ import annotations

import contextlib
import difflib
import glob
import http.client
import io
import itertools
import logging
import os
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import BinaryIO, Literal, TypeAlias
from urllib.parse import quote, urlsplit, urlunsplit

import numpy as np
import PIL.Image
import torch
from PIL import ExifTags, Image

from solo_infer._version import __version__
from solo_infer.errors import ImageError, OfflineError
from solo_infer.runtime import environment

logger = logging.getLogger(__name__)

Color: TypeAlias = Literal["rgb", "bgr"]
ImageSource: TypeAlias = (
    str | os.PathLike[str] | bytes | bytearray | memoryview | PIL.Image.Image | np.ndarray | torch.Tensor
)

IMAGE_SUFFIXES = frozenset(
    ".apng .avif .bmp .dib .gif .j2k .jfif .jp2 .jpe .jpeg .jpg .mpo .pbm .pgm .png .pnm .ppm .tga .tif "
    ".tiff .webp".split()
)
MAX_DOWNLOAD_BYTES = 100_000_000

_ENCODED = (bytes, bytearray, memoryview)
_SINGLE_TYPES = (str, os.PathLike, *_ENCODED, Image.Image, np.ndarray, torch.Tensor)
_ACCEPTED = (
    "a path (str or PathLike), an http(s) URL, encoded bytes, a PIL image, a numpy array (H, W, 3) uint8 "
    "or float 0..1, or a torch tensor (3, H, W) uint8 or float 0..1"
)
_TENSOR_DTYPES = (torch.uint8, torch.float16, torch.bfloat16, torch.float32, torch.float64)
_FLOAT_TOLERANCE = 1e-6
_MAX_NAMES_COMPARED = 10_000


@dataclass(frozen=True)
class LoadedImage:
    """A decoded image.

    Attributes:
        pixels: (H, W, 3) uint8 RGB, 0..255, C-contiguous and writable; never shares memory with the source.
        name: The path or URL as it was given, "" for an image in memory.
    """

    pixels: np.ndarray
    name: str


def is_single_source(x: object) -> bool:
    """Return whether ``x`` is, by its type, one source that ``load_image`` takes.

    A folder or a glob pattern counts too, being a path: only ``iterate_sources`` expands them.
    """
    return isinstance(x, _SINGLE_TYPES)


def iterate_sources(source: object) -> Iterator[ImageSource]:
    """Yield the single sources that ``source`` stands for; nothing is decoded here.

    Args:
        source: A folder (its files with one of ``IMAGE_SUFFIXES``, hidden ones left out, sorted, not
            recursive), a glob pattern ("photos/**/*.jpg": all files that match, sorted), an iterable of
            sources, which is taken as it comes, or one source, which yields itself.

    Raises:
        ImageError: There is no image in the folder, nothing matches the pattern, or ``source`` is no
            source at all.
    """
    if isinstance(source, str | os.PathLike):
        return iter(_expand_path(source))
    if isinstance(source, _SINGLE_TYPES):
        return iter([source])
    if isinstance(source, Iterable):
        return iter(source)
    raise ImageError(
        f"Unknown source of type {type(source).__name__}: expected {_ACCEPTED}, a folder, a glob pattern or "
        "an iterable of these."
    )


def load_image(source: ImageSource, *, color: Color = "rgb") -> LoadedImage:
    """Load one image from any source.

    Of a file with several frames the first is taken, of a PIL image the frame it stands at. 32-bit
    integer and float pictures (modes I and F) are clipped to 0..255.

    Args:
        source: A path (``~`` is expanded), an http(s) URL, the bytes of an encoded file, a PIL image of any
            mode (left as it is), a numpy array (H, W, 3), (H, W, 4), (H, W, 1) or (H, W), or a torch tensor
            (3, H, W), (4, H, W), (1, H, W) or (H, W) on any device. Arrays and tensors are uint8 0..255 or
            float 0..1, which is rounded to uint8.
        color: Channel order of arrays and tensors: "rgb(a)" or "bgr(a)". Other sources know their own.

    Raises:
        ImageError: The source cannot be found, fetched, decoded or understood.
        OfflineError: The source is a URL, but offline mode forbids the network.
    """
    if color not in ("rgb", "bgr"):
        raise ImageError(f'color={color!r}: expected "rgb" or "bgr".')
    if isinstance(source, str) and _is_url(source):
        return LoadedImage(_from_url(source), source)
    if isinstance(source, str | os.PathLike):
        return LoadedImage(_from_path(source), os.fsdecode(source))
    if isinstance(source, _ENCODED):
        return LoadedImage(_decode(io.BytesIO(bytes(source)), "The bytes given"), "")
    if isinstance(source, Image.Image):
        with _explained(f"The PIL image (mode {source.mode}, {source.width}x{source.height} px)"):
            return LoadedImage(_from_pil(source), "")
    if isinstance(source, np.ndarray):
        return LoadedImage(_from_array(source, color), "")
    if isinstance(source, torch.Tensor):
        return LoadedImage(_from_tensor(source, color), "")
    raise ImageError(f"Unknown image source of type {type(source).__name__}: expected {_ACCEPTED}.")


def _is_url(text: str) -> bool:
    return text.lower().startswith(("http://", "https://"))


def _expand_path(source: str | os.PathLike[str]) -> list[str | os.PathLike[str]]:
    """Return the files of a folder or a glob pattern, or the path or URL itself."""
    given = os.fsdecode(source)
    path = os.path.expanduser(given)
    if _is_url(given) or os.path.isfile(path):
        return [source]
    if os.path.isdir(path):
        names = sorted(
            entry.name
            for entry in os.scandir(path)
            if os.path.splitext(entry.name)[1].lower() in IMAGE_SUFFIXES
            and not entry.name.startswith(".")
            and entry.is_file()
        )
        if not names:
            raise ImageError(
                f"No image in folder {given!r}: expected files ending in {' '.join(sorted(IMAGE_SUFFIXES))}; "
                f"for subfolders give a glob pattern, e.g. {os.path.join(given, '**', '*.jpg')!r}."
            )
        return [os.path.join(path, name) for name in names]
    if glob.has_magic(path):
        found = sorted({match for match in glob.iglob(path, recursive=True) if os.path.isfile(match)})
        if not found:
            raise ImageError(f"No file matches the pattern {given!r} (in {os.getcwd()!r}).")
        return list(found)
    return [source]


def _from_path(source: str | os.PathLike[str]) -> np.ndarray:
    given = os.fsdecode(source)
    shown = _shorten(given)
    path = os.path.expanduser(given)
    if os.path.isdir(path):
        raise ImageError(f"{shown} is a folder: load_image() takes one image; give the folder to stream().")
    try:
        file = open(path, "rb")
    except FileNotFoundError as error:
        raise ImageError(f"There is no file {shown}. {_advise(path)}") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ImageError(f"{shown} cannot be opened ({reason}): expected an image file.") from error
    with file:
        return _decode(file, shown)


def _advise(path: str) -> str:
    """Say what may be meant by a path that does not exist."""
    folder, name = os.path.split(path)
    if glob.has_magic(path):
        return "If it is a glob pattern, give it to stream()."
    if "://" in path:
        return "Of URLs, only those with http:// or https:// are fetched."
    if not os.path.isdir(folder or "."):
        return f"There is no folder {_shorten(folder)} either (the working directory is {os.getcwd()!r})."
    try:
        with os.scandir(folder or ".") as entries:
            names = [entry.name for entry in itertools.islice(entries, _MAX_NAMES_COMPARED)]
    except OSError as error:
        return f"Its folder cannot be read: {error}."
    by_lower_case = {other.lower(): other for other in names}
    near = difflib.get_close_matches(name.lower(), by_lower_case, n=3)
    if near:
        return "Did you mean " + " or ".join(repr(by_lower_case[other]) for other in near) + "?"
    return f"Check the name; relative paths start at {os.getcwd()!r}."


def _from_url(url: str) -> np.ndarray:
    shown = _shorten(url)
    if environment.is_offline():
        raise OfflineError(
            f"{shown} would have to be fetched, but offline mode is on ({environment.OFFLINE} or "
            "HF_HUB_OFFLINE is set): give a local file, or unset the variable."
        )
    headers = {"User-Agent": f"solo-infer/{__version__}"}
    timeout = environment.network_timeout()
    try:
        request = urllib.request.Request(_quote(url), headers=headers)
        with urllib.request.urlopen(request, timeout=timeout) as response:
            too_large = int(response.headers.get("Content-Length") or 0) > MAX_DOWNLOAD_BYTES
            data = b"" if too_large else response.read(MAX_DOWNLOAD_BYTES + 1)
            kind = response.headers.get_content_type()
    except urllib.error.HTTPError as error:
        error.close()
        raise ImageError(f"{shown}: the server answered HTTP {error.code} {error.reason}.") from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", None) or str(error) or type(error).__name__
        raise ImageError(f"{shown} cannot be fetched: {reason}. Check the URL and the connection.") from error
    if too_large or len(data) > MAX_DOWNLOAD_BYTES:
        raise ImageError(
            f"{shown} is larger than {MAX_DOWNLOAD_BYTES:,} bytes, the most that is fetched: "
            "download it yourself and give the file."
        )
    return _decode(io.BytesIO(data), f"{shown} (sent as {kind!r})")


def _quote(url: str) -> str:
    """Percent-encode what urllib refuses in the path and query (blanks, umlauts), leaving escapes alone."""
    parts = urlsplit(url)
    path, query = (quote(part, safe="/%:=&?+!$,;'@()*[]~|") for part in (parts.path, parts.query))
    return urlunsplit(parts._replace(path=path, query=query, fragment=""))


def _decode(file: BinaryIO, shown: str) -> np.ndarray:
    """Decode the first frame of an encoded image."""
    if not file.read(1):
        raise ImageError(f"{shown}: 0 bytes; expected an encoded image (JPEG, PNG, ...).")
    file.seek(0)
    with _explained(shown), Image.open(file) as image:
        if image.format == "EPS":  # decoding would run Ghostscript, which a picture must not be able to do
            raise ImageError(f"{shown} is a PostScript drawing: convert it to PNG or JPEG first.")
        return _from_pil(image)


@contextlib.contextmanager
def _explained(shown: str) -> Iterator[None]:
    """Turn whatever Pillow raises while it opens and decodes into an ``ImageError``."""
    try:
        yield
    except (ImageError, MemoryError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(
            f"{shown} is suspiciously large: {error} If you trust it, raise PIL.Image.MAX_IMAGE_PIXELS "
            f"(now {Image.MAX_IMAGE_PIXELS}) or set it to None."
        ) from error
    except PIL.UnidentifiedImageError as error:
        raise ImageError(
            f"{shown}: not an image, or of a format this Pillow cannot read; expected JPEG, PNG, ..."
        ) from error
    except Exception as error:  # for a damaged file, Pillow's plugins raise almost anything
        reason = str(error) or type(error).__name__
        raise ImageError(f"{shown}: damaged, truncated or not decodable ({reason}).") from error


def _from_pil(image: Image.Image) -> np.ndarray:
    """Convert a PIL image, which is left as it is, to upright RGB pixels."""
    image.load()  # only now are size, mode and info final
    if 0 in image.size:
        raise ImageError(f"PIL image of {image.width}x{image.height} px: expected at least one pixel.")
    return np.ascontiguousarray(_upright(_pil_to_rgb(image), _orientation(image)))


def _pil_to_rgb(image: Image.Image) -> np.ndarray:
    """Convert a PIL image to a new (H, W, 3) uint8 array, before orientation."""
    # Some versions of Pillow open 16-bit gray PNG and PGM files as 32-bit integers.
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        return _repeat_gray(np.asarray(image) >> 8)
    if image.mode in ("I", "F"):
        values = np.asarray(image)
        if np.isnan(values).any():
            raise ImageError("Float picture (mode F) that holds NaN: replace it by numbers 0..255.")
        return _repeat_gray(values.clip(0, 255))
    if image.mode in ("P", "PA") or "transparency" in image.info:
        # Converted with its transparency, it would warn or write into the caller's palette.
        image = image.copy()
        image.info.pop("transparency", None)
    straight = {"La": "LA", "RGBa": "RGBA"}.get(image.mode)
    if straight:
        image = image.convert(straight)
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def _repeat_gray(values: np.ndarray) -> np.ndarray:
    return np.repeat(values.astype(np.uint8)[:, :, None], 3, axis=2)


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1..8; 1 if there is none.

    Only the EXIF block counts, as for OpenCV and browsers: Pillow falls back on XMP and on a text chunk
    of PNG files.
    """
    try:
        if {"xmp", "XML:com.adobe.xmp", "Raw profile type exif"} & image.info.keys():
            exif = Image.Exif()
            exif.load(image.info.get("exif", b""))
        else:
            exif = image.getexif()
        orientation = exif.get(ExifTags.Base.Orientation, 1)
    except Exception as error:  # damaged EXIF raises almost anything, and is no reason to refuse a picture
        logger.warning("EXIF orientation ignored, the block is damaged: %s", error)
        return 1
    return orientation if orientation in range(1, 9) else 1


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Return a view of (H, W, 3) pixels that undoes the EXIF orientation."""
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels


def _from_array(array: np.ndarray, color: Color) -> np.ndarray:
    shown = f"Numpy array of shape {array.shape} and dtype {array.dtype}"
    expected = "expected (H, W, 3), (H, W, 4), (H, W, 1) or (H, W)"
    if array.ndim == 4:
        raise ImageError(f"{shown} looks like a batch: pass a list of images, list(batch).")
    if array.ndim == 3 and array.shape[2] not in (1, 3, 4) and array.shape[0] in (1, 3, 4):
        raise ImageError(f"{shown} looks like (C, H, W): {expected}; transpose it: array.transpose(1, 2, 0).")
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        raise ImageError(f"{shown}: {expected}.")
    return _from_channels_last(np.asarray(array), color, shown)


def _from_tensor(tensor: torch.Tensor, color: Color) -> np.ndarray:
    shape = tuple(tensor.shape)
    shown = f"Tensor of shape {shape} and dtype {tensor.dtype}"
    expected = "expected (3, H, W), (4, H, W), (1, H, W) or (H, W)"
    if tensor.ndim == 4:
        raise ImageError(f"{shown} looks like a batch: pass a list of images, list(batch).")
    if tensor.ndim == 3 and shape[0] not in (1, 3, 4) and shape[2] in (1, 3, 4):
        raise ImageError(f"{shown} looks like (H, W, C): {expected}; permute it: tensor.permute(2, 0, 1).")
    if tensor.ndim not in (2, 3) or (tensor.ndim == 3 and shape[0] not in (1, 3, 4)):
        raise ImageError(f"{shown}: {expected}.")
    if tensor.is_meta or tensor.is_quantized or tensor.layout != torch.strided:
        raise ImageError(f"{shown} holds no plain pixels: expected a dense tensor with data.")
    if tensor.dtype not in _TENSOR_DTYPES:
        raise ImageError(f"{shown}: expected uint8 0..255 or float 0..1.")
    values = tensor.detach().cpu()
    if values.dtype == torch.bfloat16:  # numpy has none
        values = values.float()
    array = values.numpy()
    return _from_channels_last(array.transpose(1, 2, 0) if array.ndim == 3 else array, color, shown)


def _from_channels_last(array: np.ndarray, color: Color, shown: str) -> np.ndarray:
    """Return a new RGB image of an array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4)."""
    if array.size == 0:
        raise ImageError(f"{shown} is empty: expected at least one pixel.")
    if array.ndim == 2:
        array = array[:, :, None]
    channels = array[:, :, :3]
    values = _to_uint8(channels[:, :, ::-1] if color == "bgr" else channels, shown)
    return np.array(np.broadcast_to(values, (*values.shape[:2], 3)), order="C")


def _to_uint8(values: np.ndarray, shown: str) -> np.ndarray:
    """Round floats 0..1 to 0..255; uint8 comes back as it is."""
    if values.dtype == np.uint8:
        return values
    if values.dtype.kind != "f" or values.dtype.itemsize not in (2, 4, 8):
        raise ImageError(f"{shown}: expected uint8 0..255, or float 0..1; convert it, e.g. astype(np.uint8).")
    low, high = float(values.min()), float(values.max())
    if not (low >= -_FLOAT_TOLERANCE and high <= 1 + _FLOAT_TOLERANCE):  # also true for NaN
        raise ImageError(
            f"{shown}: the values run from {low:g} to {high:g}; floats must lie in 0..1, without NaN. Cast "
            "an image of 0..255 to uint8, undo a normalization, or clip."
        )
    return (values.clip(0, 1).astype(np.float32) * 255 + 0.5).astype(np.uint8)


def _shorten(text: str, length: int = 200) -> str:
    """Quote a path or URL for a message, cutting what cannot be one (say, a file's content)."""
    return repr(text if len(text) <= length else text[: length - 3] + "...")
