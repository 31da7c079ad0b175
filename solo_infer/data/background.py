"""Iteration in a background thread with a bounded queue."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")

_JOIN_SECONDS = 1.0  # an item is finished in that time, unless its source is silent
_POLL_SECONDS = 0.5  # ctrl-C cannot end a wait without a limit on Windows


def iterate_in_background(
    produce: Callable[[], Generator[T | None, None, None]],
    *,
    capacity: int,
    keep_latest: bool = False,
    timeout: float | None = None,
) -> Generator[T, None, None]:
    """Iterate over the items of a generator that runs in a thread of its own.

    Args:
        produce: Returns the generator. An item None is not passed on, but shows that the source is alive.
        capacity: Items that may wait for the consumer. The generator then pauses.
        keep_latest: Whether to drop the waiting item for a newer one instead.
        timeout: Seconds of silence after which waiting ends. Defaults to waiting as long as it takes.

    Raises:
        TimeoutError: The generator was silent for too long. Its thread is left behind and ends with the
            process.
        Exception: Any error of the generator, after its items.
    """
    channel: _Channel[T] = _Channel(1 if keep_latest else capacity, keep_latest)
    thread = threading.Thread(target=channel.fill, args=(produce,), name="solo_infer-decode", daemon=True)
    thread.start()
    try:
        yield from channel.drain(timeout)
    finally:
        channel.close()
        thread.join(_JOIN_SECONDS)


class _Channel(Generic[T]):
    """Queue between the thread that produces items and the one that consumes them."""

    def __init__(self, capacity: int, keep_latest: bool) -> None:
        self._capacity, self._keep_latest = capacity, keep_latest
        self._items: deque[T] = deque()
        self._changed = threading.Condition()
        self._is_closed = self._has_ended = False
        self._error: BaseException | None = None
        self._last_sign = time.monotonic()

    def fill(self, produce: Callable[[], Generator[T | None, None, None]]) -> None:
        """Put all items of the generator, and its error."""
        try:
            with contextlib.closing(produce()) as items:
                for item in items:
                    if not self._put(item):
                        break
        except BaseException as error:  # raised again in the consumer
            self._error = error
        with self._changed:
            self._has_ended = True
            self._changed.notify_all()

    def _put(self, item: T | None) -> bool:
        """Put an item as soon as there is room, and return whether a consumer is left."""
        with self._changed:
            self._last_sign = time.monotonic()
            if item is not None:
                if self._keep_latest:
                    self._items.clear()
                self._changed.wait_for(lambda: len(self._items) < self._capacity or self._is_closed)
                self._items.append(item)
                self._changed.notify_all()
            return not self._is_closed

    def drain(self, timeout: float | None) -> Iterator[T]:
        """Yield the items as they come, then raise the error of the generator if it had one."""
        while self._wait(timeout):
            with self._changed:
                item = self._items.popleft()
                self._changed.notify_all()
            yield item
        if self._error is not None:
            raise self._error

    def _wait(self, timeout: float | None) -> bool:
        """Wait for an item, and return False at the end."""
        with self._changed:
            start = time.monotonic()
            while not self._items and not self._has_ended:
                silence = time.monotonic() - max(start, self._last_sign)
                if timeout is not None and silence >= timeout:
                    raise TimeoutError(f"silent for {timeout:g} s")
                self._changed.wait(
                    _POLL_SECONDS if timeout is None else min(_POLL_SECONDS, timeout - silence)
                )
            return bool(self._items)

    def close(self) -> None:
        """Stop the generator at its next item."""
        with self._changed:
            self._is_closed = True
            self._items.clear()
            self._changed.notify_all()
