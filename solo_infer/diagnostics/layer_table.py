"""A network's layers as a table: output shapes, parameters, multiply-adds.

On the meta device only shapes are computed: any input size, at once and without memory. Multiply-adds are
half the operations that PyTorch's own counter (``torch.utils.flop_counter``) finds, which are those of
convolutions and matrix products.
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
    """One call of a layer, or a part of the network that is never called as a whole.

    Attributes:
        name: Where it is in the network, e.g. "mask_head.cls_convs.0".
        kind: Its class.
        depth: 1 for the parts of the network.
        label: Its name within the part that it is in.
        parameters: Of it and all layers in it.
        shared: It has a row already, with the same parameters.
        shapes: Of each tensor that it returned; empty if it was not called.
        multiply_adds: Of it and all layers in it, in this call.
        output_bytes: Of what it returned, if it has parameters itself, else 0.
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
    """All layers in the order of their calls, and totals.

    Attributes:
        layers: The rows.
        input_shape: (N, 3, H, W).
        parameters: Numbers of the network.
        trainable: Those that are trained.
        multiply_adds: Of one run.
        input_mb: Size of the input in megabytes.
        forward_backward_mb: Size of the outputs of all layers with parameters, twice: for their gradients.
        parameters_mb: Size of the parameters.
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
        """Return everything but the rows, as JSON-ready values."""
        return {name: value for name, value in vars(self).items() if name != "layers"}

    def rows(self) -> list[dict[str, Any]]:
        """Return the rows as JSON-ready values."""
        return [asdict(layer) for layer in self.layers]

    def format(self, depth: int = 2) -> str:
        """Return the table as text.

        Args:
            depth: Rows of parts within parts that are shown; 0 for the totals alone.
        """
        shown = [_cells(layer) for layer in self.layers if layer.depth <= depth]
        lines = _aligned([HEADINGS, *shown]) if shown else []
        whole = self.input_mb + self.forward_backward_mb + self.parameters_mb
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
                f"Estimated total size (MB): {whole:.2f}",
            ]
        )


def tabulate(
    network: nn.Module, input_size: tuple[int, int], run: Callable[[Tensor], Any] | None = None
) -> LayerTable:
    """Run a network on an empty image and return the table of its layers.

    Args:
        network: In the mode to be run in; on the meta device nothing is computed.
        input_size: (height, width) in pixels of the network input.
        run: What to call with the image (1, 3, H, W); the network if not given.
    """
    parameters = list(network.parameters())
    images = torch.zeros((1, 3, *input_size), dtype=parameters[0].dtype, device=parameters[0].device)
    with torch.no_grad(), _operations() as counter:
        recorder = _Recorder(network, counter)
        with recorder.listening():
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
    """Writes a row for each call of a layer of a network."""

    def __init__(self, network: nn.Module, counter: FlopCounterMode) -> None:
        self.rows: list[Layer] = []
        self._modules = dict(network.named_modules())
        self._names = {module: name for name, module in self._modules.items()}
        self._counter = counter
        self._open: list[tuple[Layer, int]] = []  # calls under way, and the operations before them
        self._written: set[str] = set()
        self._uncalled: dict[str, Layer] = {}
        self._chain: tuple[str, ...] = ()  # the last row and the parts that it is in

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Write rows while this lasts."""
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
        around = self._parts_around(name)
        for part in around:
            if part not in self._chain:
                self._uncalled[part] = self._write(part)
        row = self._write(name)
        self._chain = (*around, name)
        self._open.append((row, self._counter.get_total_flops()))

    def _leave(self, module: nn.Module, inputs: Any, output: Any) -> None:
        row, before = self._open.pop()
        tensors = list(_tensors(output))
        row.shapes = [tuple(tensor.shape) for tensor in tensors]
        row.multiply_adds = (self._counter.get_total_flops() - before) // 2
        if next(module.parameters(recurse=False), None) is not None:
            row.output_bytes = sum(map(_bytes, tensors))
        self._add_to_uncalled(row)

    def _write(self, name: str) -> Layer:
        module, around = self._modules[name], self._parts_around(name)
        parameters = _count(list(module.parameters()))
        row = Layer(
            name=name,
            kind=type(module).__name__,
            depth=len(around) + 1,
            label=name.removeprefix(f"{around[-1]}." if around else ""),
            parameters=parameters,
            shared=name in self._written and parameters > 0,
        )
        self._written.add(name)
        self.rows.append(row)
        return row

    def _parts_around(self, name: str) -> tuple[str, ...]:
        """Return the names of the parts that a layer is in, but for mere lists of layers."""
        words = name.split(".")
        around = (".".join(words[:end]) for end in range(1, len(words)))
        return tuple(part for part in around if not isinstance(self._modules[part], nn.ModuleList))

    def _add_to_uncalled(self, row: Layer) -> None:
        """Add a call's operations to the parts around it that are not called as a whole."""
        inside = f"{self._open[-1][0].name}." if self._open else ""
        for part in self._parts_around(row.name):
            if part in self._uncalled and part.startswith(inside):
                self._uncalled[part].multiply_adds += row.multiply_adds


def _operations() -> FlopCounterMode:
    """Return a counter of operations that knows deformable convolutions too."""
    return FlopCounterMode(
        display=False, custom_mapping={torch.ops.torchvision.deform_conv2d: _deformable_operations}
    )


def _deformable_operations(x: Any, weight: Any, offset: Any, *others: Any, **options: Any) -> int:
    """Return the operations of a deformable convolution, from the shapes of its operands."""
    outputs = math.prod((offset[0], *offset[2:]))
    return 2 * math.prod(weight) * outputs


def _tensors(output: Any) -> Iterator[Tensor]:
    """Yield the tensors in what a layer returned."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, Mapping):
        yield from _tensors(list(output.values()))
    elif isinstance(output, Iterable):
        for part in output:
            yield from _tensors(part)


def _count(parameters: list[nn.Parameter]) -> int:
    return sum(parameter.numel() for parameter in parameters)


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _cells(layer: Layer) -> tuple[str, ...]:
    """Return a row's text in each column."""
    more = f" and {len(layer.shapes) - 1} more" if len(layer.shapes) > 1 else ""
    shape = f"{list(layer.shapes[0])}{more}" if layer.shapes else "--"
    parameters = f"{layer.parameters:,}" if layer.parameters else "--"
    return (
        f"{'│  ' * (layer.depth - 1)}├─{layer.kind}: {layer.label}",
        shape,
        "(recursive)" if layer.shared else parameters,
        f"{layer.multiply_adds:,}" if layer.multiply_adds else "--",
    )


def _aligned(rows: list[tuple[str, ...]]) -> list[str]:
    """Return rows as lines with aligned columns, numbers to the right, ruled off at head and foot."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for name, shape, *numbers in rows:
        left = f"{name:<{widths[0]}}  {shape:<{widths[1]}}"
        right = (f"{number:>{width}}" for number, width in zip(numbers, widths[2:], strict=True))
        lines.append("  ".join([left, *right]))
    rule = "=" * len(lines[0])
    return [rule, lines[0], rule, *lines[1:], rule]
