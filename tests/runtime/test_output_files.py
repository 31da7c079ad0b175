"""Outputs that would overwrite a file of the same run, or cannot be written."""

import os
import shutil

import pytest

from solo_infer.errors import ExportError, ResultError
from solo_infer.runtime import output_files
from solo_infer.runtime.output_files import FileSet, refuse_overwriting, require_writable


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.json").write_text("{}")
    return tmp_path


def make_symlink():
    os.symlink("a.json", "link")
    return "link"


def make_hard_link():
    os.link("a.json", "hard")
    return "hard"


def make_link_of_folder():
    os.symlink(".", "here")
    return "here/a.json"


SPELLINGS = {
    "same": lambda: "a.json",
    "dots": lambda: "sub/../a.json",
    "absolute": lambda: os.path.abspath("a.json"),
    "slashes": lambda: ".//a.json",
    "symbolic link": make_symlink,
    "hard link": make_hard_link,
    "link of the folder": make_link_of_folder,
}


@pytest.mark.parametrize("spelling", SPELLINGS.values(), ids=SPELLINGS)
def test_an_input_is_recognized_by_any_path(folder, spelling):
    path = spelling()
    with pytest.raises(ResultError) as caught:
        refuse_overwriting({"--save-json": path}, {"--annotations": ["other", "a.json"]})
    for part in ("--save-json", repr(path), "--annotations", "'a.json'"):
        assert part in str(caught.value)
    assert path in FileSet(["a.json"])


def test_two_outputs_are_different_files(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder))
    with pytest.raises(ResultError, match=r"--chart '~/new' is the same file as --json 'sub/\.\./new'"):
        refuse_overwriting({"--json": "sub/../new", "--chart": "~/new"}, {})
    refuse_overwriting({"--json": "new", "--chart": "sub/new", "--csv": None}, {"input": ["a.json"]})


def test_names_that_differ_in_case(folder, monkeypatch):
    refuse_overwriting({"--json": "New.json"}, {"input": ["new.json"]})
    assert "New.json" in FileSet(["new.json"])  # where a name can be chosen, it is safe on any file system
    monkeypatch.setattr(output_files, "_ignores_case", lambda folder: True)
    with pytest.raises(ResultError, match=r"New\.json.*new\.json"):
        refuse_overwriting({"--json": "New.json"}, {"input": ["new.json"]})


def test_pipes_and_devices_are_never_refused(folder):
    refuse_overwriting({"--json": os.devnull}, {"input": [os.devnull]})
    refuse_overwriting({"--json": "a\0b"}, {"input": ["a\0b", "https://host/a.json"]})


def test_writable_outputs_leave_no_trace(folder):
    for path in (folder / "new.json", folder / "a.json", folder / "made" / "x.json"):
        require_writable("--json", path, create_folder=True)
    require_writable("--json", folder / os.devnull)
    require_writable("--json", None)
    assert sorted(os.listdir(folder)) == ["a.json", "sub"]
    assert (folder / "a.json").read_text() == "{}"


@pytest.mark.parametrize("name", ["sub", "nowhere/x.json", "a.json/x.json", "a\0b.json"])
def test_outputs_that_cannot_be_written(folder, name):
    with pytest.raises(ExportError, match="--json"):
        require_writable("--json", folder / name, error_type=ExportError)


@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root may write everything")
def test_folder_without_permission(folder):
    os.chmod("sub", 0o500)
    with pytest.raises(ResultError, match="ermission"):
        require_writable("--json", folder / "sub" / "x.json")
    shutil.rmtree("sub")
