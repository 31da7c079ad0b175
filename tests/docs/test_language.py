"""Docstrings, messages and pages are free of phrases that the style guide in CONTRIBUTING.md rules out."""

import ast
import re

import pytest
from helpers.documentation import PAGES
from helpers.paths import ROOT

THIS_FILE = ROOT / "tests" / "docs" / "test_language.py"
PYTHON_FILES = sorted(
    path
    for folder in ("solo_infer", "tests", "examples", "benchmarks", "docs")
    for path in (ROOT / folder).rglob("*.py")
    if path != THIS_FILE
)
OTHER_FILES = [*PAGES, *sorted((ROOT / "benchmarks").glob("*.md")), *sorted((ROOT / ".ci").iterdir())]
PHRASES = {
    "shall": r"\bshall\b",
    "but for": r"\bbut for\b",
    "is no": r"(?<!\bthere )\bis no (?!longer\b|more\b|such\b)",
    "for want of": r"\bfor want of\b",
    "whither, thither": r"\b[wt]hither\b",
    "if not given": r"\bif not given\b",
    "twin": r"\btwins?\b",
    "by every road": r"\bby (every|any|either) road\b",
    "see to it that": r"\bsees? to it that\b",
    "talking machines": r"\b(is told|was told|are told)\b",
}
QUESTION_WORDS = re.compile(r"(What|Where|Which|Whose|Whom|How)\b")
NODES = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def docstrings(path):
    """Yield line number and docstring of each module, class and function of a file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, NODES) and (text := ast.get_docstring(node)):
            yield getattr(node, "lineno", 1), text


def describe(hits):
    """Return at most 40 places of the hits, as lines of text."""
    lines = [f"{path.relative_to(ROOT)}:{number}: {text.strip()}" for path, number, text in hits]
    return "\n".join([f"{len(lines)} places:", *lines[:40]])


@pytest.mark.parametrize("name", PHRASES)
def test_phrase_does_not_occur(name):
    pattern = re.compile(PHRASES[name], re.IGNORECASE)
    hits = [
        (path, number, line)
        for path in PYTHON_FILES + OTHER_FILES
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if pattern.search(line)
    ]
    assert not hits, describe(hits)


def test_no_docstring_starts_like_a_question():
    hits = [
        (path, number, text.splitlines()[0])
        for path in PYTHON_FILES
        for number, text in docstrings(path)
        if QUESTION_WORDS.match(text)
    ]
    assert not hits, describe(hits)


def test_no_argument_description_starts_with_of():
    pattern = re.compile(r"^\s+\*{0,2}\w+: Of (?!course)", re.MULTILINE)
    hits = [
        (path, number, match.group())
        for path in PYTHON_FILES
        for number, text in docstrings(path)
        for match in pattern.finditer(text)
    ]
    assert not hits, describe(hits)
