"""Settings of prediction by tiles."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from solo_infer.config.validation import bounded_repr, is_int, require, require_positive_ints

Tile: TypeAlias = int | tuple[int, int]

MIN_SIZE = 64
DEFAULT_OVERLAP = 4  # divisor of the size


@dataclass(frozen=True)
class Tiling:
    """Tiles that a large image is cut into.

    Attributes:
        size: Height and width of a tile in pixels of the image, at least 64.
        overlap: Least number of pixels that neighboring tiles share, 1..size / 2. Objects up to this size are
            whole in some tile.
    """

    size: int
    overlap: int

    def __post_init__(self) -> None:
        require_positive_ints({"size": self.size, "overlap": self.overlap})
        require(self.size >= MIN_SIZE, f"size={self.size}: expected a tile of at least {MIN_SIZE} pixels.")
        require(
            self.overlap <= self.size // 2,
            f"overlap={self.overlap}: expected at most half of the size of a tile, {self.size // 2} pixels.",
        )


def as_tiling(tile: Tile | None) -> Tiling | None:
    """Return the tiling of an argument ``tile``: a size, or (size, overlap); None for no tiles.

    The overlap defaults to a quarter of the size.

    Raises:
        ConfigError: The argument is of another type, or a number is out of range.
    """
    if tile is None:
        return None
    if is_int(tile):
        return Tiling(tile, max(tile // DEFAULT_OVERLAP, 1))  # type: ignore[operator, arg-type]
    is_pair = isinstance(tile, list | tuple) and len(tile) == 2
    require(is_pair, f"tile={bounded_repr(tile)}: expected (size, overlap) or a size, in pixels.")
    size, overlap = tile  # type: ignore[misc]
    return Tiling(size, overlap)
