"""Prefetching of images: order, threads and errors."""

import threading

import numpy as np
import pytest
from PIL import Image

from solo_infer.data import prefetch
from solo_infer.data.prefetch import MAX_PREFETCHED, prefetch_images
from solo_infer.errors import ImageError


@pytest.fixture
def folder(tmp_path):
    for index in range(6):
        Image.new("RGB", (4 + index, 3)).save(tmp_path / f"{index}.png")
    return tmp_path


@pytest.fixture
def decoded(monkeypatch):
    """Record the decoded items and the threads that decoded them."""
    calls, load_image = [], prefetch.load_image

    def record(item, color):
        calls.append((item, threading.current_thread().name))
        return load_image(item, color=color)

    monkeypatch.setattr(prefetch, "load_image", record)
    return calls


def widths(loaded):
    return [image.pixels.shape[1] for image, _ in loaded]


@pytest.mark.parametrize("source_type", ["folder", "pattern", "list", "iterator", "arrays"])
def test_images_are_in_order_with_timings(folder, source_type):
    paths = sorted(folder.iterdir())
    source = {
        "folder": folder,
        "pattern": str(folder / "*.png"),
        "list": paths,
        "iterator": iter(paths),
        "arrays": [np.asarray(Image.open(path)) for path in paths],
    }[source_type]
    prefetched = list(prefetch_images(source, "rgb", None))
    assert widths(prefetched) == [4, 5, 6, 7, 8, 9]
    assert all(set(seconds) == {"load", "wait"} and seconds["load"] > 0 for _, seconds in prefetched)


def test_files_are_decoded_in_advance_in_one_thread(folder, decoded):
    images = prefetch_images(folder, "rgb", None)
    next(images)
    images.close()  # waits for images that are being decoded
    assert 1 <= len(decoded) <= 1 + MAX_PREFETCHED
    assert {thread for _, thread in decoded} == {"solo_infer-decode_0"}


def test_iterator_is_consumed_on_demand(folder, decoded):
    consumed = []

    def camera():
        for path in sorted(folder.iterdir()):
            consumed.append(path)
            yield path

    images = prefetch_images(camera(), "rgb", None)
    next(images)
    assert len(consumed) == len(decoded) == 1
    assert decoded[0][1] == threading.current_thread().name


@pytest.mark.parametrize("live", [False, True])
def test_error_is_raised_when_image_is_due(folder, live):
    (folder / "2.png").write_bytes(b"not an image")
    paths = sorted(folder.iterdir())
    images = prefetch_images(iter(paths) if live else paths, "rgb", None)
    assert widths([next(images), next(images)]) == [4, 5]
    with pytest.raises(ImageError, match=r"2\.png"):
        next(images)
    errors = []
    images = prefetch_images(
        iter(paths) if live else paths, "rgb", lambda name, error: errors.append((name, error))
    )
    assert widths(images) == [4, 5, 7, 8, 9]
    assert [name for name, _ in errors] == [str(paths[2])] and isinstance(errors[0][1], ImageError)


def test_thread_ends(folder):
    before = threading.active_count()
    images = prefetch_images(folder, "rgb", None)
    next(images)
    del images
    assert len(list(prefetch_images(folder, "rgb", None))) == 6
    assert threading.active_count() == before
