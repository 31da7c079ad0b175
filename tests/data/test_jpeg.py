"""JPEG files without end marker are decoded; files that lack more are refused."""

from __future__ import annotations

import io
import threading
from typing import Any

import numpy as np
import pytest
from helpers.image_sources import encode, exif_with_orientation, random_pixels
from PIL import Image, ImageFile

from solo_infer.data.images import load_image, load_reduced
from solo_infer.errors import ImageError

END = b"\xff\xd9"
VARIANTS: dict[str, dict[str, Any]] = {
    "baseline": {},
    "progressive": {"progressive": True},
    "no subsampling": {"subsampling": 0},
    "restarts": {"restart_marker_blocks": 3},
    "restarts by row": {"restart_marker_rows": 1},
}


def smooth(mode: str = "RGB") -> Image.Image:
    """Return an image whose last row and column of blocks show a few pixels only."""
    return Image.fromarray(random_pixels()).resize((133, 97)).convert(mode)


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_only_the_end_marker_may_be_missing(options: dict[str, Any]) -> None:
    data = encode(smooth(), "JPEG", **options)
    assert data.endswith(END)
    expected = load_image(data).pixels
    for cut in (1, 2):
        np.testing.assert_array_equal(load_image(data[:-cut]).pixels, expected)
    scan = data.index(b"\xff\xda")
    for size in [*range(len(data) - 14, len(data) - 2), *range(scan, len(data) - 14, 149)]:
        with pytest.raises(ImageError):
            load_image(data[:size])


def test_scans_of_a_progressive_file_may_not_be_missing() -> None:
    data = encode(smooth(), "JPEG", progressive=True)
    scans = [index for index in range(len(data)) if data.startswith(b"\xff\xda", index)]
    for scan in scans[1:]:
        with pytest.raises(ImageError):
            load_image(data[:scan])


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_other_modes(mode: str) -> None:
    data = encode(smooth(mode), "JPEG")
    np.testing.assert_array_equal(load_image(data[:-2]).pixels, load_image(data).pixels)


def test_orientation_and_reduction_are_kept(tmp_path: Any) -> None:
    data = encode(smooth().resize((400, 300)), "JPEG", exif=exif_with_orientation(6))
    for name, content in (("whole.jpg", data), ("cut.jpg", data[:-2])):
        (tmp_path / name).write_bytes(content)
    whole, size = load_reduced(str(tmp_path / "whole.jpg"), 0.24)
    cut, cut_size = load_reduced(str(tmp_path / "cut.jpg"), 0.24)
    np.testing.assert_array_equal(cut, whole)
    assert size == cut_size == (400, 300)
    assert whole.shape == (100, 75, 3)


def test_threads_do_not_affect_each_other() -> None:
    """Pillow's own setting for truncated files would hold for all threads."""
    data = encode(smooth(), "JPEG")
    half, accepted = data[: len(data) // 2], []

    def load_damaged() -> None:
        for _ in range(30):
            try:
                accepted.append(load_image(half))
            except ImageError:
                assert ImageFile.LOAD_TRUNCATED_IMAGES is False

    thread = threading.Thread(target=load_damaged)
    thread.start()
    for _ in range(30):
        load_image(data[:-2])
    thread.join()
    assert accepted == []


def test_pil_images_keep_the_rule_of_pillow() -> None:
    data = encode(smooth(), "JPEG")
    with Image.open(io.BytesIO(data[:-2])) as image:
        with pytest.raises(ImageError, match="truncated"):
            load_image(image)
