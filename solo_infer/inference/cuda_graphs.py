"""CUDA graphs: a recorded sequence of launches that one call replays, in place of hundreds.

A graph works on buffers of its own, and all graphs of a cache share the memory of what they need on the way.
So only one of them is in use at a time: a lock keeps other threads from it on the host, an event on the
device.
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

# Graphs that are kept, and what their inputs and outputs may take together. COCO has some 35 padded sizes.
MOST_GRAPHS = 48
MOST_BYTES = 4 << 30
# Keys whose sightings are counted.
_MOST_SEEN = 1024

Function = Callable[..., Any]


class Captured(Protocol):
    """A recorded function with buffers of its own."""

    size: int  # bytes of inputs and outputs

    def replay(self, inputs: Sequence[Tensor]) -> Any:
        """Run on inputs of the recorded shapes; return the outputs, which the next replay overwrites."""

    def release(self) -> None:
        """Tell that all work that reads the outputs has been handed to the current stream."""


# Function, inputs, and one that was made before (or None), whose memory may be shared.
Capture = Callable[[Function, Sequence[Tensor], Any], Captured]


class CudaGraph:
    """A function recorded as a CUDA graph; see ``Captured``.

    Args:
        function: Takes and returns tensors on one CUDA device, and waits for nothing.
        inputs: Of the shapes, dtypes and layouts to come.
        neighbor: Another graph on the device, never in use while this one is, to share its memory.
    """

    def __init__(self, function: Function, inputs: Sequence[Tensor], neighbor: CudaGraph | None) -> None:
        self._device = inputs[0].device
        self._read: torch.cuda.Event
        self._graph = torch.cuda.CUDAGraph()
        pool = None if neighbor is None else neighbor._graph.pool()
        # Buffers made in a caller's inference mode could not be written to outside of it.
        with _CAPTURING, torch.inference_mode(False), torch.no_grad(), torch.cuda.device(self._device):
            self._inputs = [tensor.clone() for tensor in inputs]
            self._read = torch.cuda.Event() if neighbor is None else neighbor._read
            current, side = torch.cuda.current_stream(), torch.cuda.Stream()
            side.wait_stream(current)
            with torch.cuda.stream(side):  # libraries choose and compile what they will launch
                function(*self._inputs)
            current.wait_stream(side)
            # Not torch's own stream for captures, which belongs to the device that captured first.
            with torch.cuda.graph(self._graph, pool, side, capture_error_mode="thread_local"):
                self._outputs = function(*self._inputs)
        self.size = sum(map(_bytes_of, (self._inputs, self._outputs)))

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


def _bytes_of(value: Any) -> int:
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    return sum(map(_bytes_of, value))


class GraphCache:
    """Recorded functions by key, the least recently used one dropped when there are too many.

    A key is captured when it comes for the second time: an image of a size of its own does not pay for a
    capture. Each time as many graphs as fit have been dropped, this number doubles, so that a stream of more
    sizes than fit does not capture on and on. What cannot be captured runs as usual, which is logged once for
    its key.

    Args:
        capture: What records a function; another one in tests.
        most: Graphs that are kept.
        most_bytes: That their inputs and outputs may take together.
    """

    def __init__(
        self, capture: Capture = CudaGraph, most: int = MOST_GRAPHS, most_bytes: int = MOST_BYTES
    ) -> None:
        self._capture, self._most, self._most_bytes = capture, most, most_bytes
        self._counting, self._using = threading.Lock(), threading.Lock()
        self._owner: object = None
        self._seen: OrderedDict[Hashable, int] = OrderedDict()
        self._graphs: OrderedDict[Hashable, Captured] = OrderedDict()
        self._refused: set[Hashable] = set()
        self._dropped = 0

    def __len__(self) -> int:
        return len(self._graphs)

    @contextmanager
    def run(
        self, owner: object, key: Hashable, function: Function, inputs: Sequence[Tensor]
    ) -> Iterator[Any]:
        """Yield ``function(*inputs)``; what is to be kept must be copied before the context ends.

        Args:
            owner: Whose weights the function uses and keeps alive; another owner's graphs are dropped.
            key: What the function's launches depend on, shapes and device included.
            function: Takes and returns tensors; its launches depend on nothing but the key.
            inputs: Tensors.
        """
        key = (id(owner), key)
        if self._is_due(key):
            with self._using:
                captured = self._find(owner, key, function, inputs)
                if captured is not None:
                    try:
                        yield captured.replay(inputs)
                    finally:
                        captured.release()
                    return
        yield function(*inputs)

    def _is_due(self, key: Hashable) -> bool:
        """Count a sighting; return whether the key has come often enough for a graph."""
        with self._counting:
            seen = self._seen[key] = self._seen.pop(key, 0) + 1
            if len(self._seen) > _MOST_SEEN:
                self._seen.popitem(last=False)
            return seen >= 2 << self._dropped // self._most and key not in self._refused

    def _find(
        self, owner: object, key: Hashable, function: Function, inputs: Sequence[Tensor]
    ) -> Captured | None:
        """Return the graph of a key, captured if it is new, None if that cannot be done."""
        if owner is not self._owner:
            self._owner, self._dropped = owner, 0
            self._graphs.clear()
            self._refused.clear()
        if key in self._graphs:
            self._graphs.move_to_end(key)
            return self._graphs[key]
        neighbor = next(iter(self._graphs.values()), None)
        try:
            captured = self._capture(function, inputs, neighbor)
        except RuntimeError as error:  # CUDA's own errors, and want of memory
            self._refused.add(key)
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            _LOGGER.warning("No CUDA graph for this input, it runs without one: %s", reason)
            return None
        self._graphs[key] = captured
        while len(self._graphs) > self._most or (len(self._graphs) > 1 and self._total() > self._most_bytes):
            dropped, _ = self._graphs.popitem(last=False)
            self._dropped += 1
            with self._counting:
                self._seen.pop(dropped, None)
        return captured

    def _total(self) -> int:
        return sum(captured.size for captured in self._graphs.values())
