"""Writers of COCO results files and of drawings."""

import json
import os
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from solo_infer.config.categories import Categories
from solo_infer.data.coco import read_image_ids
from solo_infer.errors import ResultError
from solo_infer.ops import packed_masks, rle
from solo_infer.results.result import Result
from solo_infer.results.writers import CocoFile, ImageFolder

PETS = Categories(("cat", "dog"), (17, 18))


def make_result(source, count=2):
    """Return a result of 12 x 20 pixels with triangles as masks, which are smaller than their boxes."""
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


def make_empty_result(source):
    return make_result(source)[:0]


def file_names(folder):
    return sorted(path.name for path in folder.iterdir())


def read(path):
    return json.loads(Path(path).read_bytes())


def write(path, *sources, **options):
    with CocoFile(path, **options) as coco:
        for source in sources:
            coco.add(make_result(source))
    return read(path)


def ids_by_name(entries):
    return {entry["file_name"]: entry["image_id"] for entry in entries}


# --- COCO results files


def test_file_can_be_read_by_pycocotools(tmp_path):
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
    write(tmp_path / "results.json", "photos/b.jpg", "photos/a.jpg", image_ids=ids)
    results = COCO(str(tmp_path / "truth.json")).loadRes(str(tmp_path / "results.json"))
    assert (len(results.getAnnIds(imgIds=[7])), len(results.getAnnIds(imgIds=[9]))) == (2, 2)
    expected = make_result("b.jpg")
    for index, annotation in enumerate(results.loadAnns(results.getAnnIds(imgIds=[9]))):
        mask = expected.masks[index].numpy()
        np.testing.assert_array_equal(results.annToMask(annotation).astype(bool), mask)
        assert annotation["category_id"] == PETS.ids[expected.labels[index]]
        # The areas of the masks, not of their boxes: AP by object size depends on it.
        assert annotation["area"] == mask.sum()
        x1, y1, x2, y2 = expected.boxes[index].tolist()
        assert list(annotation["bbox"]) == [x1, y1, x2 - x1, y2 - y1]


def test_paths_may_be_strings(tmp_path):
    assert len(write(str(tmp_path / "r.json"), "a.jpg")) == 2
    folder = ImageFolder(str(tmp_path / "out"), keep=[tmp_path / "out" / "a_segmented.jpg"])
    assert folder.add(make_result("a.jpg")) == tmp_path / "out" / "a_segmented_2.jpg"


def test_keys_of_entries(tmp_path):
    first, second = write(tmp_path / "r.json", "photos/süß.jpg")
    assert set(first) == {"image_id", "category_id", "score", "segmentation", "file_name"}
    assert (first["image_id"], first["category_id"], first["file_name"]) == (1, 18, "süß.jpg")
    assert second["score"] == pytest.approx(0.2)
    np.testing.assert_array_equal(rle.decode(first["segmentation"]), make_result("").masks[0].numpy())


def test_instances_below_min_score_are_omitted(tmp_path):
    entries = write(tmp_path / "r.json", "a.jpg", "b.jpg", min_score=0.5)
    assert [entry["score"] for entry in entries] == [pytest.approx(0.9)] * 2


@pytest.mark.parametrize(
    "results", [[], [make_empty_result("a.jpg")], [make_empty_result("a.jpg"), make_empty_result("b.jpg")]]
)
def test_file_without_instances_is_an_empty_list(tmp_path, results):
    with CocoFile(tmp_path / "r.json") as coco:
        for result in results:
            coco.add(result)
    assert read(tmp_path / "r.json") == []


def test_images_without_instances_keep_their_ids(tmp_path):
    with CocoFile(tmp_path / "r.json") as coco:
        for result in (
            make_empty_result("a"),
            make_result("b"),
            make_empty_result("c"),
            make_result("d"),
            make_empty_result("e"),
        ):
            coco.add(result)
    assert [entry["image_id"] for entry in read(tmp_path / "r.json")] == [2, 2, 4, 4]


def test_folders_are_created_and_no_temporary_file_remains(tmp_path):
    write(tmp_path / "a" / "b" / "r.json", "a.jpg")
    assert file_names(tmp_path / "a" / "b") == ["r.json"]


def test_old_file_is_kept_until_the_new_one_is_complete(tmp_path):
    path = tmp_path / "r.json"
    path.write_text("old")
    with CocoFile(path) as coco:
        coco.add(make_result("a.jpg"))
        assert path.read_text() == "old"
    assert len(read(path)) == 2


def test_names_that_are_not_unicode_can_be_written(tmp_path):
    source = os.fsdecode(b"\xe9t\xe9.jpg")
    (first, _) = write(tmp_path / "r.json", source)
    assert first["file_name"] == source


def test_ids_are_numeric_file_names_or_positions(tmp_path):
    sources = ["000000000139.jpg", "x/cat.jpg", "http://localhost/0042.png?size=7", "", "٣.jpg"]
    entries = write(tmp_path / "r.json", *sources)
    assert [entry["image_id"] for entry in entries[::2]] == [139, 2, 42, 4, 5]
    assert entries[4]["file_name"] == "0042.png"


def test_image_without_id_raises_error(tmp_path):
    with pytest.raises(ResultError, match="'b.jpg' is not"):
        write(tmp_path / "r.json", "a.jpg", "b.jpg", image_ids={"a.jpg": 3})
    assert file_names(tmp_path) == []


# --- Interruptions and errors of COCO results files


def test_interruption_completes_file(tmp_path):
    path = tmp_path / "r.json"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), CocoFile(path) as coco:
        coco.add(make_result("a.jpg"))
        coco.add(make_result("b.jpg"))
        raise KeyboardInterrupt
    assert [entry["image_id"] for entry in read(path)] == [1, 1, 2, 2]
    assert file_names(tmp_path) == ["r.json"]


def test_interruption_removes_partial_result(tmp_path):
    path = tmp_path / "r.json"
    with pytest.raises(KeyboardInterrupt), CocoFile(path) as coco:
        coco.add(make_result("a.jpg"))
        stream = coco._stream

        class InterruptedStream:
            def __getattr__(self, name):
                return getattr(stream, name)

            def write(self, data):
                stream.write(data[: len(data) // 2])
                raise KeyboardInterrupt

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(coco, "_stream", InterruptedStream())
            coco.add(make_result("b.jpg"))
    assert [entry["image_id"] for entry in read(path)] == [1, 1]
    assert file_names(tmp_path) == ["r.json"]


def test_interruption_before_first_image_keeps_old_file(tmp_path):
    path = tmp_path / "r.json"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), CocoFile(path):
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert file_names(tmp_path) == ["r.json"]


@pytest.mark.parametrize("error", [RuntimeError, ResultError, SystemExit])
def test_error_removes_file(tmp_path, error):
    (tmp_path / "old.json").write_text("old")
    for name in ("new.json", "old.json"):
        with pytest.raises(error), CocoFile(tmp_path / name) as coco:
            coco.add(make_result("a.jpg"))
            raise error("failed")
    assert file_names(tmp_path) == ["old.json"]
    assert (tmp_path / "old.json").read_text() == "old"


def test_file_that_cannot_be_opened_raises_error(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(ResultError, match=r"r\.json cannot be written.*Choose another file"):
        CocoFile(tmp_path / "file" / "r.json").__enter__()


def test_folder_as_file_raises_error_on_enter(tmp_path):
    with pytest.raises(ResultError, match="is a folder"):
        CocoFile(tmp_path).__enter__()
    assert file_names(tmp_path) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="requires /dev/full")
def test_full_disk_raises_error(tmp_path):
    with pytest.raises(ResultError, match="/dev/full cannot be written"), CocoFile(Path("/dev/full")) as coco:
        for number in range(200):
            coco.add(make_result(f"{number}.jpg"))
    assert Path("/dev/full").is_char_device()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="requires named pipes")
def test_pipe_is_written_in_place(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    received = []
    reader = threading.Thread(target=lambda: received.append(pipe.read_text()))
    reader.start()
    with CocoFile(pipe) as coco:
        coco.add(make_result("a.jpg"))
    reader.join(10)
    assert len(json.loads(received[0])) == 2
    assert pipe.is_fifo()


# --- Drawings


def test_drawings_are_named_after_their_images(tmp_path):
    folder = ImageFolder(tmp_path / "a" / "b")
    path = folder.add(make_result("photos/Süß 犬.PNG"))
    assert path == tmp_path / "a" / "b" / "Süß 犬_segmented.png"
    with Image.open(path) as drawing:
        assert (drawing.format, drawing.size) == ("PNG", (20, 12))
        assert drawing.tobytes() == make_result("").plot().tobytes()


def test_min_score_and_boxes_of_drawings(tmp_path):
    folder = ImageFolder(tmp_path, min_score=0.5, boxes=True)
    with Image.open(folder.add(make_result("a.png"))) as drawing:
        assert drawing.tobytes() == make_result("")[:1].plot(boxes=True).tobytes()


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
def test_suffixes_and_names_of_urls(tmp_path, source, name):
    ImageFolder(tmp_path).add(make_result(source))
    assert file_names(tmp_path) == [name]


def test_equal_names_get_numbers(tmp_path):
    folder = ImageFolder(tmp_path)
    for source in ("a/1.png", "b/1.png", "c/1.PNG", "c/1.jpg", "C/1_segmented.png"):
        folder.add(make_result(source))
    assert file_names(tmp_path) == [
        "1_segmented.jpg",
        "1_segmented.png",
        "1_segmented_2.png",
        "1_segmented_3.png",
        "1_segmented_segmented.png",
    ]


def test_names_that_differ_only_in_case_get_numbers(tmp_path):
    folder = ImageFolder(tmp_path)
    paths = [folder.add(make_result(source)) for source in ("a.png", "A.png")]
    assert len({str(path).lower() for path in paths}) == 2


def test_second_run_replaces_drawings_of_the_first(tmp_path):
    for _ in range(2):
        ImageFolder(tmp_path).add(make_result("a.png"))
    assert file_names(tmp_path) == ["a_segmented.png"]


def test_sources_are_never_overwritten(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a_segmented.png").write_text("original")
    folder = ImageFolder(Path("."), keep=["a.png", "a_segmented.png"])
    assert folder.add(make_result("a.png")) == Path("a_segmented_2.png")
    assert Path("a_segmented.png").read_text() == "original"


@pytest.mark.parametrize("name", ["file", "file/below"])
def test_folder_that_cannot_be_created_raises_error(tmp_path, name):
    (tmp_path / "file").write_text("not a folder")
    folder = ImageFolder(tmp_path / name)
    with pytest.raises(ResultError, match="Nothing can be written to .*Choose another folder"):
        folder.make()
    with pytest.raises(ResultError, match="Nothing can be written to .*Choose another folder"):
        folder.add(make_result("a.png"))


def test_make_creates_an_empty_folder(tmp_path):
    ImageFolder(tmp_path / "new").make()
    assert file_names(tmp_path / "new") == []


def test_drawing_that_cannot_be_written_raises_error(tmp_path):
    (tmp_path / "a_segmented.png").mkdir()
    with pytest.raises(ResultError, match="Cannot write"):
        ImageFolder(tmp_path).add(make_result("a.png"))
    assert file_names(tmp_path) == ["a_segmented.png"]
