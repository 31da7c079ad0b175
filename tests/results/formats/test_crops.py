"""Cut-outs of instances."""

from pathlib import Path

import numpy as np
import pytest
from helpers.command_line import files_below
from helpers.results import make_result
from PIL import Image

from solo_infer import Categories
from solo_infer.errors import ResultError
from solo_infer.results.writers import CropFolder


def test_pixels_and_opacity():
    result = make_result()
    crops = list(result.to_crops())
    assert [crop.size for crop in crops] == [(5, 3)] * 4 + [(0, 0)]
    for index, crop in enumerate(crops[:4]):
        window = (slice(index, index + 3), slice(2 * index, 2 * index + 5))
        pixels = np.asarray(crop)
        assert crop.mode == "RGBA"
        np.testing.assert_array_equal(pixels[..., :3], result.image[window])
        np.testing.assert_array_equal(pixels[..., 3] == 255, result.masks[index].numpy()[window])
        assert set(np.unique(pixels[..., 3])) == {0, 255}


def test_an_image_is_required():
    with pytest.raises(ResultError, match="has no image to cut from"):
        next(make_result(image=None).to_crops())
    with pytest.raises(ResultError, match="expected equal heights and widths"):
        next(make_result(image=np.zeros((5, 5, 3), np.uint8)).to_crops())


def test_folder(tmp_path):
    names = ("../../cat: 1", "", "d" * 300)
    folder = CropFolder(tmp_path / "out", min_score=0.2)
    for source in ("a/x.jpg", "b/x.jpg", "https://host/..", "/"):
        folder.add(make_result(source=source, categories=Categories(names)))
    files = files_below(tmp_path)
    assert len(files) == 16 and {Path(name).parts[1] for name in files} == {"x", "x_2", "image", "image_2"}
    assert files[0] == "out/image/000_instance.png" and files[1] == "out/image/001_______cat__1.png"
    with Image.open(tmp_path / files[0]) as crop:
        assert (crop.mode, crop.size) == ("RGBA", (5, 3))
        assert crop.tobytes() == next(make_result().to_crops()).tobytes()


def test_sources_are_never_overwritten(tmp_path):
    source = tmp_path / "x" / "000_dog.png"
    source.parent.mkdir()
    source.write_text("original")
    CropFolder(tmp_path, keep=[source]).add(make_result(source="x.jpg")[:1])
    assert files_below(tmp_path) == ["x/000_dog.png", "x/000_dog_2.png"]
    assert source.read_text() == "original"


def test_folder_that_cannot_be_created(tmp_path):
    (tmp_path / "x").write_text("file")
    with pytest.raises(ResultError, match="cannot be created.*Choose another folder"):
        CropFolder(tmp_path).add(make_result(source="x.jpg"))
