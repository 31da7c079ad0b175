"""Read and run the code blocks of Markdown pages."""

from __future__ import annotations

import io
import re
import runpy
import shlex
import sys
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import pytest
from helpers.paths import EXAMPLES, ROOT

from solo_infer.cli.main import main

README = ROOT / "README.md"
PAGES = [
    README,
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    ROOT / "SECURITY.md",
    EXAMPLES / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
# Run by the tests: "run", "torchrun", "ray" (with that package). Run by .ci/run: "install", "test". Parsed
# only: "parse", "gpu" (it needs a card or a vendor's tools), "shell" (it changes the environment),
# "example" (a fragment).
MARKS = {"run", "torchrun", "ray", "install", "test", "parse", "gpu", "shell", "example"}

_FENCE = re.compile(r"(?:^<!-- (\w+) -->\n)?^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A fenced code block.

    Attributes:
        mark: Word of the comment on the line before the block; empty without a comment.
        language: Language of the block.
        text: Content, ending with a newline.
    """

    mark: str
    language: str
    text: str

    @property
    def lines(self) -> list[str]:
        """Commands of a shell block, one a line."""
        return self.text.splitlines()


def read_blocks(page: Path) -> list[Block]:
    """Return the code blocks of a page in order."""
    return [Block(*map(str, match)) for match in _FENCE.findall(page.read_text(encoding="utf-8"))]


def page_name(page: Path) -> str:
    """Return the path of a page below the root of the checkout, with forward slashes."""
    return page.relative_to(ROOT).as_posix()


def solo_infer_arguments(line: str) -> list[str] | None:
    """Return the arguments that a command line passes to solo-infer, None if it runs another program."""
    words = shlex.split(line)
    while words and "=" in words[0]:
        words.pop(0)
    for name in ("solo-infer", "solo_infer"):  # the program, and the module that torchrun starts
        if name in words[:1] or words[:1] == ["torchrun"] and name in words:
            return words[words.index(name) + 1 :]
    return None


def run_command(line: str, monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    """Run "NAME=VALUE ... solo-infer ..." or "python SCRIPT ..." in this process.

    Returns:
        The exit code and the standard output.
    """
    words = shlex.split(line)
    output = io.StringIO()
    with monkeypatch.context() as patch, redirect_stdout(output):
        while "=" in words[0]:
            patch.setenv(*words.pop(0).split("=", 1))
        if words[0] == "python":
            patch.setattr(sys, "argv", words[1:])
            runpy.run_path(words[1], run_name="__main__")
            return 0, output.getvalue()
        assert words[0] == "solo-infer", line
        return main(words[1:]), output.getvalue()
