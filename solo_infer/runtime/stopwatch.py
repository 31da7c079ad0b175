"""Seconds by stage."""

from __future__ import annotations

import time

import torch


class Stopwatch:
    """Counts the time between marks.

    Args:
        device: Wait at each mark for the work that was handed to this device. Without one, work on a
            GPU is counted where it is waited for.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self.seconds: dict[str, float] = {}
        self._waits_for = device if device is not None and device.type == "cuda" else None
        self._last = self._now()

    @property
    def synchronizes(self) -> bool:
        """Whether each mark synchronizes with a device."""
        return self._waits_for is not None

    def mark(self, stage: str) -> None:
        """Count the time since the last mark, or the start, to a stage."""
        now = self._now()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self._last
        self._last = now

    def _now(self) -> float:
        if self._waits_for is not None:
            torch.cuda.synchronize(self._waits_for)
        return time.perf_counter()
