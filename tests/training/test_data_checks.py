"""Checks of images and of validation data before the first iteration."""

import logging

import pytest
from helpers.training_sets import (
    ANIMALS,
    change_json,
    instance,
    pixels_of,
    rectangle,
    write_animals,
    write_set,
)
from PIL import Image

from solo_infer.errors import DataError
from solo_infer.training.annotation_index import read_index
from solo_infer.training.data_checks import check_image_files, check_validation

CLASSES = ("cat", "dog")


def write_html(path):
    path.write_text("<!DOCTYPE html><title>404 Not Found</title>")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (write_html, "1 cannot be opened as images: 'b.png'"),
        (lambda path: path.write_bytes(b""), "1 cannot be opened as images: 'b.png'"),
        (lambda path: path.write_bytes(path.read_bytes()[:10]), "1 cannot be opened as images: 'b.png'"),
        (lambda path: Image.new("RGB", (30, 20)).save(path), "1 have another size than annotated: 'b.png'"),
        (lambda path: Image.new("RGB", (21, 30)).save(path), "1 have another size than annotated: 'b.png'"),
    ],
)
def test_wrong_images_are_named(tmp_path, damage, message):
    files = write_animals(tmp_path)
    check_image_files(read_index(*files))
    damage(tmp_path / "b.png")
    with pytest.raises(DataError, match=message) as caught:
        check_image_files(read_index(*files))
    assert str(tmp_path) in str(caught.value)
    with pytest.raises(DataError, match=message):
        check_validation(*files, CLASSES, (100,))
    assert check_validation(*files, CLASSES, (100,), check_files=False) == CLASSES


def test_orientation_counts_and_pixels_are_not_decoded(tmp_path):
    files = write_set(
        tmp_path, {"a.jpg": (40, 60)}, ANIMALS, [instance("a.jpg", "cat", rectangle(5, 5, 30, 30))]
    )
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels_of("a", 60, 40)).save(tmp_path / "a.jpg", exif=exif, quality=100)
    content = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(content[: len(content) * 3 // 4])
    check_image_files(read_index(*files))


def test_many_wrong_images_give_a_short_message(tmp_path):
    sizes = {f"{number}.png": (20, 20) for number in range(30)}
    instances = [instance(name, "cat", rectangle(2, 2, 15, 15)) for name in sizes]
    files = write_set(tmp_path, sizes, ANIMALS, instances)
    for number in range(30):
        write_html(tmp_path / f"{number}.png")
    with pytest.raises(DataError, match=r"30 cannot be opened as images: '0.png', '1.png', '2.png', \.\.\."):
        check_image_files(read_index(*files))


def remove_category(content, name):
    number = next(entry["id"] for entry in content["categories"] if entry["name"] == name)
    content["categories"] = [entry for entry in content["categories"] if entry["id"] != number]
    content["annotations"] = [entry for entry in content["annotations"] if entry["category_id"] != number]


def test_classes_that_validation_lacks_are_left_out(tmp_path, caplog):
    files = write_animals(tmp_path)
    change_json(files[1], lambda content: remove_category(content, "dog"))
    with caplog.at_level(logging.WARNING):
        assert check_validation(*files, CLASSES, (100,)) == ("cat",)
    assert "lacks 1 of the 2 classes ('dog'): they are not evaluated" in caplog.text


def rename(old, new):
    def change(content):
        for entry in content["categories"]:
            entry["name"] = new if entry["name"] == old else entry["name"]

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (rename("dog", "Dog"), "has no category 'dog' .*'Dog'"),
        (rename("dog", "DOG "), "has no category 'dog'"),
        (
            lambda content: [rename("dog", "Hund")(content), rename("cat", "Katze")(content)],
            "has no category",
        ),
        (
            lambda content: content["annotations"][0].update(segmentation={"size": [1, 1], "counts": "1"}),
            "RLE",
        ),
        (lambda content: content["images"][0].update(file_name="nowhere.png"), "nowhere.png"),
        (lambda content: content["images"][0].update(width=61), "have another size"),
        (lambda content: content.pop("images"), "not a COCO annotation file"),
    ],
)
def test_validation_data_that_cannot_be_evaluated(tmp_path, change, message):
    files = write_animals(tmp_path)
    change_json(files[1], change)
    with pytest.raises(DataError, match=message):
        check_validation(*files, CLASSES, (100,))


def test_missing_folder(tmp_path):
    files = write_animals(tmp_path)
    with pytest.raises(DataError, match="No folder"):
        check_validation(tmp_path / "nowhere", files[1], CLASSES, (100,))
