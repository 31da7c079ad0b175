"""Suggestions for mistyped names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def closest(name: str, known: Iterable[str]) -> str | None:
    """Return the name that is most similar to one that was not found, None if none is similar."""
    by_lower_case = {candidate.lower(): candidate for candidate in known}
    similar = difflib.get_close_matches(name.lower(), by_lower_case, n=1)
    return by_lower_case[similar[0]] if similar else None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return "Did you mean 'a' or 'b'? " with up to three similar names, or "" if none is similar.

    Args:
        name: Name that was not found.
        known: Names that exist. Case is ignored when comparing.
    """
    by_lower_case = {candidate.lower(): candidate for candidate in known}
    similar = difflib.get_close_matches(name.lower(), by_lower_case, n=3)
    if not similar:
        return ""
    return f"Did you mean {' or '.join(repr(by_lower_case[candidate]) for candidate in similar)}? "
