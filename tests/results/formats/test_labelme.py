"""labelme files."""

import base64
import io
import json

import numpy as np
import pytest
import torch
from helpers.masks import frame, random_mask
from helpers.results import make_result
from PIL import Image

from solo_infer.errors import ResultError
from solo_infer.ops import packed_masks
from solo_infer.results.formats.polygons import rasterize
from solo_infer.results.writers import LabelmeFolder


def mask_of(shapes, height, width):
    """Return the mask of the shapes of one instance, as labelme draws them."""
    mask = np.zeros((height, width), bool)
    for shape in shapes:
        points = np.array(shape["points"])
        if shape["shape_type"] == "polygon":
            mask |= rasterize([points], height, width)
        else:
            (x1, y1), (x2, y2) = points.astype(int)
            png = Image.open(io.BytesIO(base64.b64decode(shape["mask"])))
            mask[y1 : y2 + 1, x1 : x2 + 1] |= np.asarray(png).astype(bool)
    return mask


def test_shapes_are_the_mask():
    kinds = set()
    for mask in [frame(), *map(random_mask, range(60))]:
        packed = packed_masks.pack(torch.from_numpy(mask))[None]
        result = make_result(2, packed_masks=packed, image_size=mask.shape)[:1]
        content = json.loads(json.dumps(result.to_labelme()))
        shapes = content["shapes"]
        np.testing.assert_array_equal(mask_of(shapes, *mask.shape), mask)
        assert (content["imageHeight"], content["imageWidth"]) == mask.shape
        assert {shape["label"] for shape in shapes} <= {"dog"}
        groups = {shape["group_id"] for shape in shapes}
        assert groups == ({0} if len(shapes) > 1 else {None} if shapes else set())
        kinds |= {shape["shape_type"] for shape in shapes}
    assert kinds == {"polygon", "mask"}


def test_folder_refers_to_the_images(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = LabelmeFolder("out/labels", min_score=0.6)
    sources = ("photos/x.jpg", "x.png", "https://host/y.jpg?a", "")
    contents = [json.loads(folder.add(make_result(source=source)).read_text()) for source in sources]
    assert [content["imagePath"] for content in contents] == [
        "../../photos/x.jpg",
        "../../x.png",
        "y.jpg",
        "",
    ]
    assert len(contents[0]["shapes"]) == 2
    assert sorted(path.name for path in folder.folder.iterdir()) == [
        "image.json",
        "x.json",
        "x_2.json",
        "y.json",
    ]


def test_existing_files_are_never_replaced(tmp_path):
    (tmp_path / "x.json").write_text("edited")
    with pytest.raises(ResultError, match=r"x\.json' exists, and may have been edited"):
        LabelmeFolder(tmp_path).add(make_result(source="x.jpg"))
    assert (tmp_path / "x.json").read_text() == "edited"
