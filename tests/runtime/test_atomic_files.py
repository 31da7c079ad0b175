"""Files appear whole or not at all."""

import os
import threading

import pytest

from solo_infer.runtime.atomic_files import write_text, write_whole


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_text_is_utf8_with_unix_lines(tmp_path):
    path = tmp_path / "Grüße 犬.txt"
    assert write_text(path, "é\n犬\n") == path
    assert path.read_bytes() == "é\n犬\n".encode()
    assert names_in(tmp_path) == [path.name]


def test_an_old_file_is_replaced(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("a long old content")
    write_text(path, "new")
    assert path.read_text() == "new"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_failure_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def fail(staged):
        staged.write_text("half")
        raise error

    with pytest.raises(error):
        write_whole(path, fail)
    assert path.read_text() == "old"
    assert names_in(tmp_path) == ["a.txt"]


def test_failure_to_rename_leaves_nothing(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError):
        write_text(tmp_path / "folder", "text")
    assert names_in(tmp_path) == ["folder"]


def test_temporary_name_has_the_suffix_and_lies_beside(tmp_path):
    seen = []
    write_whole(tmp_path / "a.safetensors", lambda staged: (seen.append(staged), staged.write_text("x")))
    assert (seen[0].suffix, seen[0].parent) == (".safetensors", tmp_path)
    assert seen[0].name != "a.safetensors"


def test_longest_possible_name(tmp_path):
    name = "n" * 251 + ".txt"
    write_text(tmp_path / name, "x")
    assert names_in(tmp_path) == [name]


def test_relative_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_text(type(tmp_path)("a.txt"), "x")
    assert names_in(tmp_path) == ["a.txt"]


def test_a_link_stays_and_its_file_is_replaced(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file.txt").write_text("old")
    link = tmp_path / "link.txt"
    link.symlink_to("there/file.txt")
    write_text(link, "new")
    assert link.is_symlink()
    assert (tmp_path / "there" / "file.txt").read_text() == "new"
    assert names_in(tmp_path / "there") == ["file.txt"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_is_written_to_and_never_replaced(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    received = []
    reader = threading.Thread(target=lambda: received.append(pipe.read_text()))
    reader.start()
    write_text(pipe, "through")
    reader.join(10)
    assert received == ["through"]
    assert pipe.is_fifo()
    assert names_in(tmp_path) == ["pipe"]
