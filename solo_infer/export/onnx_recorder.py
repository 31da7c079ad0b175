"""Recording of a network as an ONNX graph of opset 11 or 13 with static shapes.

The graphs of torch's own exporters differ between torch versions, and the exporter that supports these opsets
computes shapes inside the graph and is deprecated. Inference engines of accelerators need few and old
operators and constant shapes. Therefore the network runs once, and each torch operator whose arguments depend
on the input is converted to one or a few ONNX operators. All other tensors become constants.

The ONNX operators are Conv, Relu, Clip, Sigmoid, Add, Mul, MaxPool, Concat, Slice, Pad, Resize, Reshape and
InstanceNormalization. GroupNorm needs the latter, because its own operator requires opset 18.
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
from solo_infer.ops.dispatch import tracing

OPSETS = (11, 13)
_IR_VERSIONS = {11: 6, 13: 7}  # version of ONNX's file format that was released with each opset


class GraphRecorder(TorchDispatchMode):
    """Dispatch mode that records the operators applied to watched tensors as ONNX nodes.

    Args:
        opset: ONNX opset, 11 or 13.
        network: Network whose parameters keep their names in the graph.
    """

    def __init__(self, opset: int, network: nn.Module) -> None:
        super().__init__()
        self.opset = opset
        self.nodes: list[Any] = []
        self.initializers: dict[str, Any] = {}
        self._parameters = {id(tensor): name for name, tensor in network.named_parameters()}
        self._names = WeakTensorKeyDictionary()  # names of the tensors that depend on the input
        self._kept: dict[int, Tensor] = {}  # constants, kept alive so that no id is reused
        self._values: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._outputs: dict[tuple[str, tuple[str, ...], str], str] = {}  # of the nodes so far

    def watch(self, tensor: Tensor, name: str) -> None:
        """Make a tensor an input of the graph."""
        self._names[tensor] = name

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operator, and record it if it depends on a watched tensor."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if any(isinstance(leaf, Tensor) and leaf in self._names for leaf in tree_flatten((args, kwargs))[0]):
            operator = func._schema.name.removeprefix("aten::").rstrip("_")
            convert = _CONVERTERS.get(operator)
            if convert is None:
                raise ExportError(
                    f"The torch operator {operator!r} cannot be exported to ONNX opset {self.opset}: "
                    "expected a network of convolutions, GroupNorm, pooling and resizing."
                )
            output = result if isinstance(result, Tensor) else result[0]
            self._names[output] = convert(self, output, *args, **kwargs)
        return result

    def name(self, tensor: Tensor) -> str:
        """Return the name of a tensor in the graph; a tensor that is not recorded becomes a constant."""
        if tensor in self._names:
            return self._names[tensor]
        return self.constant(tensor.detach().cpu().numpy(), self.parameter_name(tensor))

    def parameter_name(self, tensor: Tensor) -> str:
        """Return the name of a parameter of the network, or a new name for another tensor."""
        self._kept[id(tensor)] = tensor
        return self._parameters.setdefault(id(tensor), f"tensor_{len(self._parameters)}")

    def constant(self, values: np.ndarray, name: str = "") -> str:
        """Add a constant and return its name; unnamed constants of equal values share one name."""
        from onnx import numpy_helper

        if not name:
            key = (values.dtype.str, values.shape, values.tobytes())
            name = self._values.setdefault(key, f"constant_{len(self._values)}")
        if name not in self.initializers:
            self.initializers[name] = numpy_helper.from_array(np.ascontiguousarray(values), name)
        return name

    def integers(self, *values: int) -> str:
        """Add a constant of int64 values, as ONNX requires for shapes and axes, and return its name."""
        return self.constant(np.array(values, dtype=np.int64))

    def add(self, operator: str, inputs: Sequence[str], **attributes: Any) -> str:
        """Add a node, unless there is an equal one, and return the name of its output."""
        from onnx import helper

        key = (operator, tuple(inputs), repr(attributes))
        if key not in self._outputs:
            output = self._outputs[key] = f"{operator}_{len(self.nodes)}"
            self.nodes.append(helper.make_node(operator, list(inputs), [output], name=output, **attributes))
        return self._outputs[key]

    def rename(self, names: dict[str, str]) -> None:
        """Rename tensors of the graph.

        Args:
            names: {current name: new name}.
        """
        for node in self.nodes:
            for tensors in (node.input, node.output):
                tensors[:] = [names.get(tensor, tensor) for tensor in tensors]


def record(network: nn.Module, inputs: Tensor, outputs: Sequence[str], opset: int) -> Any:
    """Run a network once and return it as an ONNX model.

    Args:
        network: Network in eval mode and float32, on the CPU, that returns a tuple of tensors.
        inputs: (N, 3, H, W) float32, named "images" in the graph.
        outputs: Names of the tensors that the network returns.
        opset: ONNX opset, 11 or 13.

    Returns:
        ``onnx.ModelProto``.

    Raises:
        ExportError: The opset is not supported, or the network has an operator that cannot be exported.
    """
    from onnx import TensorProto, helper

    if opset not in OPSETS:
        raise ExportError(f"opset={opset}: expected one of {', '.join(map(str, OPSETS))}.")
    recorder = GraphRecorder(opset, network)
    recorder.watch(inputs, "images")
    with torch.no_grad(), tracing(), recorder:
        tensors = network(inputs)
    recorder.rename({recorder.name(tensor): name for name, tensor in zip(outputs, tensors, strict=True)})
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, list(tensor.shape))
        for name, tensor in [("images", inputs), *zip(outputs, tensors, strict=True)]
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
    inputs = [x, weight] if bias is None else [x, weight, bias]
    return graph.add(
        "Conv",
        [graph.name(tensor) for tensor in inputs],
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
    """Add an InstanceNormalization with each group as one channel, then scale and shift the channels."""
    height, width = x.shape[2:]
    grouped_shape = graph.integers(count, groups, channels // groups * height, width)
    grouped = graph.add("Reshape", [graph.name(x), grouped_shape])
    ones, zeros = graph.constant(np.ones(groups, np.float32)), graph.constant(np.zeros(groups, np.float32))
    normalized = graph.add("InstanceNormalization", [grouped, ones, zeros], epsilon=epsilon)
    normalized = graph.add("Reshape", [normalized, graph.integers(*x.shape)])
    scale, shift = _per_channel(graph, weight), _per_channel(graph, bias)
    return graph.add("Add", [graph.add("Mul", [normalized, scale]), shift])


def _per_channel(graph: GraphRecorder, values: Tensor) -> str:
    return graph.constant(values.detach().numpy().reshape(1, -1, 1, 1), graph.parameter_name(values))


def _max_pool(
    graph: GraphRecorder,
    output: Tensor,
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    ceil_mode: bool = False,
) -> str:
    pads, size = _pair(padding), {"kernel_shape": _pair(kernel), "strides": _pair(stride or kernel)}
    if ceil_mode or set(dilation) != {1}:
        raise ExportError("Pooling with dilation or ceil_mode=True cannot be exported.")
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
    """Add a Resize by scales if they are exact in float32, which engines run faster, otherwise to a size."""
    scales = [np.float32(new / old) for new, old in zip(output.shape, x.shape, strict=True)]
    exact = all(float(s) * old == new for s, old, new in zip(scales, x.shape, output.shape, strict=True))
    # The region of interest and one of scales and sizes are unused; opset 11 requires empty tensors for them.
    unused = graph.constant(np.zeros(0, np.float32)) if graph.opset < 13 else ""
    if exact:
        return graph.add("Resize", [graph.name(x), unused, graph.constant(np.array(scales))], **mode)
    return graph.add("Resize", [graph.name(x), unused, unused, graph.integers(*output.shape)], **mode)


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
    bounds = [graph.integers(number) for number in (start or 0, end, axis, step)]
    return graph.add("Slice", [graph.name(x), *bounds])


def _pad(graph: GraphRecorder, output: Tensor, x: Tensor, pads: list[int], value: float = 0.0) -> str:
    by_axis = list(zip(pads[::2], pads[1::2], strict=True))[::-1]  # torch lists the last axis first
    unpadded = [(0, 0)] * (x.dim() - len(by_axis))
    before, after = zip(*unpadded, *by_axis, strict=True)
    fill_value = graph.constant(np.array(value, np.float32))
    return graph.add("Pad", [graph.name(x), graph.integers(*before, *after), fill_value], mode="constant")


def _clip(graph: GraphRecorder, output: Tensor, x: Tensor, minimum: float, maximum: float) -> str:
    limits = [graph.constant(np.array(limit, np.float32)) for limit in (minimum, maximum)]
    return graph.add("Clip", [graph.name(x), *limits])


def _leaky_relu(graph: GraphRecorder, output: Tensor, x: Tensor, slope: float = 0.01) -> str:
    return graph.add("LeakyRelu", [graph.name(x)], alpha=slope)


def _permute(graph: GraphRecorder, output: Tensor, x: Tensor, axes: list[int]) -> str:
    return graph.add("Transpose", [graph.name(x)], perm=[axis % x.dim() for axis in axes])


def _transpose(graph: GraphRecorder, output: Tensor, x: Tensor, first: int, second: int) -> str:
    axes = list(range(x.dim()))
    axes[first], axes[second] = axes[second], axes[first]
    return _permute(graph, output, x, axes)


def _reshape(graph: GraphRecorder, output: Tensor, x: Tensor, shape: list[int]) -> str:
    return graph.add("Reshape", [graph.name(x), graph.integers(*output.shape)])


def _stack(graph: GraphRecorder, output: Tensor, tensors: list[Tensor], axis: int = 0) -> str:
    axis %= output.dim()
    shape = list(output.shape)
    shape[axis] = 1
    parts = [graph.add("Reshape", [graph.name(x), graph.integers(*shape)]) for x in tensors]
    return graph.add("Concat", parts, axis=axis)


def _concat(graph: GraphRecorder, output: Tensor, tensors: list[Tensor], axis: int = 0) -> str:
    return graph.add("Concat", [graph.name(tensor) for tensor in tensors], axis=axis)


def _identity(graph: GraphRecorder, output: Tensor, x: Tensor, *_: Any, **__: Any) -> str:
    if (output.dtype, output.shape) != (x.dtype, x.shape):
        raise ExportError(
            f"A conversion from {tuple(x.shape)} {x.dtype} to {tuple(output.shape)} {output.dtype} cannot be "
            "exported: expected float32 of an unchanged shape."
        )
    return graph.name(x)


def _without_attributes(operator: str) -> Callable[..., str]:
    """Return the converter to an ONNX operator that has tensor inputs and no attributes."""

    def convert(graph: GraphRecorder, output: Tensor, *inputs: Tensor, **attributes: Any) -> str:
        if attributes or not all(isinstance(tensor, Tensor) for tensor in inputs):
            raise ExportError(f"{operator} with numbers cannot be exported: expected tensors only.")
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
    "stack": _stack,
    "permute": _permute,
    "transpose": _transpose,
    "view": _reshape,
    "_unsafe_view": _reshape,
    "leaky_relu": _leaky_relu,
    "relu": _without_attributes("Relu"),
    "sigmoid": _without_attributes("Sigmoid"),
    "add": _without_attributes("Add"),
    "mul": _without_attributes("Mul"),
    "clone": _identity,
    "_to_copy": _identity,
    "alias": _identity,
    "detach": _identity,
}
