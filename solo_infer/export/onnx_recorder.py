"""A network as an ONNX graph of opset 11 or 13 with fixed shapes: what it does to one input, written down.

torch's own exporters give another graph from version to version; the one that writes these opsets computes
shapes inside the graph and is on its way out. Engines of accelerators want the opposite: few, old operators
and constant shapes. So a network is run once, and each of torch's operators that meets something that depends
on the input becomes one or a few of ONNX's; all else is a constant.

The operators: Conv, Relu, Clip, Sigmoid, Add, Mul, MaxPool, Concat, Slice, Pad, Resize, Reshape and
InstanceNormalization (GroupNorm has an operator of its own only from opset 18 on).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten
from torch.utils.weak import WeakTensorKeyDictionary

from solo_infer.errors import ExportError

OPSETS = (11, 13)
_IR_VERSIONS = {11: 6, 13: 7}  # of ONNX's file format: those that came with the opsets


class GraphRecorder(TorchDispatchMode):
    """Writes down what is done to an input while it is active.

    Args:
        opset: 11 or 13.
        network: Its parameters keep their names in the graph.
    """

    def __init__(self, opset: int, network: nn.Module) -> None:
        super().__init__()
        self.opset = opset
        self.nodes: list[Any] = []
        self.initializers: dict[str, Any] = {}
        self._parameters = {id(tensor): name for name, tensor in network.named_parameters()}
        self._names = WeakTensorKeyDictionary()  # of what depends on the input
        self._kept: dict[int, Tensor] = {}  # constants, whose ids must stay theirs
        self._values: dict[tuple[str, tuple[int, ...], bytes], str] = {}

    def watch(self, tensor: Tensor, name: str) -> None:
        """Take a tensor for an input of the graph."""
        self._names[tensor] = name

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operator and write it down."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if any(isinstance(leaf, Tensor) and leaf in self._names for leaf in tree_flatten((args, kwargs))[0]):
            operator = func._schema.name.removeprefix("aten::").rstrip("_")
            convert = _CONVERTERS.get(operator)
            if convert is None:
                raise ExportError(
                    f"torch's operator {operator!r} has no counterpart in ONNX opset {self.opset} here: "
                    "expected a network of convolutions, GroupNorm, pooling and resizing."
                )
            output = result if isinstance(result, Tensor) else result[0]
            self._names[output] = convert(self, output, *args, **kwargs)
        return result

    def name(self, tensor: Tensor) -> str:
        """Return the name of a tensor in the graph; what does not depend on the input becomes a constant."""
        if tensor in self._names:
            return self._names[tensor]
        return self.constant(tensor.detach().cpu().numpy(), self.parameter_name(tensor))

    def parameter_name(self, tensor: Tensor) -> str:
        """Return the name of a parameter of the network, or a new one for another tensor."""
        self._kept[id(tensor)] = tensor
        return self._parameters.setdefault(id(tensor), f"tensor_{len(self._parameters)}")

    def constant(self, values: np.ndarray, name: str = "") -> str:
        """Add a constant and return its name; equal ones that are given no name are one."""
        from onnx import numpy_helper

        if not name:
            key = (values.dtype.str, values.shape, values.tobytes())
            name = self._values.setdefault(key, f"constant_{len(self._values)}")
        if name not in self.initializers:
            self.initializers[name] = numpy_helper.from_array(np.ascontiguousarray(values), name)
        return name

    def whole(self, *values: int) -> str:
        """Add whole numbers, which ONNX wants as int64, and return their name."""
        return self.constant(np.array(values, dtype=np.int64))

    def add(self, operator: str, inputs: Sequence[str], **attributes: Any) -> str:
        """Add a node and return the name of its output."""
        from onnx import helper

        output = f"{operator}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs), [output], name=output, **attributes))
        return output

    def rename(self, names: dict[str, str]) -> None:
        """Give outputs of nodes other names."""
        for node in self.nodes:
            for ends in (node.input, node.output):
                ends[:] = [names.get(end, end) for end in ends]


def record(network: nn.Module, inputs: Tensor, outputs: Sequence[str], opset: int) -> Any:
    """Run a network on an input and return it as an ONNX model.

    Args:
        network: In eval mode and float32, on the CPU; returns a tuple of tensors.
        inputs: (N, 3, H, W) float32, called "images" in the graph.
        outputs: The names of what the network returns.
        opset: 11 or 13.

    Returns:
        An ``onnx.ModelProto``.

    Raises:
        ExportError: The opset is another one, or the network does what has no counterpart.
    """
    from onnx import TensorProto, helper

    if opset not in OPSETS:
        raise ExportError(f"opset={opset}: expected one of {', '.join(map(str, OPSETS))}.")
    recorder = GraphRecorder(opset, network)
    recorder.watch(inputs, "images")
    with torch.no_grad(), recorder:
        found = network(inputs)
    recorder.rename({recorder.name(tensor): name for name, tensor in zip(outputs, found, strict=True)})
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, list(tensor.shape))
        for name, tensor in [("images", inputs), *zip(outputs, found, strict=True)]
    ]
    graph = helper.make_graph(
        recorder.nodes, "solo_infer", values[:1], values[1:], list(recorder.initializers.values())
    )
    return helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", opset)],
        ir_version=_IR_VERSIONS[opset],
        producer_name="solo_infer",
    )


def _convolution(
    graph: GraphRecorder,
    output: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    transposed: bool,
    _: list[int],
    groups: int,
) -> str:
    if transposed:
        raise ExportError("Transposed convolutions cannot be exported.")
    parts = [x, weight] if bias is None else [x, weight, bias]
    return graph.add(
        "Conv",
        [graph.name(part) for part in parts],
        kernel_shape=list(weight.shape[2:]),
        strides=stride,
        pads=[*padding, *padding],
        dilations=dilation,
        group=groups,
    )


def _group_norm(
    graph: GraphRecorder,
    output: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    count: int,
    channels: int,
    pixels: int,
    groups: int,
    epsilon: float,
) -> str:
    """InstanceNormalization of the groups as if each were a channel, then scale and shift of the channels."""
    height, width = x.shape[2:]
    tall = graph.whole(count, groups, channels // groups * height, width)
    grouped = graph.add("Reshape", [graph.name(x), tall])
    ones, zeros = graph.constant(np.ones(groups, np.float32)), graph.constant(np.zeros(groups, np.float32))
    normed = graph.add("InstanceNormalization", [grouped, ones, zeros], epsilon=epsilon)
    normed = graph.add("Reshape", [normed, graph.whole(*x.shape)])
    scale, shift = (_per_channel(graph, part) for part in (weight, bias))
    return graph.add("Add", [graph.add("Mul", [normed, scale]), shift])


def _per_channel(graph: GraphRecorder, values: Tensor) -> str:
    return graph.constant(values.detach().numpy().reshape(1, -1, 1, 1), graph.parameter_name(values))


def _max_pool(
    graph: GraphRecorder,
    output: Tensor,
    x: Tensor,
    kernel: list[int],
    stride: list[int],
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    ceil_mode: bool = False,
) -> str:
    pads, size = _pair(padding), {"kernel_shape": _pair(kernel), "strides": _pair(stride)}
    if ceil_mode or set(dilation) != {1}:
        raise ExportError("Pooling with dilation or rounded-up sizes cannot be exported.")
    return graph.add("MaxPool", [graph.name(x)], pads=[*pads, *pads], **size)


def _pair(values: Sequence[int]) -> list[int]:
    return [values[0], values[-1]]


def _bilinear(graph: GraphRecorder, output: Tensor, x: Tensor, size: Any, corners: bool, *_: Any) -> str:
    if corners:
        raise ExportError("Resizing with align_corners=True cannot be exported.")
    return _resize(graph, output, x, coordinate_transformation_mode="half_pixel", mode="linear")


def _nearest(graph: GraphRecorder, output: Tensor, x: Tensor, *_: Any) -> str:
    mode = {"coordinate_transformation_mode": "asymmetric", "mode": "nearest", "nearest_mode": "floor"}
    return _resize(graph, output, x, **mode)


def _resize(graph: GraphRecorder, output: Tensor, x: Tensor, **mode: str) -> str:
    """Resize by scales where they are exact in float32, for which engines have fast paths, else to a size."""
    scales = [np.float32(new / old) for new, old in zip(output.shape, x.shape, strict=True)]
    exact = all(float(s) * old == new for s, old, new in zip(scales, x.shape, output.shape, strict=True))
    # Of the two inputs that are not used, the region to crop to and the other way to give the size, opset 11
    # wants empty tensors.
    unused = graph.constant(np.zeros(0, np.float32)) if graph.opset < 13 else ""
    if exact:
        return graph.add("Resize", [graph.name(x), unused, graph.constant(np.array(scales))], **mode)
    return graph.add("Resize", [graph.name(x), unused, unused, graph.whole(*output.shape)], **mode)


def _slice(
    graph: GraphRecorder,
    output: Tensor,
    x: Tensor,
    axis: int = 0,
    start: int | None = None,
    end: int | None = None,
    step: int = 1,
) -> str:
    end = x.shape[axis] if end is None else min(end, x.shape[axis])
    bounds = [graph.whole(number) for number in (start or 0, end, axis, step)]
    return graph.add("Slice", [graph.name(x), *bounds])


def _pad(graph: GraphRecorder, output: Tensor, x: Tensor, pads: list[int], value: float = 0.0) -> str:
    by_axis = list(zip(pads[::2], pads[1::2], strict=True))[::-1]  # torch names the last axis first
    unpadded = [(0, 0)] * (x.dim() - len(by_axis))
    before, after = zip(*unpadded, *by_axis, strict=True)
    filling = graph.constant(np.array(value, np.float32))
    return graph.add("Pad", [graph.name(x), graph.whole(*before, *after), filling], mode="constant")


def _clip(graph: GraphRecorder, output: Tensor, x: Tensor, least: float, greatest: float) -> str:
    limits = [graph.constant(np.array(limit, np.float32)) for limit in (least, greatest)]
    return graph.add("Clip", [graph.name(x), *limits])


def _concat(graph: GraphRecorder, output: Tensor, parts: list[Tensor], axis: int = 0) -> str:
    return graph.add("Concat", [graph.name(part) for part in parts], axis=axis)


def _same(graph: GraphRecorder, output: Tensor, x: Tensor, *_: Any, **__: Any) -> str:
    if (output.dtype, output.shape) != (x.dtype, x.shape):
        raise ExportError(f"A change from {x.dtype} to {output.dtype} cannot be exported: expected float32.")
    return graph.name(x)


def _of_tensors(operator: str) -> Callable[..., str]:
    """Return what writes down an operator that takes tensors and no settings."""

    def convert(graph: GraphRecorder, output: Tensor, *inputs: Tensor) -> str:
        return graph.add(operator, [graph.name(tensor) for tensor in inputs])

    return convert


_CONVERTERS: dict[str, Callable[..., str]] = {
    "convolution": _convolution,
    "native_group_norm": _group_norm,
    "max_pool2d_with_indices": _max_pool,
    "upsample_bilinear2d": _bilinear,
    "upsample_nearest2d": _nearest,
    "slice": _slice,
    "constant_pad_nd": _pad,
    "hardtanh": _clip,
    "cat": _concat,
    "relu": _of_tensors("Relu"),
    "sigmoid": _of_tensors("Sigmoid"),
    "add": _of_tensors("Add"),
    "mul": _of_tensors("Mul"),
    "clone": _same,
    "_to_copy": _same,
    "alias": _same,
    "detach": _same,
}
