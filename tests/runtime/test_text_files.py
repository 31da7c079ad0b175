"""Text and JSON files are read in every Unicode encoding, with or without a byte order mark."""

import json

import pytest

from solo_infer.runtime.text_files import open_text, read_json, read_text

ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"]


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_encodings(tmp_path, encoding):
    path = tmp_path / "file.json"
    value = {"name": "süß 図 \U0001f600"}
    path.write_bytes(json.dumps(value, ensure_ascii=False).encode(encoding))
    assert read_json(path) == read_json(str(path)) == value
    assert json.loads(read_text(path)) == value
    with open_text(path) as file:
        assert file.read(1) == "{" and file.read().endswith("}")


def test_short_files(tmp_path):
    path = tmp_path / "file.txt"
    for text in ("", "a", "ab", "é"):
        path.write_text(text, encoding="utf-8-sig")
        with open_text(path) as file:
            assert file.read() == read_text(path) == text


@pytest.mark.parametrize("content", [b"caf\xe9", b"\xff\xfea", b"\x00", b"\xef\xbb\xbf\xff"])
def test_other_encodings_raise_value_errors(tmp_path, content):
    (tmp_path / "file.txt").write_bytes(content)
    with pytest.raises(ValueError):
        read_json(tmp_path / "file.txt")


def test_files_that_are_no_json_raise_value_errors(tmp_path):
    path = tmp_path / "file.json"
    for text, message in (
        ("[" * 100_000, "nested too deeply"),
        ("{}{}", "Extra data"),
        ("9" * 5000, "digits"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            read_json(path)
    with pytest.raises(OSError):
        read_json(tmp_path / "missing.json")
