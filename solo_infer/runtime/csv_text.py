"""Text in CSV files, which spreadsheets open."""

from __future__ import annotations

_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")


def csv_text(text: str) -> str:
    """Return a text for a cell: one that a spreadsheet would take for a formula starts with an apostrophe.

    Names from files of others, such as classes, may be formulas that run commands. Numbers are unchanged.
    """
    if not text.lstrip(" ").startswith(_FORMULA_STARTS):
        return text
    try:
        float(text)
    except ValueError:
        return f"'{text}"
    return text
