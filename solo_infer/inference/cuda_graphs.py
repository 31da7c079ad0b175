"""Cache of CUDA graphs: one call replays a recorded sequence of launches.

Each graph has its own input and output buffers; all graphs of a cache share the memory pool of their
intermediates. Only one of them may therefore run at a time, which a lock ensures on the host and an event on
the device.
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

from solo_infer.runtime.messages import first_line

_LOGGER = logging.getLogger(__name__)
_CAPTURE_LOCK = threading.Lock()  # CUDA records one graph at a time

# Greatest number of graphs, and of bytes of their inputs and outputs. COCO has about 35 padded sizes.
MAX_GRAPHS = 48
MAX_BYTES = 4 << 30
_MAX_COUNTED_KEYS = 1024

Function = Callable[..., Any]


class Captured(Protocol):
    """A recorded function with its own buffers."""

    size: int  # bytes of the inputs and outputs

    def replay(self, inputs: Sequence[Tensor]) -> Any:
        """Run on inputs of the recorded shapes; the next replay overwrites the returned outputs."""

    def release(self) -> None:
        """Record an event after the last read of the outputs on the current stream."""


# Function, inputs, and an earlier recording (or None) whose memory pool may be shared.
Capture = Callable[[Function, Sequence[Tensor], Any], Captured]


class CudaGraph:
    """A function recorded as a CUDA graph; see ``Captured``.

    Args:
        function: Takes and returns tensors on one CUDA device, without host synchronization.
        inputs: Tensors with the shapes, dtypes and layouts of all later inputs.
        pool_owner: Another graph on the device that never runs at the same time; its memory pool is shared.
    """

    def __init__(self, function: Function, inputs: Sequence[Tensor], pool_owner: CudaGraph | None) -> None:
        self._device = inputs[0].device
        self._read: torch.cuda.Event
        self._graph = torch.cuda.CUDAGraph()
        pool = None if pool_owner is None else pool_owner._graph.pool()
        # Buffers created in a caller's inference mode could not be written outside of it.
        with _CAPTURE_LOCK, torch.inference_mode(False), torch.no_grad(), torch.cuda.device(self._device):
            self._inputs = [tensor.clone() for tensor in inputs]
            self._read = torch.cuda.Event() if pool_owner is None else pool_owner._read
            current, side = torch.cuda.current_stream(), torch.cuda.Stream()
            side.wait_stream(current)
            with torch.cuda.stream(side):  # libraries select and compile their kernels
                function(*self._inputs)
            current.wait_stream(side)
            # Not torch's default capture stream, which belongs to the device that captured first.
            with torch.cuda.graph(self._graph, pool, side, capture_error_mode="thread_local"):
                self._outputs = function(*self._inputs)
        self.size = sum(map(_bytes_of, (self._inputs, self._outputs)))

    def replay(self, inputs: Sequence[Tensor]) -> Any:
        """Run on inputs of the recorded shapes; the next replay overwrites the returned outputs."""
        with torch.cuda.device(self._device):
            torch.cuda.current_stream().wait_event(self._read)
            for buffer, tensor in zip(self._inputs, inputs, strict=True):
                buffer.copy_(tensor, non_blocking=True)
            self._graph.replay()
        return self._outputs

    def release(self) -> None:
        """Record an event after the last read of the outputs on the current stream."""
        with torch.cuda.device(self._device):
            self._read.record(torch.cuda.current_stream())


def _bytes_of(value: Any) -> int:
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    return 0 if isinstance(value, int) else sum(map(_bytes_of, value))


class GraphCache:
    """Least-recently-used cache of recorded functions.

    A key is captured at its second use, so that a rare image size does not pay for a capture. Whenever as
    many graphs have been dropped as fit, the number of uses doubles: a stream of more sizes than fit does not
    capture forever. Functions that cannot be captured run as usual, which is logged once per key.

    Args:
        capture: Records a function; replaced in tests.
        max_graphs: Greatest number of graphs.
        max_bytes: Greatest number of bytes of their inputs and outputs.
    """

    def __init__(
        self, capture: Capture = CudaGraph, max_graphs: int = MAX_GRAPHS, max_bytes: int = MAX_BYTES
    ) -> None:
        self._capture, self._max_graphs, self._max_bytes = capture, max_graphs, max_bytes
        self._count_lock, self._run_lock = threading.Lock(), threading.Lock()
        self._owner: object = None
        self._uses: OrderedDict[Hashable, int] = OrderedDict()
        self._graphs: OrderedDict[Hashable, Captured] = OrderedDict()
        self._uncapturable: set[Hashable] = set()
        self._dropped = 0

    def __getstate__(self) -> dict[str, Any]:
        """Return the arguments alone: copies and pickles capture their own graphs."""
        return {"capture": self._capture, "max_graphs": self._max_graphs, "max_bytes": self._max_bytes}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def __len__(self) -> int:
        return len(self._graphs)

    @contextmanager
    def run(
        self, owner: object, key: Hashable, function: Function, inputs: Sequence[Tensor]
    ) -> Iterator[Any]:
        """Yield ``function(*inputs)``; outputs that are kept must be copied before the context ends.

        Args:
            owner: Object that owns the weights. The graphs of another owner are dropped.
            key: Everything that the launches of the function depend on, including shapes and device.
            function: Takes and returns tensors; its launches depend on the key only.
            inputs: Arguments of the function.
        """
        key = (id(owner), key)
        if self._should_capture(key):
            with self._run_lock:
                captured = self._find(owner, key, function, inputs)
                if captured is not None:
                    try:
                        yield captured.replay(inputs)
                    finally:
                        captured.release()
                    return
        yield function(*inputs)

    def _should_capture(self, key: Hashable) -> bool:
        """Count a use of the key; return whether it is used often enough for a graph."""
        with self._count_lock:
            uses = self._uses[key] = self._uses.pop(key, 0) + 1
            if len(self._uses) > _MAX_COUNTED_KEYS:
                self._uses.popitem(last=False)
            return uses >= 2 << self._dropped // self._max_graphs and key not in self._uncapturable

    def _find(
        self, owner: object, key: Hashable, function: Function, inputs: Sequence[Tensor]
    ) -> Captured | None:
        """Return the graph of a key, captured if it is new; None if it cannot be captured."""
        if owner is not self._owner:
            self._owner, self._dropped = owner, 0
            self._graphs.clear()
            self._uncapturable.clear()
        if key in self._graphs:
            self._graphs.move_to_end(key)
            return self._graphs[key]
        pool_owner = next(iter(self._graphs.values()), None)
        try:
            captured = self._capture(function, inputs, pool_owner)
        except RuntimeError as error:  # CUDA errors, including out of memory
            self._uncapturable.add(key)
            _LOGGER.warning(
                "No CUDA graph can be captured for this input, it runs without one: %s", first_line(error)
            )
            return None
        self._graphs[key] = captured
        while len(self._graphs) > self._max_graphs or (
            len(self._graphs) > 1 and self._total() > self._max_bytes
        ):
            dropped, _ = self._graphs.popitem(last=False)
            self._dropped += 1
            with self._count_lock:
                self._uses.pop(dropped, None)
        return captured

    def _total(self) -> int:
        return sum(captured.size for captured in self._graphs.values())
