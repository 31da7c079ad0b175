"""Image files are found by "file_name", also in names from other systems, and only inside of their folder."""

import pytest
from helpers.coco_sets import content, draw_images, write

from solo_infer.data.coco import read_annotations
from solo_infer.data.image_files import find_image, find_images
from solo_infer.errors import DataError
from solo_infer.evaluation.predict import _find_images
from solo_infer.training.annotation_index import read_index


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "photos"
    for name in ("p0.jpg", "val/p1.jpg", "val/p0.jpg", "süß 図.jpg", "photos/p9.jpg", "a%20b.jpg"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    (tmp_path / "outside.jpg").touch()
    return root


@pytest.mark.parametrize(
    "file_name, expected",
    [
        ("p0.jpg", "p0.jpg"),
        ("./p0.jpg", "./p0.jpg"),
        ("val/p1.jpg", "val/p1.jpg"),
        ("süß 図.jpg", "süß 図.jpg"),
        ("images\\p0.jpg", "p0.jpg"),
        ("val\\p1.jpg", "val/p1.jpg"),
        (".\\val\\p0.jpg", "val/p0.jpg"),
        ("..\\..\\media\\val\\p1.jpg", "val/p1.jpg"),
        ("C:\\Users\\x\\val\\p0.jpg", "val/p0.jpg"),
        ("C:p0.jpg", "p0.jpg"),
        ("\\\\server\\share\\photos\\p0.jpg", "p0.jpg"),
        ("images\\val/p1.jpg", "val/p1.jpg"),
        ("images/p0.jpg", "p0.jpg"),
        ("../p0.jpg", "p0.jpg"),
        ("val/../p0.jpg", "p0.jpg"),
        ("/somewhere/val/p0.jpg", "val/p0.jpg"),
        ("https://host.example/val/p1.jpg", "val/p1.jpg"),
    ],
)
def test_names_are_matched_by_their_longest_end(folder, file_name, expected):
    assert find_image(folder, file_name) == expected
    assert find_image(str(folder), file_name) == expected


@pytest.mark.parametrize(
    "file_name",
    [
        "",
        ".",
        "..",
        "/",
        "\\",
        "val",
        "p1.jpg",
        "P0.JPG",
        "p0.jpg ",
        "../outside.jpg",
        "..\\outside.jpg",
        "val/../../outside.jpg",
        "x" * 300 + ".jpg",
        "x/" * 2000 + "y.jpg",
        "data:image/png;base64," + "iVBOR/" * 600,
        "p0.jpg\0",
        "\ud800.jpg",
        "C:",
    ],
    ids=lambda name: ascii(name)[:30],
)
def test_missing_names(folder, file_name):
    assert find_image(folder, file_name) is None


def test_absolute_names_never_lead_out_of_the_folder(folder):
    assert find_image(folder, str(folder.parent / "outside.jpg")) is None
    assert find_image(folder, "/etc/hostname") is None
    assert find_image(folder, str(folder / "val" / "p1.jpg")) == "val/p1.jpg"
    assert find_image(folder, str(folder / "p0.jpg")) == "p0.jpg"
    (folder / "photos" / "p0.jpg").touch()  # also the end of the path below
    assert find_image(folder, str(folder / "p0.jpg")) == "p0.jpg"


def test_links_in_the_folder_are_followed(folder):
    (folder / "link.jpg").symlink_to(folder.parent / "outside.jpg")
    (folder / "linked").symlink_to(folder.parent)
    (folder / "broken.jpg").symlink_to("nothing.jpg")
    assert find_image(folder, "link.jpg") == "link.jpg"
    assert find_image(folder, "linked\\outside.jpg") == "linked/outside.jpg"
    assert find_image(folder, "broken.jpg") is None


def test_literal_name_with_a_backslash_is_preferred(folder):
    (folder / "val\\p1.jpg").touch()
    assert find_image(folder, "val\\p1.jpg") == "val\\p1.jpg"


def windows_set(tmp_path, rename):
    values = content()
    folder = draw_images(tmp_path / "photos", values)
    for image in values["images"]:
        image["file_name"] = rename(image["file_name"])
    return folder, write(tmp_path / "annotations.json", values)


@pytest.mark.parametrize("prefix", ["images\\", "..\\..\\media\\", "D:\\data\\"])
def test_training_and_evaluation_read_names_from_windows(tmp_path, caplog, prefix):
    folder, path = windows_set(tmp_path, lambda name: prefix + name.replace("/", "\\"))
    assert [read_index(folder, path).name(image) for image in range(4)] == [
        "b/2.png",
        "a/1.png",
        "3.png",
        "4.png",
    ]
    sources = _find_images(folder, read_annotations(path))
    assert list(sources) == [str(folder / name) for name in ("b/2.png", "a/1.png", "3.png", "4.png")]
    assert "4 of 4 file names are not in" in caplog.text and "2.png' with 'b/2.png'" in caplog.text


def test_two_names_of_one_file_are_refused(tmp_path):
    folder, path = windows_set(tmp_path, lambda name: name.replace("b/2.png", "x\\3.png"))
    for read in (lambda: read_index(folder, path), lambda: _find_images(folder, read_annotations(path))):
        with pytest.raises(DataError, match=r"'x\\\\3.png' and '3.png': expected different files"):
            read()


@pytest.mark.parametrize("name", ["x" * 300 + ".png", "data:image/png;base64,AAAA/BBBB", "a\x1b\u202e.png"])
def test_missing_names_of_any_kind_are_reported(tmp_path, name):
    folder, path = windows_set(tmp_path, lambda old: old.replace("3.png", name))
    for read in (lambda: read_index(folder, path), lambda: _find_images(folder, read_annotations(path))):
        with pytest.raises(DataError, match="1 (of 4 images|are missing)") as caught:
            read()
        assert len(str(caught.value)) < 600 and str(caught.value).isprintable()


def test_ordinary_names_are_not_logged(tmp_path, caplog):
    folder, path = windows_set(tmp_path, lambda name: name)
    assert find_images(folder, read_annotations(path)) == ["b/2.png", "a/1.png", "3.png", "4.png"]
    assert not caplog.text
