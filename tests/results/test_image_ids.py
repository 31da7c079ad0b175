"""Image ids of COCO results files."""

import pytest

from solo_infer.errors import ResultError
from solo_infer.results.writers import ImageIds


def test_source_keeps_its_id():
    ids = ImageIds()
    assert [ids.of(source) for source in ("a", "b", "a", "b", "c")] == [1, 2, 1, 2, 3]
    assert [ids.of("") for _ in range(2)] == [4, 5]


def test_each_frame_has_an_id():
    ids = ImageIds()
    assert [ids.of("7.mp4", index) for index in range(2)] == [1, 2]
    assert [ids.of("a.jpg"), ids.of("7.mp4", 0), ids.of("a.jpg")] == [3, 4, 3]


def test_ids_are_unique(caplog):
    ids = ImageIds()
    sources = ["cat.jpg", "a/1.jpg", "b/1.jpg", "a/2.jpg", "dog.jpg", "9.jpg"]
    image_ids = [ids.of(source) for source in sources]
    assert image_ids[0] == 1
    assert len(set(image_ids)) == len(image_ids)
    assert image_ids[-1] == 9
    (message,) = (record.getMessage() for record in caplog.records)  # only the first collision
    assert "a/1.jpg gets image id 2, because 1 is that of cat.jpg" in message


def test_long_numbers_are_not_ids():
    assert ImageIds().of("20210821123456789012345.jpg") == 1


ANNOTATED = {"val/1.jpg": 10, "train/1.jpg": 11, "2.jpg": 12, "three": "text"}


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
def test_ids_are_matched_by_the_end_of_the_path(source, expected):
    assert ImageIds(ANNOTATED).of(source) == expected


@pytest.mark.parametrize("source", ["1.jpg", "test/1.jpg", "3.jpg", "", "x2.jpg"])
def test_unknown_or_ambiguous_source_raises_error(source):
    with pytest.raises(ResultError, match="among the images of the annotation file"):
        ImageIds(ANNOTATED).of(source)


@pytest.mark.parametrize(
    "file_name",
    ["images\\val\\1.jpg", "..\\..\\media\\val\\1.jpg", "C:\\x\\val\\1.jpg", "val\\1.jpg", "x/val\\1.jpg"],
)
def test_file_names_from_windows_are_matched(file_name):
    ids = ImageIds({file_name: 10, "train\\1.jpg": 11, "..\\2.jpg": 12})
    assert [ids.of(source) for source in ("/data/val/1.jpg", "train/1.jpg", "2.jpg")] == [10, 11, 12]
    with pytest.raises(ResultError, match="among the images of the annotation file"):
        ids.of("other/1.jpg")


def test_literal_file_names_with_backslashes_are_matched():
    assert ImageIds({"a\\1.jpg": 1, "b\\1.jpg": 2}).of("photos/a\\1.jpg") == 1


def test_file_names_of_many_folders_take_little_memory():
    names = {"/".join(["a"] * 2000) + f"/{number}.jpg": number for number in range(50)}
    assert ImageIds(names).of("a/a/7.jpg") == 7


def test_two_sources_of_one_image_raise_error():
    ids = ImageIds(ANNOTATED)
    ids.of("a/2.jpg")
    with pytest.raises(ResultError, match=r"'b/2.jpg' and 'a/2.jpg' are both image 12"):
        ids.of("b/2.jpg")


def test_empty_mapping_raises_error():
    with pytest.raises(ResultError):
        ImageIds({}).of("1.jpg")
