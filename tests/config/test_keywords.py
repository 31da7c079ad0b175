"""Errors for unknown keywords."""

import pytest

from solo_infer.config import keywords
from solo_infer.config.keywords import explain_keywords
from solo_infer.errors import ConfigError, KeywordError

TABLES = {
    name: table
    for name, table in vars(keywords).items()
    if name.endswith("KEYWORDS") and isinstance(table, dict)
}


@explain_keywords("call", {"conf": "Use min_score."})
def call(source, *, min_score=0.0, **rest):
    return source, min_score, rest


@explain_keywords("strict", {"conf": "Use min_score.", "imgsz": "Use input_size."})
def strict(source, *, min_score=0.0, input_size=None):
    return source, min_score, input_size


def test_known_keywords_pass():
    assert call("a", min_score=1) == ("a", 1, {})
    assert call("a", other=2) == ("a", 0.0, {"other": 2})
    assert strict(source="a", input_size=3) == ("a", 0.0, 3)
    with pytest.raises(TypeError, match="missing"):
        strict()


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        ({"conf": 0.5}, ["conf=0.5 is an unknown keyword of strict. Use min_score."]),
        ({"CONF": 0.5}, ["CONF=0.5", "Use min_score."]),
        ({"conf": 1, "imgsz": 640}, ["Use min_score.", "imgsz=640", "Use input_size."]),
        ({"min_scor": 1}, ["Did you mean 'min_score'?", "Keywords: source, min_score, input_size."]),
        ({"imgsiz": 1}, ["Use input_size."]),
        ({"xyzzy": "a" * 9999}, ["Keywords: source, min_score, input_size."]),
    ],
)
def test_unknown_keywords_name_ours(given, parts):
    with pytest.raises(KeywordError) as caught:
        strict("a", **given)
    assert isinstance(caught.value, ConfigError) and isinstance(caught.value, TypeError)
    assert len(str(caught.value)) < 600
    for part in parts:
        assert part in str(caught.value)


def test_listed_keywords_are_refused_by_functions_of_any_keywords():
    with pytest.raises(KeywordError, match="Use min_score"):
        call("a", conf=0.3)


@pytest.mark.parametrize("name", TABLES)
def test_hints_are_sentences(name):
    for keyword, hint in TABLES[name].items():
        assert keyword == keyword.lower()
        assert hint[0].isalpha() and hint.endswith("."), (keyword, hint)
