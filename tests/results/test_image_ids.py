"""The image ids of COCO results files."""

import json

import pytest

from solo_infer.errors import ResultError
from solo_infer.results.writers import ImageIds, read_image_ids


def test_one_image_keeps_its_id():
    ids = ImageIds()
    assert [ids.of(source) for source in ("a", "b", "a", "b", "c")] == [1, 2, 1, 2, 3]
    assert [ids.of("") for _ in range(2)] == [4, 5]


def test_no_two_images_get_one_id(caplog):
    ids = ImageIds()
    sources = ["cat.jpg", "a/1.jpg", "b/1.jpg", "a/2.jpg", "dog.jpg", "9.jpg"]
    found = [ids.of(source) for source in sources]
    assert found[0] == 1
    assert len(set(found)) == len(found)
    assert found[-1] == 9
    (told,) = (record.getMessage() for record in caplog.records)  # once is enough
    assert "a/1.jpg gets image id 2, as 1 is that of cat.jpg" in told


def test_names_of_too_many_digits_are_no_numbers():
    assert ImageIds().of("20210821123456789012345.jpg") == 1


GIVEN = {"val/1.jpg": 10, "train/1.jpg": 11, "2.jpg": 12, "three": "text"}


@pytest.mark.parametrize(
    "source, expected",
    [
        ("/data/val/1.jpg", 10),
        ("train/1.jpg", 11),
        ("anywhere/2.jpg", 12),
        ("http://localhost/photos/val/1.jpg?x=2", 10),
        ("three", "text"),
    ],
)
def test_given_ids_are_found_by_the_end_of_the_path(source, expected):
    assert ImageIds(GIVEN).of(source) == expected


@pytest.mark.parametrize("source", ["1.jpg", "test/1.jpg", "3.jpg", "", "x2.jpg"])
def test_images_without_a_given_id_are_refused(source):
    with pytest.raises(ResultError, match="among the images of the annotation file"):
        ImageIds(GIVEN).of(source)


def test_two_files_that_are_one_given_image():
    ids = ImageIds(GIVEN)
    ids.of("a/2.jpg")
    with pytest.raises(ResultError, match=r"'b/2.jpg' and 'a/2.jpg' are both image 12"):
        ids.of("b/2.jpg")


def test_no_given_image_at_all():
    with pytest.raises(ResultError):
        ImageIds({}).of("1.jpg")


def test_read_image_ids(tmp_path):
    images = [{"id": 3, "file_name": "a/b.jpg"}, {"id": "x", "file_name": "süß.jpg"}]
    (tmp_path / "a.json").write_text(json.dumps({"images": images}))
    assert read_image_ids(tmp_path / "a.json") == {"a/b.jpg": 3, "süß.jpg": "x"}


@pytest.mark.parametrize(
    "content, message",
    [
        (None, "is no COCO annotation file"),
        ("", "is no COCO annotation file"),
        ("[]", "is no COCO annotation file"),
        ('{"annotations": []}', "is no COCO annotation file.*images"),
        ('{"images": [{"id": 1}]}', "is no COCO annotation file.*file_name"),
        ('{"images": [1]}', "is no COCO annotation file"),
        ('{"images": [{"id": [1], "file_name": "a"}]}', "expected a file name and a whole number"),
        ('{"images": [{"id": 1.5, "file_name": "a"}]}', "expected a file name and a whole number"),
        ('{"images": [{"id": 1, "file_name": 2}]}', "expected a file name and a whole number"),
        ('{"images": [{"id": 1, "file_name": "a"}, {"id": 2, "file_name": "a"}]}', "different"),
        ('{"images": [{"id": 1, "file_name": "a"}, {"id": 1, "file_name": "b"}]}', "different"),
    ],
)
def test_wrong_annotation_files(tmp_path, content, message):
    if content is not None:
        (tmp_path / "a.json").write_text(content)
    with pytest.raises(ResultError, match=message):
        read_image_ids(tmp_path / "a.json")
