"""Table of the layers of a network: output shapes, parameters, multiply-adds.

On the meta device only shapes are computed, for any input size and without memory. Multiply-adds are half of
the operations that ``torch.utils.flop_counter`` counts: those of convolutions and matrix products.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

MEGABYTE = 1e6
HEADINGS = ("Layer (type: name)", "Output shape", "Parameters", "Multiply-adds")


@dataclass
class Layer:
    """Row of the table: one call of a layer, or a container that is never called itself.

    Attributes:
        name: Qualified name in the network, e.g. "mask_head.cls_convs.0".
        kind: Name of the class.
        depth: Nesting depth, 1 for the children of the network.
        label: Name within the enclosing container.
        parameters: Number of parameters, including those of nested layers.
        shared: Whether an earlier row has the same parameters.
        shapes: Shape of each tensor that the call returned; empty if there was no call.
        multiply_adds: Multiply-adds of this call, including those of nested layers.
        output_bytes: Size of the returned tensors if the layer has parameters of its own, else 0.
    """

    name: str
    kind: str
    depth: int
    label: str
    parameters: int
    shared: bool
    shapes: list[tuple[int, ...]] = field(default_factory=list)
    multiply_adds: int = 0
    output_bytes: int = 0


@dataclass(frozen=True)
class LayerTable:
    """Rows in the order of the calls, and totals.

    Attributes:
        layers: Rows.
        input_shape: (N, 3, H, W) of the input.
        parameters: Number of parameters of the network.
        trainable: Number of parameters that require gradients.
        multiply_adds: Multiply-adds of one forward pass.
        input_mb: Size of the input in megabytes.
        forward_backward_mb: Size of the outputs of all layers with parameters and of their gradients, in
            megabytes.
        parameters_mb: Size of the parameters in megabytes.
    """

    layers: tuple[Layer, ...]
    input_shape: tuple[int, ...]
    parameters: int
    trainable: int
    multiply_adds: int
    input_mb: float
    forward_backward_mb: float
    parameters_mb: float

    def totals(self) -> dict[str, Any]:
        """Return all attributes except the rows, as JSON-ready values."""
        return {name: value for name, value in vars(self).items() if name != "layers"}

    def rows(self) -> list[dict[str, Any]]:
        """Return the rows as JSON-ready values."""
        return [asdict(layer) for layer in self.layers]

    def format(self, depth: int = 2) -> str:
        """Return the table as text.

        Args:
            depth: Greatest nesting depth of the rows; 0 shows the totals only. Defaults to 2.
        """
        rows = [_cells(layer) for layer in self.layers if layer.depth <= depth]
        lines = _align([HEADINGS, *rows]) if rows else []
        total_mb = self.input_mb + self.forward_backward_mb + self.parameters_mb
        return "\n".join(
            [
                *lines,
                f"Input: {list(self.input_shape)}",
                f"Total parameters: {self.parameters:,}",
                f"Trainable parameters: {self.trainable:,}",
                f"Total multiply-adds (G): {self.multiply_adds / 1e9:.2f}",
                f"Input size (MB): {self.input_mb:.2f}",
                f"Forward/backward pass size (MB): {self.forward_backward_mb:.2f}",
                f"Parameters size (MB): {self.parameters_mb:.2f}",
                f"Estimated total size (MB): {total_mb:.2f}",
            ]
        )


def tabulate(
    network: nn.Module, input_size: tuple[int, int], run: Callable[[Tensor], Any] | None = None
) -> LayerTable:
    """Run a network on an image of zeros and return the table of its layers.

    Args:
        network: Network in the mode to run in. On the meta device nothing is computed.
        input_size: (height, width) of the network input in pixels.
        run: Function to call with the image (1, 3, H, W). Defaults to the network.
    """
    parameters = list(network.parameters())
    images = torch.zeros((1, 3, *input_size), dtype=parameters[0].dtype, device=parameters[0].device)
    with torch.no_grad(), _flop_counter() as counter:
        recorder = _Recorder(network, counter)
        with recorder.recording():
            (run or network)(images)
    rows = recorder.rows
    return LayerTable(
        layers=tuple(rows),
        input_shape=tuple(images.shape),
        parameters=_count(parameters),
        trainable=_count([parameter for parameter in parameters if parameter.requires_grad]),
        multiply_adds=counter.get_total_flops() // 2,
        input_mb=_bytes(images) / MEGABYTE,
        forward_backward_mb=2 * sum(row.output_bytes for row in rows) / MEGABYTE,
        parameters_mb=sum(map(_bytes, parameters)) / MEGABYTE,
    )


class _Recorder:
    """Recorder of a row for each call of a layer."""

    def __init__(self, network: nn.Module, counter: FlopCounterMode) -> None:
        self.rows: list[Layer] = []
        self._modules = dict(network.named_modules())
        self._names = {module: name for name, module in self._modules.items()}
        self._counter = counter
        self._open: list[tuple[Layer, int]] = []  # unfinished calls with the operation count at their start
        self._recorded: set[str] = set()
        self._uncalled: dict[str, Layer] = {}
        self._chain: tuple[str, ...] = ()  # name of the last row and of its containers

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record rows inside this context."""
        hooks = []
        for name, module in self._modules.items():
            if name:
                hooks.append(module.register_forward_pre_hook(self._enter))
                hooks.append(module.register_forward_hook(self._leave))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _enter(self, module: nn.Module, inputs: Any) -> None:
        name = self._names[module]
        containers = self._containers_of(name)
        for container in containers:
            if container not in self._chain:
                self._uncalled[container] = self._add_row(container)
        row = self._add_row(name)
        self._chain = (*containers, name)
        self._open.append((row, self._counter.get_total_flops()))

    def _leave(self, module: nn.Module, inputs: Any, output: Any) -> None:
        row, before = self._open.pop()
        tensors = list(_tensors(output))
        row.shapes = [tuple(tensor.shape) for tensor in tensors]
        row.multiply_adds = (self._counter.get_total_flops() - before) // 2
        if next(module.parameters(recurse=False), None) is not None:
            row.output_bytes = sum(map(_bytes, tensors))
        self._add_to_uncalled(row)

    def _add_row(self, name: str) -> Layer:
        module, containers = self._modules[name], self._containers_of(name)
        parameters = _count(list(module.parameters()))
        row = Layer(
            name=name,
            kind=type(module).__name__,
            depth=len(containers) + 1,
            label=name.removeprefix(f"{containers[-1]}." if containers else ""),
            parameters=parameters,
            shared=name in self._recorded and parameters > 0,
        )
        self._recorded.add(name)
        self.rows.append(row)
        return row

    def _containers_of(self, name: str) -> tuple[str, ...]:
        """Return the names of the modules that contain a layer, without module lists."""
        words = name.split(".")
        prefixes = (".".join(words[:end]) for end in range(1, len(words)))
        return tuple(prefix for prefix in prefixes if not isinstance(self._modules[prefix], nn.ModuleList))

    def _add_to_uncalled(self, row: Layer) -> None:
        """Add the multiply-adds of a call to the containers that are never called themselves."""
        caller = f"{self._open[-1][0].name}." if self._open else ""
        for container in self._containers_of(row.name):
            if container in self._uncalled and container.startswith(caller):
                self._uncalled[container].multiply_adds += row.multiply_adds


def _flop_counter() -> FlopCounterMode:
    """Return a counter of operations that includes deformable convolutions."""
    return FlopCounterMode(
        display=False, custom_mapping={torch.ops.torchvision.deform_conv2d: _deformable_operations}
    )


def _deformable_operations(x: Any, weight: Any, offset: Any, *args: Any, **kwargs: Any) -> int:
    """Return the operations of a deformable convolution, from the shapes of its operands."""
    outputs = math.prod((offset[0], *offset[2:]))
    return 2 * math.prod(weight) * outputs


def _tensors(output: Any) -> Iterator[Tensor]:
    """Yield the tensors in the output of a layer."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, Mapping):
        yield from _tensors(list(output.values()))
    elif isinstance(output, Iterable):
        for item in output:
            yield from _tensors(item)


def _count(parameters: list[nn.Parameter]) -> int:
    return sum(parameter.numel() for parameter in parameters)


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _cells(layer: Layer) -> tuple[str, ...]:
    """Return the text of each column of a row."""
    suffix = f" and {len(layer.shapes) - 1} more" if len(layer.shapes) > 1 else ""
    shape = f"{list(layer.shapes[0])}{suffix}" if layer.shapes else "--"
    parameters = f"{layer.parameters:,}" if layer.parameters else "--"
    return (
        f"{'│  ' * (layer.depth - 1)}├─{layer.kind}: {layer.label}",
        shape,
        "(recursive)" if layer.shared else parameters,
        f"{layer.multiply_adds:,}" if layer.multiply_adds else "--",
    )


def _align(rows: list[tuple[str, ...]]) -> list[str]:
    """Return rows as lines with aligned columns and rules above, below the headings and below the rows."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for name, shape, *numbers in rows:
        left = f"{name:<{widths[0]}}  {shape:<{widths[1]}}"
        right = (f"{number:>{width}}" for number, width in zip(numbers, widths[2:], strict=True))
        lines.append("  ".join([left, *right]))
    rule = "=" * len(lines[0])
    return [rule, lines[0], rule, *lines[1:], rule]
