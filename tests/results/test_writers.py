"""Pictures in a folder and COCO results files."""

import json
import os
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from solo_infer.config.categories import Categories
from solo_infer.errors import ResultError
from solo_infer.ops import packed_masks, rle
from solo_infer.results.result import Result
from solo_infer.results.writers import CocoFile, PictureFolder, read_image_ids

PETS = Categories(("cat", "dog"), (17, 18))


def result_of(source, count=2):
    """Return a result of 12 x 20 px with triangles, so that a mask is smaller than its box."""
    masks = torch.stack([torch.ones(12, 20, dtype=torch.bool).tril(i - 5) for i in range(count)])
    return Result(
        scores=torch.tensor([0.9, 0.2, 0.1][:count]),
        labels=torch.tensor([1, 0, 1][:count]),
        boxes=torch.tensor([[0.0, 5 - i, 7 + i, 12] for i in range(count)]).reshape(-1, 4),
        packed_masks=packed_masks.pack(masks),
        image_size=(12, 20),
        categories=PETS,
        image=np.full((12, 20, 3), 128, np.uint8),
        source=source,
    )


def nothing_of(source):
    return result_of(source)[:0]


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def written(path):
    return json.loads(path.read_bytes())


def write(path, *sources, **options):
    with CocoFile(path, **options) as coco:
        for source in sources:
            coco.add(result_of(source))
    return written(path)


def ids_by_name(entries):
    return {entry["file_name"]: entry["image_id"] for entry in entries}


# --- The COCO file


def test_pycocotools_reads_the_file_as_it_is(tmp_path):
    from pycocotools.coco import COCO

    annotations = {
        "images": [
            {"id": 7, "file_name": "a.jpg", "height": 12, "width": 20},
            {"id": 9, "file_name": "b.jpg", "height": 12, "width": 20},
        ],
        "categories": [{"id": 17, "name": "cat"}, {"id": 18, "name": "dog"}],
        "annotations": [],
    }
    (tmp_path / "truth.json").write_text(json.dumps(annotations))
    ids = read_image_ids(tmp_path / "truth.json")
    write(tmp_path / "found.json", "photos/b.jpg", "photos/a.jpg", image_ids=ids)
    found = COCO(str(tmp_path / "truth.json")).loadRes(str(tmp_path / "found.json"))
    assert (len(found.getAnnIds(imgIds=[7])), len(found.getAnnIds(imgIds=[9]))) == (2, 2)
    expected = result_of("b.jpg")
    for index, annotation in enumerate(found.loadAnns(found.getAnnIds(imgIds=[9]))):
        mask = expected.masks[index].numpy()
        np.testing.assert_array_equal(found.annToMask(annotation).astype(bool), mask)
        assert annotation["category_id"] == PETS.ids[expected.labels[index]]
        # The areas of the masks, not of their boxes: AP by object size depends on it.
        assert annotation["area"] == mask.sum()
        x1, y1, x2, y2 = expected.boxes[index].tolist()
        assert list(annotation["bbox"]) == [x1, y1, x2 - x1, y2 - y1]


def test_entries(tmp_path):
    first, second = write(tmp_path / "r.json", "photos/süß.jpg")
    assert set(first) == {"image_id", "category_id", "score", "segmentation", "file_name"}
    assert (first["image_id"], first["category_id"], first["file_name"]) == (1, 18, "süß.jpg")
    assert second["score"] == pytest.approx(0.2)
    np.testing.assert_array_equal(rle.decode(first["segmentation"]), result_of("").masks[0].numpy())


def test_instances_below_the_score_are_left_out(tmp_path):
    entries = write(tmp_path / "r.json", "a.jpg", "b.jpg", min_score=0.5)
    assert [entry["score"] for entry in entries] == [pytest.approx(0.9)] * 2


@pytest.mark.parametrize("results", [[], [nothing_of("a.jpg")], [nothing_of("a.jpg"), nothing_of("b.jpg")]])
def test_a_file_without_instances_is_an_empty_list(tmp_path, results):
    with CocoFile(tmp_path / "r.json") as coco:
        for result in results:
            coco.add(result)
    assert written(tmp_path / "r.json") == []


def test_images_without_instances_between_others(tmp_path):
    with CocoFile(tmp_path / "r.json") as coco:
        for result in (nothing_of("a"), result_of("b"), nothing_of("c"), result_of("d"), nothing_of("e")):
            coco.add(result)
    assert [entry["image_id"] for entry in written(tmp_path / "r.json")] == [2, 2, 4, 4]


def test_folders_are_made_and_nothing_else_is_left(tmp_path):
    write(tmp_path / "a" / "b" / "r.json", "a.jpg")
    assert names_in(tmp_path / "a" / "b") == ["r.json"]


def test_the_list_grows_beside_the_old_file(tmp_path):
    path = tmp_path / "r.json"
    path.write_text("old")
    with CocoFile(path) as coco:
        coco.add(result_of("a.jpg"))
        assert path.read_text() == "old"
    assert len(written(path)) == 2


def test_names_that_are_no_text_can_be_written(tmp_path):
    source = os.fsdecode(b"caf\xe9.jpg")
    (first, _) = write(tmp_path / "r.json", source)
    assert first["file_name"] == source


def test_ids_are_the_numbers_that_are_names_or_else_the_places(tmp_path):
    sources = ["000000000139.jpg", "x/cat.jpg", "http://localhost/0042.png?size=7", "", "٣.jpg"]
    entries = write(tmp_path / "r.json", *sources)
    assert [entry["image_id"] for entry in entries[::2]] == [139, 2, 42, 4, 5]
    assert entries[4]["file_name"] == "0042.png"


def test_an_image_without_a_given_id_is_refused(tmp_path):
    with pytest.raises(ResultError, match="'b.jpg' is not"):
        write(tmp_path / "r.json", "a.jpg", "b.jpg", image_ids={"a.jpg": 3})
    assert names_in(tmp_path) == []


# --- ... that is interrupted or fails


def test_interruption_completes_the_file(tmp_path):
    path = tmp_path / "r.json"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), CocoFile(path) as coco:
        coco.add(result_of("a.jpg"))
        coco.add(result_of("b.jpg"))
        raise KeyboardInterrupt
    assert [entry["image_id"] for entry in written(path)] == [1, 1, 2, 2]
    assert names_in(tmp_path) == ["r.json"]


def test_interruption_leaves_no_part_of_an_image(tmp_path):
    path = tmp_path / "r.json"
    with pytest.raises(KeyboardInterrupt), CocoFile(path) as coco:
        coco.add(result_of("a.jpg"))
        stream = coco._stream

        class HalfWay:
            def __getattr__(self, name):
                return getattr(stream, name)

            def write(self, data):
                stream.write(data[: len(data) // 2])
                raise KeyboardInterrupt

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(coco, "_stream", HalfWay())
            coco.add(result_of("b.jpg"))
    assert [entry["image_id"] for entry in written(path)] == [1, 1]
    assert names_in(tmp_path) == ["r.json"]


def test_interruption_before_the_first_image_keeps_the_old_file(tmp_path):
    path = tmp_path / "r.json"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), CocoFile(path):
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert names_in(tmp_path) == ["r.json"]


@pytest.mark.parametrize("error", [RuntimeError, ResultError, SystemExit])
def test_an_error_leaves_nothing(tmp_path, error):
    (tmp_path / "old.json").write_text("old")
    for name in ("new.json", "old.json"):
        with pytest.raises(error), CocoFile(tmp_path / name) as coco:
            coco.add(result_of("a.jpg"))
            raise error("sad")
    assert names_in(tmp_path) == ["old.json"]
    assert (tmp_path / "old.json").read_text() == "old"


def test_a_file_that_cannot_be_opened(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ResultError, match=r"r\.json cannot be written.*Choose another file"):
        CocoFile(tmp_path / "file" / "r.json").__enter__()


def test_a_folder_in_the_place_of_the_file_is_told_at_the_start(tmp_path):
    with pytest.raises(ResultError, match="is a folder"):
        CocoFile(tmp_path).__enter__()
    assert names_in(tmp_path) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk(tmp_path):
    with pytest.raises(ResultError, match="/dev/full cannot be written"), CocoFile(Path("/dev/full")) as coco:
        for number in range(200):
            coco.add(result_of(f"{number}.jpg"))
    assert Path("/dev/full").is_char_device()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    received = []
    reader = threading.Thread(target=lambda: received.append(pipe.read_text()))
    reader.start()
    with CocoFile(pipe) as coco:
        coco.add(result_of("a.jpg"))
    reader.join(10)
    assert len(json.loads(received[0])) == 2
    assert pipe.is_fifo()


# --- Pictures


def test_pictures_are_named_after_their_images(tmp_path):
    folder = PictureFolder(tmp_path / "a" / "b")
    path = folder.add(result_of("photos/Süß 犬.PNG"))
    assert path == tmp_path / "a" / "b" / "Süß 犬_segmented.png"
    with Image.open(path) as picture:
        assert (picture.format, picture.size) == ("PNG", (20, 12))
        assert picture.tobytes() == result_of("").plot().tobytes()


def test_scores_and_boxes_of_pictures(tmp_path):
    folder = PictureFolder(tmp_path, min_score=0.5, boxes=True)
    with Image.open(folder.add(result_of("a.png"))) as picture:
        assert picture.tobytes() == result_of("")[:1].plot(boxes=True).tobytes()


@pytest.mark.parametrize(
    "source, name",
    [
        ("a.gif", "a_segmented.jpg"),
        ("a", "a_segmented.jpg"),
        ("a.tar.webp", "a.tar_segmented.webp"),
        ("http://localhost/x/my%20photo.png?width=3#top", "my photo_segmented.png"),
        ("http://localhost/", "image_segmented.jpg"),
        ("http://localhost/%00a.png", "a_segmented.png"),
        ("", "image_segmented.jpg"),
    ],
)
def test_other_names(tmp_path, source, name):
    PictureFolder(tmp_path).add(result_of(source))
    assert names_in(tmp_path) == [name]


def test_equal_names_from_different_folders(tmp_path):
    folder = PictureFolder(tmp_path)
    for source in ("a/1.png", "b/1.png", "c/1.PNG", "c/1.jpg", "C/1_segmented.png"):
        folder.add(result_of(source))
    assert names_in(tmp_path) == [
        "1_segmented.jpg",
        "1_segmented.png",
        "1_segmented_2.png",
        "1_segmented_3.png",
        "1_segmented_segmented.png",
    ]


def test_names_that_differ_in_case_only(tmp_path):
    folder = PictureFolder(tmp_path)
    paths = [folder.add(result_of(source)) for source in ("a.png", "A.png")]
    assert len({str(path).lower() for path in paths}) == 2


def test_a_second_run_replaces_the_pictures_of_the_first(tmp_path):
    for _ in range(2):
        PictureFolder(tmp_path).add(result_of("a.png"))
    assert names_in(tmp_path) == ["a_segmented.png"]


def test_sources_are_never_overwritten(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a_segmented.png").write_text("precious")
    folder = PictureFolder(Path("."), keep=["a.png", "a_segmented.png"])
    assert folder.add(result_of("a.png")) == Path("a_segmented_2.png")
    assert Path("a_segmented.png").read_text() == "precious"


@pytest.mark.parametrize("name", ["file", "file/below"])
def test_a_folder_that_cannot_be_made(tmp_path, name):
    (tmp_path / "file").write_text("in the way")
    folder = PictureFolder(tmp_path / name)
    with pytest.raises(ResultError, match="No picture can be written in .*Choose another folder"):
        folder.make()
    with pytest.raises(ResultError, match="No picture can be written in .*Choose another folder"):
        folder.add(result_of("a.png"))


def test_making_the_folder_leaves_nothing_in_it(tmp_path):
    PictureFolder(tmp_path / "new").make()
    assert names_in(tmp_path / "new") == []


def test_a_picture_that_cannot_be_written(tmp_path):
    (tmp_path / "a_segmented.png").mkdir()
    with pytest.raises(ResultError, match="Cannot write"):
        PictureFolder(tmp_path).add(result_of("a.png"))
    assert names_in(tmp_path) == ["a_segmented.png"]
