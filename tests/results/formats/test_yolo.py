"""YOLO segmentation labels."""

import numpy as np
import pytest
import torch
from helpers.masks import frame, random_mask
from helpers.results import make_result

from solo_infer import Categories
from solo_infer.errors import ResultError
from solo_infer.ops import packed_masks
from solo_infer.results.formats.polygons import rasterize
from solo_infer.results.writers import YoloFolder


def rings(text, height, width):
    """Return label and ring in pixels of each line of a label file."""
    lines = [line.split() for line in text.splitlines()]
    return [(int(first), np.array(rest, float).reshape(-1, 2) * (width, height)) for first, *rest in lines]


def test_one_ring_covers_a_mask_with_holes_and_parts():
    for mask in [frame(), *map(random_mask, range(60))]:
        packed = packed_masks.pack(torch.from_numpy(mask))[None]
        result = make_result(2, packed_masks=packed, image_size=mask.shape)[:1]
        found = rings(result.to_yolo(), *mask.shape)
        assert len(found) == mask.any()
        for label, ring in found:
            assert label == 1 and ring.min() >= 0 and (ring <= mask.shape[::-1]).all()
            np.testing.assert_array_equal(rasterize([ring.round(3)], *mask.shape), mask)


def test_scores_are_at_the_end_of_the_lines():
    result = make_result()
    plain, scored = result.to_yolo().splitlines(), result.to_yolo(scores=True).splitlines()
    assert len(plain) == 4  # the last mask is empty
    assert scored[0] == f"{plain[0]} 0.9" and plain[0].startswith("1 ")


def test_folder(tmp_path):
    folder = YoloFolder(tmp_path / "y", min_score=0.4)
    paths = [folder.add(make_result(source=source)) for source in ("a/x.jpg", "b/x.png", "b/z.jpg")]
    paths.append(folder.add(make_result(source="empty.jpg")[:0]))
    assert [path.relative_to(tmp_path).as_posix() for path in paths] == [
        f"y/labels/{name}.txt" for name in ("x", "x_2", "z", "empty")
    ]
    assert paths[0].read_text() == make_result().filter(0.4).to_yolo() and paths[3].read_text() == ""
    assert folder.data_file.read_text() == (
        'path: .\ntrain: images\nval: images\nnames:\n  0: "cat"\n  1: "dog"\n  2: "bird"\n'
    )


def test_existing_labels_are_never_replaced(tmp_path):
    path = YoloFolder(tmp_path).add(make_result(source="x.jpg"))
    path.write_text("edited")
    again = YoloFolder(tmp_path)
    with pytest.raises(ResultError, match=r"x\.txt' exists, and may have been edited"):
        again.add(make_result(source="x.jpg"))
    with pytest.raises(ResultError, match="may have been edited"):
        again.require_new(["y.jpg", "x.jpg"])
    again.require_new(["y.jpg"])
    assert path.read_text() == "edited"
    assert again.add(make_result(source="y.jpg")).is_file()  # other images may be added


def test_classes_of_a_folder_do_not_change(tmp_path):
    YoloFolder(tmp_path).add(make_result(source="x.jpg"))
    before = (tmp_path / "data.yaml").read_text()
    with pytest.raises(ResultError, match="exists with other content"):
        YoloFolder(tmp_path).add(make_result(source="y.jpg", categories=Categories(("a", "b", "c"))))
    assert (tmp_path / "data.yaml").read_text() == before


def test_any_class_name_is_valid_yaml(tmp_path):
    yaml = pytest.importorskip("yaml", reason="data.yaml is read with PyYAML")
    names = ('a: "b"', "new\nline", "犬 \U0001f415", "\x85\x7f\u2028\ufeff")
    categories = Categories((*names, "\\ # {x}", "no"))
    YoloFolder(tmp_path).add(make_result(source="x.jpg", categories=categories))
    content = yaml.safe_load((tmp_path / "data.yaml").read_text(encoding="utf-8"))
    assert tuple(content["names"].values()) == categories.names
    assert list(content["names"]) == list(range(6))


def test_supervision_reads_the_folder(tmp_path, photo):
    supervision = pytest.importorskip("supervision", reason="supervision is not installed")
    from PIL import Image

    (tmp_path / "images").mkdir()
    image = tmp_path / "images" / "a.png"
    Image.fromarray(photo[:20, :29]).save(image)
    result = make_result(source=str(image))
    folder = YoloFolder(tmp_path)
    folder.add(result)
    data = supervision.DetectionDataset.from_yolo(
        str(tmp_path / "images"), str(tmp_path / "labels"), str(folder.data_file)
    )
    assert data.classes == ["cat", "dog", "bird"]
    (detections,) = data.annotations.values()
    assert detections.class_id.tolist() == [1, 0, 1, 2]
