"""Reading COCO annotation files, and the errors for invalid ones."""

import json

import numpy as np
import pytest
from helpers.coco_sets import CAT, DOG, HEIGHT, NO_MASK, WIDTH, bitmap_of, content, write
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
        ({"segmentation": 5}, "expected polygons or RLE"),
        ({"segmentation": [["a"] * 6]}, "coordinate 'a': expected a number in pixels"),
        ({"segmentation": {"counts": "1"}}, "RLE of size None for an image of height 150, width 220"),
        ({"segmentation": {"size": [WIDTH, HEIGHT], "counts": "1"}}, r"RLE of size \[220, 150\]"),
        ({"segmentation": {"size": [HEIGHT, WIDTH], "counts": [5, 5]}}, "add up to the 33000 pixels"),
        ({"segmentation": {"size": [HEIGHT, WIDTH], "counts": [-5]}}, r"not in 0\.\.33000"),
        ({"segmentation": {"size": [HEIGHT, WIDTH], "counts": None}}, "neither a list of integers"),
        ({"segmentation": {"size": [HEIGHT, WIDTH], "counts": "a"}}, "damaged or cut off"),
        ({"area": "large"}, "\"area\" is 'large': expected a finite number"),
        ({"iscrowd": 2}, '"iscrowd" is 2: expected 0 or 1'),
        ({"ignore": "yes"}, "\"ignore\" is 'yes': expected 0 or 1"),
        ({"bbox": [1, 2, 3]}, r'"bbox" is \[1, 2, 3\]: expected x, y, width and height'),
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
    values["annotations"][4].update(segmentation="")
    del values["annotations"][4]["id"]
    with pytest.raises(DataError, match="json: annotation of image 30: .*polygons or RLE"):
        read_ground_truth(read_annotations(write_annotations(values)))


@pytest.mark.parametrize("segmentation", NO_MASK)
def test_instance_without_a_mask_is_skipped_with_one_warning(write_annotations, caplog, segmentation):
    values = content()
    for index in (0, 3):
        values["annotations"][index]["segmentation"] = segmentation
    instances = read_ground_truth(read_annotations(write_annotations(values)))
    assert {number: len(entries) for number, entries in instances.items()} == {3: 5, 17: 1, 40: 1}
    (message,) = [record.getMessage() for record in caplog.records]
    assert "2 of 9 instances skipped: 2 without a mask" in message


def test_file_without_any_mask_is_refused(write_annotations):
    values = content()
    for entry in values["annotations"]:
        entry["segmentation"] = []
    with pytest.raises(DataError, match="none of 9 annotations can be used: 9 without a mask.*of boxes"):
        read_ground_truth(read_annotations(write_annotations(values)))


# --- Categories


def with_root(values, **root):
    """Add the category that Roboflow adds to its exports."""
    for entry in values["categories"]:
        entry["supercategory"] = "animals"
    values["categories"].insert(0, {"id": 0, "name": "animals", "supercategory": "none", **root})
    return values


def test_category_that_only_groups_the_others_is_left_out(write_annotations, caplog):
    data = read_annotations(write_annotations(with_root(content())))
    assert data.categories.names == ("dog", "cat", "bird") and data.categories.ids == (3, 17, 40)
    assert data.category_ids == {0, 3, 17, 40}
    assert "category 'animals' (id 0) is left out" in caplog.text


def test_root_category_may_have_the_name_of_a_class(write_annotations):
    values = with_root(content(), name="cat")
    for entry in values["categories"][1:]:
        entry["supercategory"] = "cat"
    assert read_annotations(write_annotations(values)).categories.ids == (3, 17, 40)


@pytest.mark.parametrize(
    "make_real",
    [
        lambda values: values["annotations"][0].update(category_id=0),
        lambda values: values["categories"][0].update(id=1),
        lambda values: values["categories"][2].update(supercategory="animal"),
        lambda values: values["categories"][2].pop("supercategory"),
    ],
    ids=["annotated", "other id", "other supercategory", "no supercategory"],
)
def test_other_categories_are_kept(write_annotations, make_real):
    values = with_root(content())
    make_real(values)
    assert "animals" in read_annotations(write_annotations(values)).categories.names


def test_root_category_is_kept_if_it_is_named(write_annotations):
    path = write_annotations(with_root(content()))
    assert read_annotations(path, classes=["animals", "cat"]).categories.names == ("animals", "cat")
    assert read_annotations(path, keep=("animals",)).categories.ids == (0, 3, 17, 40)
    with pytest.raises(DataError, match="No class 'animal'. Did you mean 'animals'"):
        read_annotations(write_annotations(with_root(content())), classes=["animal", "animals"])


# --- Encodings and hostile files


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_encodings(tmp_path, encoding):
    values = content()
    values["images"][0]["file_name"] = "süß 図.png"
    path = tmp_path / "annotations.json"
    path.write_bytes(json.dumps(values, ensure_ascii=False).encode(encoding))
    assert read_annotations(path).images[0].file_name == "süß 図.png"
    assert read_image_ids(path)["süß 図.png"] == 30


@pytest.mark.parametrize("read", [read_annotations, read_image_ids])
@pytest.mark.parametrize("text", ["[" * 100_000, '{"images": ' + "[" * 100_000, '{"a": ' * 100_000])
def test_deeply_nested_file_raises_error(tmp_path, read, text):
    (tmp_path / "deep.json").write_text(text)
    with pytest.raises(DataError, match="deep.json cannot be read .*nested too deeply"):
        read(tmp_path / "deep.json")


@pytest.mark.parametrize("read", [read_annotations, read_image_ids])
def test_messages_quote_values_short_and_escaped(write_annotations, read):
    values = content()
    values["images"][0].update(id=[1], file_name="\x1b[31m\u202e" + "x" * 100_000)
    with pytest.raises(DataError) as caught:
        read(write_annotations(values))
    assert len(str(caught.value)) < 800 and str(caught.value).isprintable()


@pytest.mark.parametrize(
    "size", [{"height": 10**12}, {"width": 1_000_001}, {"height": 50_000, "width": 50_000}, {"height": True}]
)
def test_images_of_impossible_sizes_are_refused(write_annotations, size):
    with pytest.raises(DataError, match='"height" and "width" .1 to 1000000 pixels, at most 2147483647'):
        read_annotations(write_annotations(change("images", 0, **size)(content())))


def test_bools_are_not_ids(write_annotations):
    values = content()
    values["categories"][0]["id"] = 1
    for entry in values["annotations"]:
        entry["category_id"] = True if entry["category_id"] == CAT else entry["category_id"]
    with pytest.raises(DataError, match="annotation .*'category_id': True"):
        read_annotations(write_annotations(values))


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


@pytest.mark.parametrize("name", ["\ud800", "a\x1b[31m", "x" * 5000, "\0", "\u202e"])
def test_names_that_no_file_has_are_escaped_and_short(name):
    with pytest.raises(DataError, match="cannot be read") as error:
        read_annotations(name)
    assert str(error.value).isprintable() and len(str(error.value)) < 800
