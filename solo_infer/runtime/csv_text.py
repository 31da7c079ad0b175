"""Text in CSV files, which spreadsheets open."""

from __future__ import annotations

# Spreadsheets take cells that start with these characters, or with their full-width forms, for formulas.
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
_BLANKS = " \u00a0\u3000\ufeff\0"


def csv_text(text: str) -> str:
    """Return a text for a cell: one that a spreadsheet would take for a formula starts with an apostrophe.

    Names from files of others, such as classes, may be formulas that run commands. Numbers are unchanged.
    """
    if not text.lstrip(_BLANKS).startswith(_FORMULA_STARTS):
        return text
    try:
        float(text)
    except ValueError:
        return f"'{text}"
    return text
