"""Raw outputs of a network, replayed from a CUDA graph where a device gains from one.

For networks whose detections have no static shapes: the graph ends with the network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from torch import Tensor

from solo_infer.inference.cuda_graphs import GraphCache
from solo_infer.models.base import SegmentationNetwork
from solo_infer.runtime.device import graphs_allowed
from solo_infer.runtime.stopwatch import Stopwatch

Network = TypeVar("Network", bound=SegmentationNetwork)
Output = TypeVar("Output")


@contextmanager
def run_network(
    graphs: GraphCache,
    forward: Callable[[Network, Tensor, Stopwatch], Output],
    network: Network,
    inputs: Tensor,
    stopwatch: Stopwatch,
) -> Iterator[Output]:
    """Yield ``forward(network, inputs, stopwatch)``; what is kept must be copied before the context ends.

    Args:
        graphs: Graphs of the network.
        forward: Returns tensors, also nested, whose shapes follow from that of the inputs, without host
            synchronization.
        network: Optimized network.
        inputs: (N, 3, H, W) network inputs.
        stopwatch: Marks the stages. If it synchronizes at each mark, no graph is used.
    """
    if stopwatch.synchronizes or not graphs_allowed(inputs.device):
        yield forward(network, inputs, stopwatch)
        return
    key = (tuple(inputs.shape), inputs.dtype, inputs.device)

    def launch(inputs: Tensor) -> Output:
        return forward(network, inputs, Stopwatch())

    with graphs.run(network, key, launch, (inputs,)) as output:
        yield output
