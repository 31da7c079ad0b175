"""ONNX files that ``export_onnx`` writes."""

import copy
from dataclasses import replace

import pytest
import torch
from helpers.kernels import IMPLEMENTATIONS, use_implementation
from helpers.models import randomize, small_config, small_network, variant_of
from helpers.nested_tensors import random_maps
from torch import nn

from solo_infer import SOLO, YOLACT
from solo_infer.config import find_preset
from solo_infer.errors import ExportError
from solo_infer.export.onnx import export_onnx
from solo_infer.export.solo_heads import output_names, output_shapes
from solo_infer.models import build_network

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
from helpers.onnx_files import INPUT_SIZE  # noqa: E402

# Operators that the engines IxRT and IGIE are known to support.
OPERATORS = {
    "Conv", "Relu", "Clip", "Add", "Mul", "MaxPool", "Concat", "Slice", "Pad", "Resize", "Reshape",
    "InstanceNormalization",
}  # fmt: skip


def test_graph_has_static_shapes_and_common_operators(exported, model):
    path, opset = exported
    graph = onnx.load(str(path))
    onnx.checker.check_model(graph, full_check=True)
    assert [(entry.domain, entry.version) for entry in graph.opset_import] == [("", opset)]
    assert graph.ir_version == {11: 6, 13: 7}[opset]
    assert {node.op_type for node in graph.graph.node} <= OPERATORS
    (images,) = graph.graph.input
    for value in [images, *graph.graph.output]:
        sizes = value.type.tensor_type.shape.dim
        assert all(size.HasField("dim_value") and size.dim_value > 0 for size in sizes)
    architecture = model.config.architecture
    assert [value.name for value in graph.graph.output] == output_names(architecture)
    shapes = [
        tuple(size.dim_value for size in value.type.tensor_type.shape.dim) for value in graph.graph.output
    ]
    assert shapes == output_shapes(architecture, INPUT_SIZE)
    assert len(graph.graph.output) == {"solo": 10, "solov2": 11}.get(architecture.head, 15)
    node_inputs = {name for node in graph.graph.node for name in node.input}
    assert {entry.name for entry in graph.graph.initializer} <= node_inputs
    dtypes = {entry.data_type for entry in graph.graph.initializer}
    assert dtypes == {onnx.TensorProto.FLOAT, onnx.TensorProto.INT64}


def test_half_precision_model_is_exported_in_float32_and_unchanged(small_model, tmp_path):
    model = SOLO(small_model.config, copy.deepcopy(small_model.network)).to(dtype=torch.bfloat16)
    path = export_onnx(model, tmp_path / "half.onnx", size=(64, 64))
    assert model.dtype == torch.bfloat16
    weights = [entry for entry in onnx.load(str(path)).graph.initializer if len(entry.dims) == 4]
    assert {entry.data_type for entry in weights} == {onnx.TensorProto.FLOAT}


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_network_as_wide_as_the_published_ones(implementation, tmp_path, monkeypatch):
    """Its convolutions are recorded as such, though predictions compute them by Winograd's method."""
    use_implementation(implementation, monkeypatch)
    config = variant_of(small_config("decoupled_light"), {"pyramid_channels": 256})
    model = SOLO(config, randomize(small_network(config)))
    path = export_onnx(model, tmp_path / "wide.onnx", size=(64, 96))
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    images = random_maps((3, 64, 96))
    outputs = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    with torch.no_grad():
        expected = model.network(images).class_logits
    for output, level in zip(outputs, expected, strict=False):
        torch.testing.assert_close(torch.from_numpy(output), level, rtol=0, atol=1e-3)


@pytest.mark.parametrize("size", [(96, 100), (100, 96), (32, 96), (0, 64)])
def test_unsupported_sizes_raise(size, small_model, tmp_path):
    with pytest.raises(ExportError, match="expected multiples of 32, at least 64"):
        export_onnx(small_model, tmp_path / "model.onnx", size=size)
    assert not list(tmp_path.iterdir())


def test_unsupported_opset_raises(small_model, tmp_path):
    with pytest.raises(ExportError, match="opset=17: expected one of 11, 13"):
        export_onnx(small_model, tmp_path / "model.onnx", size=INPUT_SIZE, opset=17)
    assert not list(tmp_path.iterdir())


def test_unsupported_operator_raises(tmp_path):
    config = small_config("solo")
    model = SOLO(config, build_network(config.architecture))
    model.network.mask_head.conv_cls = nn.Sequential(model.network.mask_head.conv_cls, nn.Softmax(dim=1))
    with pytest.raises(ExportError, match="'_softmax' cannot be exported to ONNX opset 13"):
        export_onnx(model, tmp_path / "model.onnx", size=INPUT_SIZE)
    assert not list(tmp_path.iterdir())


def test_yolact_raises(tmp_path):
    config = find_preset("yolact_r50")
    model = YOLACT(config, build_network(config.architecture, "meta"))
    with pytest.raises(ExportError, match="expected one of the SOLO family"):
        export_onnx(model, tmp_path / "model.onnx", size=INPUT_SIZE)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("opset", "changes"),
    [
        (11, {"deformable_head": "last"}),
        (13, {"head": "solov2", "deformable_head": "all", "modulated": True}),
        (11, {"head": "solov2", "deformable_mask_features": True, "modulated": True}),
        (13, {"head": "solov2", "deformable_stages": (4,), "modulated": True, "backbone": "resnet50"}),
    ],
)
def test_deformable_convolutions_raise(opset, changes, tmp_path):
    config = small_config("decoupled_light")
    changes = {"backbone": "efficientnet_lite0", **changes}
    config = replace(config, architecture=replace(config.architecture, **changes))
    model = SOLO(config, build_network(config.architecture))
    with pytest.raises(ExportError, match=r"Deformable convolutions cannot be exported: .* from opset 19 on"):
        export_onnx(model, tmp_path / "model.onnx", size=INPUT_SIZE, opset=opset)
    assert not list(tmp_path.iterdir())


def test_failed_write_keeps_the_previous_file(small_model, tmp_path, monkeypatch):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"previous")

    def fail(graph, name):
        (tmp_path / name).write_bytes(b"half of the file")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(onnx, "save_model", fail)
    with pytest.raises(ExportError, match="cannot be written: No space left"):
        export_onnx(small_model, path, size=(64, 64))
    assert path.read_bytes() == b"previous" and len(list(tmp_path.iterdir())) == 1


def test_missing_onnx_raises(small_model, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    with pytest.raises(ExportError, match=r"pip install 'solo-infer\[export\]'"):
        export_onnx(small_model, tmp_path / "model.onnx", size=INPUT_SIZE)
