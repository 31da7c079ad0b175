"""CSV: one row for each instance."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from solo_infer.results.formats.streamed import StreamedFile
from solo_infer.runtime.csv_text import csv_text

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


def to_rows(result: Result) -> list[list[str | int | float]]:
    """Return one row for each instance, with the values of ``COLUMNS``: box and area in pixels.

    Texts that a spreadsheet would take for a formula get an apostrophe in front.
    """
    height, width = result.image_size
    return [
        [
            csv_text(result.source),
            width,
            height,
            index,
            instance.label,
            result.categories.ids[instance.label],
            csv_text(instance.name),
            instance.score,
            *instance.box,
            int(instance.mask.sum()),
        ]
        for index, instance in enumerate(result)
    ]


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
