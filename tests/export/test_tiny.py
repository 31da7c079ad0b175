"""Tiny models exported as ONNX: outputs, results, shapes, operators."""

import pytest
import torch

from solo_infer.config import TinyPostprocessConfig
from solo_infer.export.engine import ExportedModel
from solo_infer.export.onnx import export_onnx
from solo_infer.export.tiny_heads import RawHeads, output_names, output_shapes

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
from helpers.onnx_files import INPUT_SIZE, run_onnx  # noqa: E402

# Operators that the engines IxRT and IGIE are known to support.
OPERATORS = {"Conv", "LeakyRelu", "Add", "MaxPool", "Concat", "Slice", "Resize", "Reshape", "Transpose"}


@pytest.fixture(scope="module", params=[11, 13])
def exported(request, small_tiny, tmp_path_factory):
    """Return the path and the opset of a model exported as ONNX."""
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    return export_onnx(small_tiny, path, size=INPUT_SIZE, opset=request.param), request.param


def test_graph_has_static_shapes_and_common_operators(exported, small_tiny):
    path, opset = exported
    graph = onnx.load(str(path))
    onnx.checker.check_model(graph, full_check=True)
    assert [entry.version for entry in graph.opset_import] == [opset]
    assert {node.op_type for node in graph.graph.node} <= OPERATORS
    shapes = [
        tuple(size.dim_value for size in value.type.tensor_type.shape.dim) for value in graph.graph.output
    ]
    architecture = small_tiny.config.architecture
    assert shapes == output_shapes(architecture, INPUT_SIZE)
    assert [value.name for value in graph.graph.output] == output_names(architecture)


def test_outputs_and_results_equal_the_model(exported, small_tiny, photo):
    path, _ = exported
    exported_model = ExportedModel.from_onnx(path)
    assert (exported_model.config, exported_model.size) == (small_tiny.config, INPUT_SIZE)
    inputs, geometry = exported_model.prepare(photo)
    _, outputs = run_onnx(path, inputs)
    with torch.no_grad():
        expected = RawHeads(small_tiny.network)(torch.from_numpy(inputs))
    for output, values in zip(outputs, expected, strict=True):
        torch.testing.assert_close(torch.from_numpy(output), values, rtol=1e-3, atol=2e-3)
    result, expected_result = exported_model.result(outputs, geometry, photo), small_tiny(photo)
    assert len(result) == len(expected_result) > 5
    assert torch.equal(result.labels, expected_result.labels)
    torch.testing.assert_close(result.scores, expected_result.scores, rtol=0, atol=5e-3)
    assert (result.masks != expected_result.masks).float().mean() < 1e-3
    fewer = exported_model.result(outputs, geometry, thresholds=TinyPostprocessConfig(max_per_image=2))
    assert len(fewer) == 2


@pytest.mark.parametrize("size", [(64, 64), (96, 160), (64, 96)])
def test_shapes_of_outputs(small_tiny, size):
    with torch.no_grad():
        outputs = RawHeads(small_tiny.network)(torch.zeros(1, 3, *size))
    expected = output_shapes(small_tiny.config.architecture, size)
    assert [tuple(output.shape) for output in outputs] == expected
