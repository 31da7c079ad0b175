"""Short forms of errors and URLs."""

import pytest

from solo_infer.runtime.messages import describe_error, first_line
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
