"""CUDA graphs: a recorded sequence of launches that one call replays, in place of hundreds.

A graph works on buffers of its own. Each has a lock, so that any number of threads may ask for the same one, and the
next user waits on the device, not on the host, until the last one has read what it needs.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor

_LOGGER = logging.getLogger(__name__)
_CAPTURING = threading.Lock()  # CUDA records one graph at a time

# Graphs that are kept. Each holds the memory of one whole pass.
MOST_GRAPHS = 4
# Keys that were seen once and are captured when they come again.
_MOST_SEEN = 256

Function = Callable[..., Any]


class Captured(Protocol):
    """A recorded function with buffers of its own."""

    def replay(self, inputs: Sequence[Tensor]) -> Any:
        """Run on inputs of the recorded shapes; return the outputs, which the next replay overwrites."""

    def release(self) -> None:
        """Tell that all work that reads the outputs has been handed to the current stream."""


Capture = Callable[[Function, Sequence[Tensor]], Captured]


class CudaGraph:
    """A function recorded as a CUDA graph; see ``Captured``.

    Args:
        function: Takes and returns tensors on one CUDA device, and waits for nothing.
        inputs: Of the shapes, dtypes and layouts to come.
    """

    def __init__(self, function: Function, inputs: Sequence[Tensor]) -> None:
        self._device = inputs[0].device
        self._graph = torch.cuda.CUDAGraph()
        # Buffers made in a caller's inference mode could not be written to outside of it.
        with _CAPTURING, torch.inference_mode(False), torch.no_grad(), torch.cuda.device(self._device):
            self._inputs = [tensor.clone() for tensor in inputs]
            self._read = torch.cuda.Event()
            current, side = torch.cuda.current_stream(), torch.cuda.Stream()
            side.wait_stream(current)
            with torch.cuda.stream(side):  # libraries choose and compile what they will launch
                function(*self._inputs)
            current.wait_stream(side)
            with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
                self._outputs = function(*self._inputs)

    def replay(self, inputs: Sequence[Tensor]) -> Any:
        """Run on inputs of the recorded shapes; return the outputs, which the next replay overwrites."""
        with torch.cuda.device(self._device):
            torch.cuda.current_stream().wait_event(self._read)
            for own, given in zip(self._inputs, inputs, strict=True):
                own.copy_(given, non_blocking=True)
            self._graph.replay()
        return self._outputs

    def release(self) -> None:
        """Tell that all work that reads the outputs has been handed to the current stream."""
        with torch.cuda.device(self._device):
            self._read.record(torch.cuda.current_stream())


class _Entry:
    """A graph to be, or one, or a key that cannot be captured."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.captured: Captured | None = None
        self.failed = False


class GraphCache:
    """Recorded functions by key, the least recently used one dropped when there are too many.

    A key is captured when it comes for the second time: images of ever new sizes never pay for a capture. What
    cannot be captured runs as usual, which is logged once for its key.

    Args:
        capture: What records a function; another one in tests.
        most: Graphs that are kept.
    """

    def __init__(self, capture: Capture = CudaGraph, most: int = MOST_GRAPHS) -> None:
        self._capture, self._most = capture, most
        self._lock = threading.Lock()
        self._owner: object = None
        self._seen: OrderedDict[Hashable, None] = OrderedDict()
        self._entries: OrderedDict[Hashable, _Entry] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    @contextmanager
    def run(self, owner: object, key: Hashable, function: Function, inputs: Sequence[Tensor]) -> Iterator[Any]:
        """Yield ``function(*inputs)``; what is to be kept must be copied before the context ends.

        Args:
            owner: Whose weights the function uses; another owner's graphs are dropped.
            key: What the function's launches depend on, shapes included.
            function: Takes and returns tensors; its launches depend on nothing but the key.
            inputs: Tensors.
        """
        entry = self._entry(owner, key)
        if entry is None:
            yield function(*inputs)
            return
        with entry.lock:
            captured = self._captured(entry, function, inputs)
            if captured is not None:
                try:
                    yield captured.replay(inputs)
                finally:
                    captured.release()
                return
        yield function(*inputs)

    def _entry(self, owner: object, key: Hashable) -> _Entry | None:
        """Return the entry of a key, None if it is new."""
        with self._lock:
            if owner is not self._owner:
                self._owner = owner
                self._seen.clear()
                self._entries.clear()
            if key in self._entries:
                self._entries.move_to_end(key)
            elif key in self._seen:
                self._entries[key] = _Entry()
                if len(self._entries) > self._most:
                    self._entries.popitem(last=False)
            else:
                self._seen[key] = None
                if len(self._seen) > _MOST_SEEN:
                    self._seen.popitem(last=False)
                return None
            return self._entries[key]

    def _captured(self, entry: _Entry, function: Function, inputs: Sequence[Tensor]) -> Captured | None:
        if entry.captured is None and not entry.failed:
            try:
                entry.captured = self._capture(function, inputs)
            except RuntimeError as error:  # CUDA's own errors, and want of memory
                entry.failed = True
                reason = next(iter(str(error).splitlines()), type(error).__name__)
                _LOGGER.warning("No CUDA graph for this input, it runs without one: %s", reason)
        return entry.captured
