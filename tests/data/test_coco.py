"""Reading COCO annotation files, and the errors for invalid ones."""

import json

import numpy as np
import pytest
from helpers.coco_sets import CAT, DOG, HEIGHT, WIDTH, bitmap_of, content, write
from pycocotools import mask as rle

from solo_infer.data.coco import ImageRecord, read_annotations, read_ground_truth, read_image_ids
from solo_infer.errors import ConfigError, DataError


@pytest.fixture
def write_annotations(tmp_path):
    return lambda values: write(tmp_path / "annotations.json", values)


@pytest.fixture
def data(write_annotations):
    return read_annotations(write_annotations(content()))


def test_read_annotations(data):
    assert [image.id for image in data.images] == [30, 7, 12, 99]
    assert data.images[1] == ImageRecord(7, "a/1.png", HEIGHT, WIDTH)
    assert data.categories.names == ("dog", "cat", "bird") and data.categories.ids == (3, 17, 40)
    assert len(data.annotations) == 9
    first = data.annotations[0]
    assert (first.id, first.image_id, first.category_id, first.is_crowd) == (1, 7, CAT, False)
    assert (first.segmentation, first.area, first.bbox) == ([[10, 10, 30, 10, 30, 25, 10, 25]], 300.0, None)


def test_paths_may_be_strings(write_annotations):
    path = write_annotations(content())
    assert read_annotations(str(path)) == read_annotations(path)
    assert read_annotations(str(path)).path == path
    assert read_image_ids(str(path)) == read_image_ids(path)


def test_extra_keys_of_images_are_kept(write_annotations):
    values = content()
    values["images"][1].update(license=3, labelled_category_ids=[DOG])
    images = read_annotations(write_annotations(values)).images
    assert images[0].extra == {}
    assert images[1].extra == {"license": 3, "labelled_category_ids": [DOG]}


def test_select_classes_and_images(write_annotations):
    path = write_annotations(content())
    selection = read_annotations(path, classes=["cat", "cat"], limit=2)
    assert [image.id for image in selection.images] == [30, 7]
    assert selection.categories.names == ("cat",)
    assert {entry.category_id for entry in selection.annotations} == {CAT} and len(selection.annotations) == 3
    assert selection.image_ids == {30, 7, 12, 99} and selection.category_ids == {3, 17, 40}
    with pytest.raises(DataError, match="No class 'Dog'. Did you mean 'dog'"):
        read_annotations(path, classes=["Dog"])
    with pytest.raises(DataError, match="no class was selected"):
        read_annotations(path, classes=[])
    with pytest.raises(ConfigError, match="limit=0"):
        read_annotations(path, limit=0)


def test_ground_truth(data):
    instances = read_ground_truth(data)
    assert {number: len(entries) for number, entries in instances.items()} == {3: 5, 17: 3, 40: 1}
    assert [instance.is_crowd for instance in instances[DOG]] == [False, True, False, False, False]
    crowd = instances[DOG][1]
    decoded = rle.decode({"size": [HEIGHT, WIDTH], "counts": crowd.counts})
    assert np.array_equal(decoded, bitmap_of(slice(0, 90))) and crowd.area == 90 * HEIGHT


def test_optional_keys_of_annotations(write_annotations):
    values = content()
    for entry in values["annotations"]:
        del entry["id"], entry["area"], entry["iscrowd"]
    instances = read_ground_truth(read_annotations(write_annotations(values)))
    assert not any(instance.is_crowd for instance in instances[DOG])
    assert instances[DOG][1].area == 90 * HEIGHT


def test_image_ids_may_be_strings(write_annotations):
    text = (
        json.dumps(content()).replace('"image_id": 7', '"image_id": "7"').replace('{"id": 7,', '{"id": "7",')
    )
    values = json.loads(text)
    with pytest.raises(DataError, match="image ids of several types"):
        read_annotations(write_annotations(values))
    for image in values["images"]:
        image["id"] = str(image["id"])
    for entry in values["annotations"]:
        entry["image_id"] = str(entry["image_id"])
    assert len(read_annotations(write_annotations(values)).annotations) == 9


def change(section, index=None, **fields):
    """Return a function that makes an annotation file invalid."""

    def apply(values):
        if index is None:
            values[section] = fields.get("value")
        else:
            values[section][index].update(fields)
        return values

    return apply


@pytest.mark.parametrize(
    "make_invalid, message",
    [
        (
            lambda values: values["annotations"],
            "not a COCO annotation file.*lists images, annotations, categories",
        ),
        (change("images"), "not a COCO annotation file.*lists images, annotations, categories"),
        (change("images", value=[]), "lists no images"),
        (change("categories", value=[]), "lists no categories"),
        (change("images", value=["1.png"]), "image '1.png': expected \"id\""),
        (change("images", 0, id=7), '"id" of images: 7 occurs more than once'),
        (change("images", 0, id=1.5), 'expected "id"'),
        (change("images", 0, file_name="a/1.png"), "\"file_name\" of images: 'a/1.png' occurs"),
        (change("images", 0, height=0), '"height" and "width"'),
        (change("images", 0, width="220"), '"height" and "width"'),
        (change("categories", 0, id="17"), 'category .* expected "id" \\(an integer'),
        (change("categories", 0, name=None), 'and "name"'),
        (change("categories", 0, name="dog"), "'dog' occurs more than once"),
        (change("categories", 0, id=3), "3 occurs more than once"),
        (change("annotations", 0, image_id=8), "annotation .*'image_id': 8.*listed in \"images\""),
        (change("annotations", 0, image_id=[7]), "annotation .*'image_id'"),
        (change("annotations", 0, category_id=2), "annotation .*'category_id': 2"),
        (change("annotations", value=[5]), "annotation 5: expected"),
    ],
)
def test_inconsistent_annotation_file_raises_error(write_annotations, make_invalid, message):
    with pytest.raises(DataError, match=message):
        read_annotations(write_annotations(make_invalid(content())))


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"segmentation": []}, "expected polygons or RLE"),
        ({"segmentation": None}, "expected polygons or RLE"),
        ({"segmentation": [[1, 2]]}, "pycocotools cannot read the polygons"),
        ({"segmentation": [["a"] * 6]}, "pycocotools cannot read the polygons"),
        ({"segmentation": {"counts": "1"}}, "RLE of size None for an image of height 150, width 220"),
        ({"segmentation": {"size": [WIDTH, HEIGHT], "counts": "1"}}, r"RLE of size \[220, 150\]"),
        ({"segmentation": {"size": [HEIGHT, WIDTH], "counts": [5, 5]}}, "add up to the 33000 pixels"),
        ({"segmentation": {"size": [HEIGHT, WIDTH], "counts": [-5]}}, "neither a list of integers"),
        ({"segmentation": {"size": [HEIGHT, WIDTH], "counts": None}}, "neither a list of integers"),
        ({"segmentation": {"size": [HEIGHT, WIDTH], "counts": "a"}}, "damaged or cut off"),
        ({"area": "large"}, "\"area\" is 'large': expected a finite number"),
        ({"iscrowd": None}, '"iscrowd" is None'),
    ],
)
def test_annotation_without_usable_mask_raises_error(write_annotations, fields, message):
    path = write_annotations(change("annotations", 4, **fields)(content()))
    with pytest.raises(DataError, match=message) as caught:
        read_ground_truth(read_annotations(path))
    assert "annotations.json: annotation 5 of image 30: " in str(caught.value)


def test_unreadable_file_raises_error(tmp_path):
    with pytest.raises(DataError, match="nothing.json cannot be read .FileNotFoundError"):
        read_annotations(tmp_path / "nothing.json")
    (tmp_path / "half.json").write_text('{"images": [')
    with pytest.raises(DataError, match="half.json cannot be read .JSONDecodeError"):
        read_annotations(tmp_path / "half.json")
    with pytest.raises(DataError, match="nothing.json cannot be read .FileNotFoundError"):
        read_image_ids(tmp_path / "nothing.json")


def test_annotation_without_id_is_identified_by_its_image(write_annotations):
    values = content()
    values["annotations"][4].update(segmentation=[])
    del values["annotations"][4]["id"]
    with pytest.raises(DataError, match="json: annotation of image 30: .*polygons or RLE"):
        read_ground_truth(read_annotations(write_annotations(values)))


# --- Image ids


def test_read_image_ids(tmp_path):
    images = [{"id": 3, "file_name": "a/b.jpg"}, {"id": "x", "file_name": "süß.jpg"}]
    path = write(tmp_path / "a.json", {"images": images})
    assert read_image_ids(path) == {"a/b.jpg": 3, "süß.jpg": "x"}


@pytest.mark.parametrize(
    "text, message",
    [
        (None, "cannot be read.*expected a COCO annotation file"),
        ("", "cannot be read.*expected a COCO annotation file"),
        ("[]", "is not a COCO annotation file"),
        ('{"annotations": []}', "is not a COCO annotation file.*images"),
        ('{"images": []}', "lists no images"),
        ('{"images": [{"id": 1}]}', "expected .*file_name"),
        ('{"images": [1]}', 'image 1: expected "id"'),
        ('{"images": [{"id": [1], "file_name": "a"}]}', "an integer or a string"),
        ('{"images": [{"id": 1.5, "file_name": "a"}]}', "an integer or a string"),
        ('{"images": [{"id": 1, "file_name": 2}]}', "a string"),
        (
            '{"images": [{"id": 1, "file_name": "a"}, {"id": 2, "file_name": "a"}]}',
            "file_name.*'a' occurs",
        ),
        ('{"images": [{"id": 1, "file_name": "a"}, {"id": 1, "file_name": "b"}]}', '"id" .* 1 occurs'),
    ],
)
def test_invalid_file_of_image_ids_raises_error(tmp_path, text, message):
    if text is not None:
        (tmp_path / "a.json").write_text(text)
    with pytest.raises(DataError, match=f"a.json.*{message}"):
        read_image_ids(tmp_path / "a.json")
