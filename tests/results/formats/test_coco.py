"""COCO data sets: read by pycocotools and by this library, written as a stream."""

import io
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.masks import frame, random_mask
from helpers.results import HEIGHT, PETS, WIDTH, make_result
from pycocotools.coco import COCO

from solo_infer import Categories
from solo_infer.data.coco import read_annotations, read_ground_truth
from solo_infer.errors import ResultError
from solo_infer.ops import packed_masks
from solo_infer.results.formats.coco import to_annotations
from solo_infer.results.writers import CocoDataset, CsvFile


def with_masks(*masks, source="a.jpg"):
    """Return a result with some masks (H, W) of one size."""
    count = len(masks)
    return make_result(
        5,
        scores=torch.linspace(0.9, 0.5, count),
        labels=torch.arange(count) % 3,
        boxes=torch.zeros(count, 4),
        packed_masks=packed_masks.pack(torch.from_numpy(np.stack(masks))),
        image_size=masks[0].shape,
        source=source,
    )


def write(path, *results, **options):
    with CocoDataset(path, **options) as file:
        for result in results:
            file.add(result)
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("polygons_only", [False, True])
def test_pycocotools_reads_the_masks_exactly(tmp_path, polygons_only):
    blank = np.zeros_like(frame())
    results = [with_masks(frame(), frame()[:, ::-1], blank, frame()[::-1], source=f"{i}.jpg") for i in (7, 9)]
    results += [with_masks(random_mask(number), source=f"m{number}.png") for number in range(100)]
    write(tmp_path / "d.json", *results, polygons_only=polygons_only)
    data = COCO(str(tmp_path / "d.json"))
    by_name = {image["file_name"]: number for number, image in data.imgs.items()}
    assert by_name["7.jpg"] == 7
    kinds = set()
    for result in results:
        annotations = data.loadAnns(data.getAnnIds(imgIds=[by_name[result.source]]))
        masks = [instance for instance in result if instance.mask.any()]
        assert len(annotations) == len(masks)
        for annotation, instance in zip(annotations, masks, strict=True):
            mask = instance.mask.numpy()
            np.testing.assert_array_equal(data.annToMask(annotation).astype(bool), mask)
            assert annotation["area"] == mask.sum() and annotation["iscrowd"] == 0
            assert annotation["category_id"] == PETS.ids[instance.label]
            assert annotation["score"] == instance.score
            left, top, width, height = annotation["bbox"]
            inside = np.zeros_like(mask)
            inside[top : top + height, left : left + width] = True
            assert not (mask & ~inside).any()
            assert mask[top].any() and mask[:, left].any()
            assert mask[top + height - 1].any() and mask[:, left + width - 1].any()
            has_holes = any(polygon.holes for polygon in instance.polygons())
            kinds.add((has_holes, type(annotation["segmentation"])))
    assert kinds == {(False, list), (True, list if polygons_only else dict)}


def test_our_reader_reads_the_data_set(tmp_path):
    write(tmp_path / "d.json", with_masks(frame(), frame()[::-1]), with_masks(frame(), source="b.jpg"))
    data = read_annotations(tmp_path / "d.json")
    assert data.categories == Categories(("bird", "cat", "dog"), (16, 17, 18))
    assert [image.file_name for image in data.images] == ["a.jpg", "b.jpg"]
    areas = [instance.area for instances in read_ground_truth(data).values() for instance in instances]
    assert areas == [frame().sum()] * 3


def test_ids_of_annotations_are_unique_from_1(tmp_path):
    content = write(tmp_path / "d.json", make_result(), make_result(source="b.jpg"))
    assert [entry["id"] for entry in content["annotations"]] == list(range(1, 9))
    assert {entry["id"] for entry in content["images"]} == {1, 2}


def test_images_without_instances_are_listed(tmp_path):
    content = write(tmp_path / "d.json", make_result()[:0], with_masks(frame(), source="b.jpg"))
    assert [image["file_name"] for image in content["images"]] == ["süß.jpg", "b.jpg"]
    assert len(content["annotations"]) == 1 and len(content["categories"]) == 3
    assert write(tmp_path / "none.json") == {
        "info": content["info"],
        "images": [],
        "annotations": [],
        "categories": [],
    }


def test_min_score(tmp_path):
    content = write(tmp_path / "d.json", make_result(), min_score=0.6)
    assert len(content["annotations"]) == 2


@pytest.mark.parametrize(
    "root, names",
    [
        (None, ["x.jpg", "x_2.jpg", "x_3.jpg", "y.jpg", "image.jpg", "image_2.jpg"]),
        ("a", ["x.jpg", "b/x.jpg", "x_2.jpg", "y.jpg", "image.jpg", "image_2.jpg"]),
    ],
)
def test_file_names_are_unique(tmp_path, monkeypatch, root, names):
    monkeypatch.chdir(tmp_path)
    sources = ["a/x.jpg", "a/b/x.jpg", "c/x.jpg", "https://host/p/y.jpg?q=1", "", ""]
    content = write(tmp_path / "d.json", *[make_result(source=source) for source in sources], root=root)
    assert [image["file_name"] for image in content["images"]] == names


def test_other_categories_are_refused(tmp_path):
    with pytest.raises(ResultError, match="has other categories"):
        write(
            tmp_path / "d.json",
            make_result(),
            make_result(source="b", categories=Categories(("a", "b", "c"))),
        )
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_keeps_the_finished_images(tmp_path, monkeypatch):
    def interrupt(result, *args, **options):
        if result.source == "b.jpg":
            raise KeyboardInterrupt
        return to_annotations(result, *args, **options)

    monkeypatch.setattr("solo_infer.results.formats.coco.to_annotations", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "d.json", make_result(), make_result(source="b.jpg"))
    content = json.loads((tmp_path / "d.json").read_text())
    assert [image["file_name"] for image in content["images"]] == ["süß.jpg"]
    assert len(content["annotations"]) == 4 and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("writer", [CocoDataset, CsvFile])
def test_an_error_leaves_no_file(tmp_path, writer):
    (tmp_path / "d.json").write_text("before")
    with pytest.raises(ZeroDivisionError), writer(tmp_path / "d.json") as file:
        file.add(make_result())
        raise ZeroDivisionError
    assert (tmp_path / "d.json").read_text() == "before" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("writer", [CocoDataset, CsvFile])
def test_streams_are_written_and_stay_open(tmp_path, writer):
    stream = io.BytesIO()
    for target in (stream, tmp_path / "d.json"):
        with writer(target) as file:
            file.add(make_result())
    assert stream.getvalue() == (tmp_path / "d.json").read_bytes()
    with pytest.raises(ZeroDivisionError), writer(stream) as file:
        raise ZeroDivisionError
    assert not stream.closed


@pytest.mark.parametrize("writer", [CocoDataset, CsvFile])
def test_the_image_is_not_overwritten(tmp_path, writer):
    (tmp_path / "a.jpg").write_bytes(b"image")
    with pytest.raises(ResultError, match="is the same file as the segmented image"):
        with writer(tmp_path / "a.jpg") as file:
            file.add(make_result(source=str(tmp_path / "a.jpg")))
    assert (tmp_path / "a.jpg").read_bytes() == b"image"


def test_boxes_are_those_of_the_masks():
    result = replace(make_result(), boxes=torch.full((5, 4), torch.nan))
    boxes = [entry["bbox"] for entry in to_annotations(result, 1)]
    assert boxes[0] == [0, 0, 5, 3] and len(boxes) == 4  # of the masks
    assert (HEIGHT, WIDTH) == result.image_size
