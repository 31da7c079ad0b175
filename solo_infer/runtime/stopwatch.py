"""Wall time by stage."""

from __future__ import annotations

import time

import torch


class Stopwatch:
    """Stopwatch that adds up the time between marks.

    Attributes:
        seconds: Seconds by stage.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        """Start the stopwatch.

        Args:
            device: CUDA device to synchronize at each mark. Defaults to no synchronization: work on a GPU is
                then attributed to the stage that waits for it.
        """
        self.seconds: dict[str, float] = {}
        self._synchronized = device if device is not None and device.type == "cuda" else None
        self._last = self._now()

    @property
    def synchronizes(self) -> bool:
        """Whether each mark synchronizes a device."""
        return self._synchronized is not None

    def mark(self, stage: str) -> None:
        """Add the time since the last mark, or the start, to a stage."""
        now = self._now()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self._last
        self._last = now

    def _now(self) -> float:
        if self._synchronized is not None:
            torch.cuda.synchronize(self._synchronized)
        return time.perf_counter()
