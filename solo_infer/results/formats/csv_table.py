"""CSV: one row for each instance."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from solo_infer.ops import packed_masks
from solo_infer.results.formats.streamed import StreamedFile

if TYPE_CHECKING:
    from solo_infer.results.result import Result

COLUMNS = (
    "source",
    "image_width",
    "image_height",
    "instance",
    "label",
    "category_id",
    "name",
    "score",
    "x1",
    "y1",
    "x2",
    "y2",
    "area",
)
# Spreadsheets take cells that start with these characters, or with their full-width forms, for formulas.
_FORMULA_STARTS = "=+-@\t\r\n\uff1d\uff0b\uff0d\uff20"


def to_rows(result: Result) -> list[list[str | int | float]]:
    """Return one row for each instance, with the values of ``COLUMNS``: box and area in pixels.

    Texts that a spreadsheet would take for a formula get an apostrophe in front.
    """
    height, width = result.image_size
    areas = packed_masks.popcount(result.packed_masks).sum(dim=1).tolist()
    return [
        [
            as_cell(result.source),
            width,
            height,
            index,
            instance.label,
            result.categories.ids[instance.label],
            as_cell(instance.name),
            instance.score,
            *instance.box,
            area,
        ]
        for index, (instance, area) in enumerate(zip(result, areas, strict=True))
    ]


def as_cell(text: str) -> str:
    """Return a text that no spreadsheet takes for a formula."""
    start = text.lstrip(" \u00a0\u3000\ufeff\0")[:1]
    return f"'{text}" if start and start in _FORMULA_STARTS else text


class CsvFile(StreamedFile):
    """Context manager that writes a CSV file (RFC 4180, UTF-8) with a header and one row for each instance.

    Images without instances have no row. The arguments are those of ``StreamedFile``.
    """

    def _opening(self) -> str:
        return _lines([COLUMNS])

    def _entries(self, result: Result) -> str:
        return _lines(to_rows(result))

    def _closing(self) -> Iterator[str]:
        return iter(())


def _lines(rows: Iterable[Sequence[str | int | float]]) -> str:
    buffer = io.StringIO(newline="")
    csv.writer(buffer).writerows(rows)
    return buffer.getvalue()
