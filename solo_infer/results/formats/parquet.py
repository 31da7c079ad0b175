"""Parquet: one row for each image, with its instances as a list. See ``docs/large-runs.md``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from solo_infer.config.categories import Categories
from solo_infer.errors import ResultError
from solo_infer.results.formats.result_json import from_dict, to_dict

if TYPE_CHECKING:
    from solo_infer.results.result import Result

SCHEMA_VERSION = 1  # of the columns
METADATA_KEY = b"solo_infer"  # of the JSON text in the metadata of a file
_MAX_BYTES = 1 << 40  # of the masks of a result, which are as large as the image that was segmented


def pyarrow() -> Any:
    """Return the package pyarrow, with its module ``parquet``.

    Raises:
        ResultError: It is not installed, or is broken.
    """
    try:
        import pyarrow as package
        import pyarrow.parquet
    except ImportError as error:
        raise ResultError(
            f"Tables of results need the package pyarrow ({error}): pip install 'solo-infer[ray]'."
        ) from error
    return package


def arrow_schema() -> Any:
    """Return the ``pyarrow.Schema`` of the rows."""
    pa = pyarrow()
    mask = pa.struct([("size", pa.list_(pa.int32())), ("counts", pa.string())])
    instance = pa.struct(
        [
            ("label", pa.int32()),
            ("category_id", pa.int64()),
            ("name", pa.string()),
            ("score", pa.float32()),
            ("box", pa.list_(pa.float32())),
            ("mask", mask),
        ]
    )
    return pa.schema(
        [
            ("uri", pa.string()),
            ("width", pa.int32()),
            ("height", pa.int32()),
            ("error", pa.string()),
            ("instances", pa.list_(instance)),
        ]
    )


def to_row(result: Result, uri: str) -> dict[str, Any]:
    """Return a result as a row of ``arrow_schema``.

    Args:
        result: Result.
        uri: Name of the image.
    """
    height, width = result.image_size
    instances = to_dict(result, categories=False)["instances"]
    return {
        "uri": _as_utf8(uri),
        "width": width,
        "height": height,
        "error": None,
        "instances": instances,
    }


def error_row(uri: str, error: Exception) -> dict[str, Any]:
    """Return the row of an image that cannot be read: without sizes and instances."""
    text = _as_utf8(str(error))
    return {"uri": _as_utf8(uri), "width": None, "height": None, "error": text, "instances": []}


def _as_utf8(text: str) -> str:
    """Return a text without lone surrogates, which names of files that are not valid Unicode have."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def to_table(rows: Sequence[Mapping[str, Any]], metadata: bytes | None = None) -> Any:
    """Return rows as a ``pyarrow.Table``.

    Args:
        rows: Rows of ``to_row`` and ``error_row``.
        metadata: Value of ``METADATA_KEY`` in the metadata of the schema. Defaults to no metadata.
    """
    schema = arrow_schema()
    if metadata is not None:
        schema = schema.with_metadata({METADATA_KEY: metadata})
    return pyarrow().Table.from_pylist(list(rows), schema=schema)


def to_result(row: Mapping[str, Any], categories: Categories, source: str | None = None) -> Result:
    """Return the result of a row, on the CPU; image and timings are missing.

    Args:
        row: Row without an error.
        categories: Classes of the model.
        source: Name of the image. Defaults to that of the row.

    Raises:
        ResultError: The values are not those of a result.
    """
    values = {
        "schema_version": 1,
        "source": row["uri"] if source is None else source,
        "image_size": {"height": row["height"], "width": row["width"]},
        "instances": row["instances"],
    }
    return from_dict(values, categories=categories, max_bytes=_MAX_BYTES)
