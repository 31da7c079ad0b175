"""Images come in order, ahead of their turn only where that changes nothing."""

import threading

import numpy as np
import pytest
from PIL import Image

from solo_infer.data import prefetch
from solo_infer.data.prefetch import AHEAD, load_all
from solo_infer.errors import ImageError


@pytest.fixture
def folder(tmp_path):
    for index in range(6):
        Image.new("RGB", (4 + index, 3)).save(tmp_path / f"{index}.png")
    return tmp_path


@pytest.fixture
def decoded(monkeypatch):
    """Note what is decoded, and in which thread."""
    seen, load_image = [], prefetch.load_image

    def note(item, color):
        seen.append((item, threading.current_thread().name))
        return load_image(item, color=color)

    monkeypatch.setattr(prefetch, "load_image", note)
    return seen


def widths(loaded):
    return [image.pixels.shape[1] for image, _ in loaded]


@pytest.mark.parametrize("kind", ["folder", "pattern", "list", "iterator", "arrays"])
def test_all_come_in_order_with_their_times(folder, kind):
    paths = sorted(folder.iterdir())
    source = {
        "folder": folder,
        "pattern": str(folder / "*.png"),
        "list": paths,
        "iterator": iter(paths),
        "arrays": [np.asarray(Image.open(path)) for path in paths],
    }[kind]
    found = list(load_all(source, "rgb", None))
    assert widths(found) == [4, 5, 6, 7, 8, 9]
    assert all(set(seconds) == {"load", "wait"} and seconds["load"] > 0 for _, seconds in found)


def test_files_are_decoded_two_ahead_in_one_thread(folder, decoded):
    images = load_all(folder, "rgb", None)
    next(images)
    images.close()  # waits for what was begun
    assert 1 <= len(decoded) <= 1 + AHEAD
    assert {thread for _, thread in decoded} == {"solo_infer-decode_0"}


def test_an_iterator_gives_nothing_before_its_turn(folder, decoded):
    taken = []

    def camera():
        for path in sorted(folder.iterdir()):
            taken.append(path)
            yield path

    images = load_all(camera(), "rgb", None)
    next(images)
    assert len(taken) == len(decoded) == 1
    assert decoded[0][1] == threading.current_thread().name


@pytest.mark.parametrize("live", [False, True])
def test_an_error_comes_when_it_is_its_turn(folder, live):
    (folder / "2.png").write_bytes(b"no picture")
    paths = sorted(folder.iterdir())
    images = load_all(iter(paths) if live else paths, "rgb", None)
    assert widths([next(images), next(images)]) == [4, 5]
    with pytest.raises(ImageError, match=r"2\.png"):
        next(images)
    told = []
    rest = load_all(iter(paths) if live else paths, "rgb", lambda name, error: told.append((name, error)))
    assert widths(rest) == [4, 5, 7, 8, 9]
    assert [name for name, _ in told] == [str(paths[2])] and isinstance(told[0][1], ImageError)


def test_no_thread_is_left(folder):
    before = threading.active_count()
    images = load_all(folder, "rgb", None)
    next(images)
    del images
    assert len(list(load_all(folder, "rgb", None))) == 6
    assert threading.active_count() == before
