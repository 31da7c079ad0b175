"""Glob patterns in folders with links: each file once, in a bounded time."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from solo_infer.data.images import load_image
from solo_infer.data.patterns import match_files, unique_files
from solo_infer.data.sources import iterate_sources
from solo_infer.errors import ImageError


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("L/s.jpg", "L/deep/er/t.jpg", "L/.hidden/u.jpg", "[x]/deep/v.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_link_to_its_own_folder_is_entered_once(tree: Path) -> None:
    os.symlink(".", "L/self")
    assert match_files("L/**/*.jpg") == ["L/deep/er/t.jpg", "L/s.jpg"]
    assert match_files("**/*.jpg") == ["L/deep/er/t.jpg", "L/s.jpg", "[x]/deep/v.jpg"]


def test_links_in_a_circle_end(tree: Path) -> None:
    os.symlink("..", "L/deep/up")
    os.symlink("deep", "L/again")
    os.symlink("L", "a_first_by_name")
    os.symlink("/nowhere", "L/broken")
    os.symlink("loop", "L/loop")
    assert match_files("**/*.jpg") == ["L/deep/er/t.jpg", "L/s.jpg", "[x]/deep/v.jpg"]
    assert match_files("L/**/**/er/**/*.jpg") == ["L/deep/er/t.jpg"]
    assert match_files("L/**") == ["L/deep/er/t.jpg", "L/s.jpg"]


def test_folders_outside_are_entered_by_links(tree: Path) -> None:
    (tree / "outside").mkdir()
    (tree / "outside" / "w.jpg").write_bytes(b"w")
    os.symlink("../outside", "L/link")
    assert "L/link/w.jpg" in match_files("L/**/*.jpg")


def test_names_with_magic_characters_are_searched(tree: Path) -> None:
    assert match_files("*/deep/**/*.jpg") == ["L/deep/er/t.jpg", "[x]/deep/v.jpg"]
    assert match_files(str(tree / "[[]x]" / "**" / "v.*")) == [str(tree / "[x]" / "deep" / "v.jpg")]


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_a_file_of_several_names_counts_once(tree: Path, link: Callable[[str, str], None]) -> None:
    for name in ("a.jpg", "z.jpg"):
        link(os.path.abspath("L/s.jpg"), f"L/{name}")
    expected = "L/s.jpg" if link is os.symlink else "L/a.jpg"
    assert match_files("L/*.jpg") == [expected]
    assert [os.path.basename(str(item)) for item in iterate_sources("L")] == [os.path.basename(expected)]
    assert unique_files(["L/z.jpg", "L/z.jpg"]) == ["L/z.jpg"]


def test_broken_links_say_where_they_point(tree: Path) -> None:
    os.symlink("gone/x.jpg", "broken.jpg")
    os.symlink("circle.jpg", "circle.jpg")
    with pytest.raises(ImageError, match=r"'broken\.jpg' does not exist\. It is a link to 'gone/x\.jpg'"):
        load_image("broken.jpg")
    with pytest.raises(ImageError, match=r"circle\.jpg.*symbolic links"):
        load_image("circle.jpg")
    assert list(iterate_sources("L")) == ["L/s.jpg"]


def test_folder_says_how_many_files_it_leaves_out(tree: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("IMG_1.HEIC", "b.jpg_large", "noext", ".DS_Store", "x\x1b[31m.txt"):
        (tree / "L" / name).write_bytes(b"x")
    assert list(iterate_sources("L")) == ["L/s.jpg"]
    (record,) = caplog.records
    message = record.getMessage()
    assert "4 other files left out" in message and "'IMG_1.HEIC'" in message
    assert "\x1b" not in message
