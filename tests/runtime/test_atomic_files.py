"""Atomic writing of files."""

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


def test_existing_file_is_replaced(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("a long old content")
    write_text(path, "new")
    assert path.read_text() == "new"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_failure_keeps_the_existing_file(tmp_path, error):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def fail(staged):
        staged.write_text("half")
        raise error

    with pytest.raises(error):
        write_whole(path, fail)
    assert path.read_text() == "old"
    assert names_in(tmp_path) == ["a.txt"]


def test_failed_rename_removes_the_temporary_file(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError):
        write_text(tmp_path / "folder", "text")
    assert names_in(tmp_path) == ["folder"]


def test_temporary_file_has_the_suffix_and_directory(tmp_path):
    paths = []
    write_whole(tmp_path / "a.safetensors", lambda staged: (paths.append(staged), staged.write_text("x")))
    assert (paths[0].suffix, paths[0].parent) == (".safetensors", tmp_path)
    assert paths[0].name != "a.safetensors"


def test_longest_possible_name(tmp_path):
    name = "n" * 251 + ".txt"
    write_text(tmp_path / name, "x")
    assert names_in(tmp_path) == [name]


def test_relative_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_text(type(tmp_path)("a.txt"), "x")
    assert names_in(tmp_path) == ["a.txt"]


def test_target_of_a_symbolic_link_is_replaced(tmp_path):
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "file.txt").write_text("old")
    link = tmp_path / "link.txt"
    link.symlink_to("target/file.txt")
    write_text(link, "new")
    assert link.is_symlink()
    assert (tmp_path / "target" / "file.txt").read_text() == "new"
    assert names_in(tmp_path / "target") == ["file.txt"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_pipe_is_written_and_not_replaced(tmp_path):
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


@pytest.mark.skipif(os.name == "nt", reason="this system has no permissions by user")
def test_temporary_files_are_private_and_the_result_is_not(tmp_path):
    modes = []

    def write(staged):
        staged.write_text("x")
        modes.append(staged.stat().st_mode & 0o777)

    previous = os.umask(0o027)
    try:
        write_whole(tmp_path / "new.txt", write)
        (tmp_path / "old.txt").write_text("")
        (tmp_path / "old.txt").chmod(0o604)
        write_whole(tmp_path / "old.txt", write)
    finally:
        os.umask(previous)
    assert modes == [0o600, 0o600]
    assert (tmp_path / "new.txt").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "old.txt").stat().st_mode & 0o777 == 0o604
