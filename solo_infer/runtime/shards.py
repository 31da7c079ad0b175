"""Share of a list that one of several processes works on, and the names of its files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from solo_infer.errors import ConfigError
from solo_infer.runtime.messages import quoted

T = TypeVar("T")


@dataclass(frozen=True)
class Shard:
    """Share of one process: every ``count``-th item of a list, from the item ``index``.

    Attributes:
        index: Index of the process, 0..count-1.
        count: Number of processes.
    """

    index: int
    count: int

    def of(self, items: Sequence[T]) -> list[T]:
        """Return the items of this process."""
        return list(items[self.index :: self.count])

    def path(self, path: Path) -> Path:
        """Return the path of the file of this process: "results-0-of-4.json" for "results.json"."""
        return path.with_stem(f"{path.stem}-{self.index}-of-{self.count}")


WHOLE = Shard(0, 1)


def environment_shard() -> Shard:
    """Return the share of a process that torchrun has started: ``RANK`` and ``WORLD_SIZE``.

    Raises:
        ConfigError: The variables are not those of a process.
    """
    texts = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    numbers = [int(text) if text.isascii() and text.isdigit() and len(text) < 10 else -1 for text in texts]
    if not 0 <= numbers[0] < numbers[1]:
        raise ConfigError(
            f"RANK={quoted(texts[0])} and WORLD_SIZE={quoted(texts[1])} in the environment: expected the "
            "index of a process and the number of processes, as torchrun sets them. Unset both to use one."
        )
    return Shard(numbers[0], numbers[1])
