"""Reading of text files in any Unicode encoding that editors and shells write."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO


@contextmanager
def open_text(path: str | os.PathLike[str]) -> Iterator[TextIO]:
    """Open a text file in UTF-8, UTF-16 or UTF-32, with or without a byte order mark.

    Raises:
        OSError: The file cannot be opened.
        ValueError: The content has another encoding (``UnicodeDecodeError``, also while it is read).
    """
    with open(path, "rb") as binary:
        encoding = json.detect_encoding(binary.read(4))
    with open(path, encoding=encoding) as file:
        yield file


def read_text(path: str | os.PathLike[str]) -> str:
    """Return the content of a text file in UTF-8, UTF-16 or UTF-32, without its byte order mark.

    Raises:
        OSError: The file cannot be read.
        ValueError: The content has another encoding (``UnicodeDecodeError``).
    """
    content = Path(path).read_bytes()
    return content.decode(json.detect_encoding(content))


def read_json(path: str | os.PathLike[str]) -> Any:
    """Return the content of a JSON file in the encodings of ``read_text``.

    Raises:
        OSError: The file cannot be read.
        ValueError: The content is not JSON, or is nested too deeply.
    """
    text = read_text(path)
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("the JSON is nested too deeply") from error
