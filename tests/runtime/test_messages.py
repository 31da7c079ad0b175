"""Short forms of errors, values and URLs."""

import time
from pathlib import Path

import pytest

from solo_infer.runtime.messages import (
    describe_error,
    escaped,
    escaped_lines,
    first_line,
    quoted,
    shortened,
)
from solo_infer.runtime.urls import origin, redact_credentials


@pytest.mark.parametrize(
    "error, line, description",
    [
        (RuntimeError("no kernel\nfor this"), "no kernel", "RuntimeError: no kernel"),
        (ValueError(), "ValueError", "ValueError"),
    ],
)
def test_first_line_and_description_of_errors(error, line, description):
    assert first_line(error) == line
    assert describe_error(error) == description


@pytest.mark.parametrize(
    "address, expected",
    [
        ("https://user:secret@host:8080/path?query", "https://host:8080"),
        ("http://host", "http://host"),
        ("/a/directory", ""),
        ("file:///a/directory", ""),
    ],
)
def test_origin(address, expected):
    assert origin(address) == expected


def test_credentials_are_redacted():
    assert redact_credentials("https://user:secret@host/path") == "https://***@host/path"
    assert redact_credentials("https://host/path") == "https://host/path"


@pytest.mark.parametrize(
    "value, expected",
    [
        ("cat", "'cat'"),
        (Path("a") / "b.jpg", "'a/b.jpg'"),
        ("süß 图", "'süß 图'"),
        ("a\nb\x1b[31m\x00\x7f\x9b", r"'a\nb\x1b[31m\x00\x7f\x9b'"),
        ("\u202egpj.exe\u2066\u2028\ud800\u200b", r"'\u202egpj.exe\u2066\u2028\ud800\u200b'"),
        ({"a\n": ["\x1b", None, float("nan")]}, r"{'a\n': ['\x1b', None, nan]}"),
        (None, "None"),
        (-3, "-3"),
        (10**30, str(10**30)),
        (b"\x00a", r"b'\x00a'"),
    ],
)
def test_quoted_values_are_printable(value, expected):
    assert quoted(value) == expected and quoted(value).isprintable()


@pytest.mark.parametrize(
    "value",
    [
        "x" * 10**8,
        "\n" * 10**8,
        b"x" * 10**8,
        1 << 10**8,
        -(1 << 10**8),
        [1 << 10**7],
        [0] * 10**7,
        [["x" * 10**6] * 1000] * 1000,
        {number: "x" for number in range(10**5)},
        "\u202e" * 100,
    ],
    ids=lambda value: type(value).__name__,
)
def test_large_values_are_cut_without_being_written_out(value):
    start = time.process_time()
    text = quoted(value)
    assert len(text) <= 80 and text.isprintable() and time.process_time() - start < 0.5
    assert len(quoted(value, limit=30)) <= 30


def test_long_text_keeps_its_start_and_end():
    assert quoted("a" + "x" * 200 + "z.jpg") == "'a" + "x" * 36 + "..." + "x" * 33 + "z.jpg'"
    assert quoted("x" * 78) == repr("x" * 78)


def test_objects_with_a_repr_of_several_lines_take_one():
    class Odd:
        def __repr__(self):
            return "odd\n\x1b[0m"

    assert quoted(Odd()) == r"odd\n\x1b[0m"


@pytest.mark.parametrize(
    "text, expected",
    [
        ("no such\n  file", "no such file"),
        ("a\x00b\x1b[31m\u202e\ud800", "a\\x00b\\x1b[31m\\u202e\\ud800"),
        (ValueError("it's"), "it's"),
        ("", ""),
        ("x" * 10**7 + "end", "x" * 197 + "..." + "x" * 97 + "end"),
    ],
)
def test_shortened(text, expected):
    assert shortened(text) == expected


def test_printed_texts_cannot_control_the_terminal():
    assert escaped("street 犬.jpg") == "street 犬.jpg"
    assert escaped("a\n\x1b[31m\x9b\u202e\udce9") == "a\\n\\x1b[31m\\x9b\\u202e\\udce9"
    assert escaped_lines("one\ntwo\r\x07") == "one\ntwo\\r\\x07"
