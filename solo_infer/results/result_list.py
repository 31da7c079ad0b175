"""Results of several images."""

from __future__ import annotations

from typing import SupportsIndex, overload

from solo_infer.results.result import Result


class ResultList(list[Result]):
    """List of results with a picture for notebooks, which shows the first ones in rows."""

    @overload
    def __getitem__(self, index: SupportsIndex) -> Result: ...

    @overload
    def __getitem__(self, index: slice) -> ResultList: ...

    def __getitem__(self, index: SupportsIndex | slice) -> Result | ResultList:
        """Return the result of an index, or the list of a slice."""
        selected = super().__getitem__(index)
        return ResultList(selected) if isinstance(selected, list) else selected

    def _repr_png_(self) -> bytes | None:
        """Return the drawings of the first results with an image as PNG for notebooks."""
        from solo_infer.results.notebook import drawings_png, most_drawings, reduced_for_rows

        with_image = [result for result in self if result.image is not None]
        if not with_image:
            return None
        drawings = [reduced_for_rows(result.plot()) for result in with_image[: most_drawings()]]
        return drawings_png(drawings, len(self))
