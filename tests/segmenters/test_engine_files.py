"""Exported files that are damaged, foreign or hostile, and engines that are missing."""

import json

import numpy as np
import pytest
import torch
from helpers.models import small_tiny_config

from solo_infer import load_model
from solo_infer.errors import CheckpointError, ConfigError, DeviceError, ExportError
from solo_infer.inference.engines.metadata import MAX_VALUE_CHARACTERS, ExportedConfig

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

IMAGE = np.zeros((40, 60, 3), np.uint8)
METADATA = ExportedConfig(small_tiny_config(), (96, 160)).to_metadata("0")


def outputs_of(count=2):
    """Return outputs of a graph with two instances."""
    masks = np.zeros((1, count, 24, 40), np.float32)
    masks[:, :, 2:12, 3:20] = 1
    return {
        "scores": np.linspace(0.9, 0.5, count, dtype=np.float32)[None],
        "labels": np.arange(count, dtype=np.int64)[None],
        "boxes": np.tile(np.array([12, 8, 80, 48], np.float32), (1, count, 1)),
        "masks": masks,
        "counts": np.array([count], np.int64),
    }


def write(path, outputs=None, metadata=METADATA, edit=None, input_name="images"):
    """Write a graph that returns constants, and return its path."""
    outputs = outputs_of() if outputs is None else outputs
    constants = [numpy_helper.from_array(values, f"{name}_value") for name, values in outputs.items()]
    nodes = [helper.make_node("Identity", [f"{name}_value"], [name]) for name in outputs]
    # Engines drop inputs that no output depends on.
    constants.append(numpy_helper.from_array(np.zeros((), np.float32), "zero"))
    nodes[0] = helper.make_node("Add", ["scores_value", "input_zero"], ["scores"])
    nodes.insert(0, helper.make_node("Mul", ["input_minimum", "zero"], ["input_zero"]))
    nodes.insert(0, helper.make_node("ReduceMin", [input_name], ["input_minimum"], keepdims=0))
    graph = helper.make_graph(
        nodes,
        "constants",
        [helper.make_tensor_value_info(input_name, TensorProto.FLOAT, ["n", 3, 96, 160])],
        [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(values.dtype), values.shape)
            for name, values in outputs.items()
        ],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    helper.set_model_props(model, metadata)
    if edit is not None:
        edit(model)
    path.write_bytes(model.SerializeToString())
    return path


@pytest.fixture(params=["onnxruntime", "openvino"])
def engine(request):
    if request.param == "openvino":
        pytest.importorskip("openvino")
    return request.param


def test_constant_graph_gives_its_instances(engine, tmp_path):
    result = load_model(write(tmp_path / "m.onnx"), engine=engine)(IMAGE)
    assert list(result.names) == ["cat", "dog"] and result.masks.any()
    np.testing.assert_allclose(result.scores.numpy(), [0.9, 0.5], atol=1e-6)


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x08\x08", b"\x00" * 100, b"\xff" * 1000])
def test_damaged_files_raise(content, engine, tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    with pytest.raises(ExportError, match="m.onnx"):
        load_model(path, engine=engine)


def test_truncated_file_raises(engine, tmp_path):
    path = write(tmp_path / "m.onnx")
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(ExportError, match="m.onnx"):
        load_model(path, engine=engine)


def without(name):
    return {key: value for key, value in METADATA.items() if key != name}


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({}, "was not written by 'solo-infer export'"),
        ({"author": "somebody"}, "found author"),
        (without("solo_infer.config"), "was not written"),
        ({**METADATA, "solo_infer.config": "x" * (MAX_VALUE_CHARACTERS + 1)}, "more than 1048576 characters"),
        ({**METADATA, "solo_infer.config": "[" * 100_000}, "solo_infer.config is wrong"),
        ({**METADATA, "solo_infer.config": "{}"}, "solo_infer.config is wrong"),
        ({**METADATA, "solo_infer.config": "null"}, "solo_infer.config is wrong"),
        ({**METADATA, "solo_infer.outputs": "heads"}, "ExportedModel"),
        (without("solo_infer.outputs"), "ExportedModel"),
        ({**METADATA, "solo_infer.input": "jpeg"}, "expected 'normalized', 'pixels' or 'photos'"),
        ({**METADATA, "solo_infer.size": "[96]"}, "height, width"),
        ({**METADATA, "solo_infer.size": "[96, 1e9]"}, "height, width"),
        ({**METADATA, "solo_infer.size": "[0, 96]"}, "1 to 16384 pixels"),
        ({**METADATA, "solo_infer.size": "[96, 9999999]"}, "1 to 16384 pixels"),
        ({**METADATA, "solo_infer.size": "nonsense"}, "height, width"),
    ],
)
def test_wrong_metadata_raise(metadata, message, tmp_path):
    path = write(tmp_path / "m.onnx", metadata=metadata)
    with pytest.raises(ExportError, match=message):
        load_model(path)


def refer(model):
    """Move the data of a tensor to another file."""
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/hostname")


def refer_in_a_subgraph(model):
    """Add a branch with a tensor in another file."""
    tensor = TensorProto(name="secret", data_type=TensorProto.FLOAT, dims=[1])
    tensor.external_data.add(key="location", value="../secret")
    node = helper.make_node("Constant", [], ["value"], value=tensor)
    branch = helper.make_graph([node], "branch", [], [helper.make_tensor_value_info("value", 1, [1])])
    condition = numpy_helper.from_array(np.array(True), "condition")
    model.graph.initializer.append(condition)
    model.graph.node.append(
        helper.make_node("If", ["condition"], ["unused"], then_branch=branch, else_branch=branch)
    )


@pytest.mark.parametrize("edit", [refer, refer_in_a_subgraph])
def test_tensors_in_other_files_raise(edit, engine, tmp_path):
    path = write(tmp_path / "m.onnx", edit=edit)
    with pytest.raises(ExportError, match="in another file"):
        load_model(path, engine=engine)


def test_unknown_operators_raise(engine, tmp_path):
    def edit(model):
        model.graph.node[0].op_type = "Exfiltrate"
        model.graph.node[0].domain = "evil"

    with pytest.raises(ExportError, match="m.onnx"):
        load_model(write(tmp_path / "m.onnx", edit=edit), engine=engine)


def test_other_inputs_and_outputs_raise(engine, tmp_path):
    with pytest.raises(ExportError, match="expected 'images'"):
        load_model(write(tmp_path / "m.onnx", input_name="pixels"), engine=engine)
    outputs = {name: values for name, values in outputs_of().items() if name != "masks"}
    with pytest.raises(ExportError, match="expected 'images'"):
        load_model(write(tmp_path / "m.onnx", outputs), engine=engine)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": np.array([[0, 3]])}, "outside of its 3 classes"),
        ({"labels": np.array([[-1, 0]])}, "outside of its 3 classes"),
        ({"labels": np.array([[0.0, 1.0]], np.float32)}, "int64"),
        ({"scores": np.array([[0.5]], np.float32)}, "returned"),
        ({"scores": np.array([0.5, 0.4], np.float32)}, "returned"),
        ({"boxes": np.zeros((1, 2, 5), np.float32)}, "returned"),
        ({"masks": np.zeros((1, 2, 960), np.float32)}, "returned"),
    ],
)
def test_outputs_of_another_model_raise(changes, message, tmp_path):
    model = load_model(write(tmp_path / "m.onnx", {**outputs_of(), **changes}))
    with pytest.raises(ExportError, match=message):
        model(IMAGE)


def test_scores_that_are_not_numbers_are_left_out(tmp_path):
    outputs = {**outputs_of(), "scores": np.array([[0.9, np.nan]], np.float32)}
    assert len(load_model(write(tmp_path / "m.onnx", outputs))(IMAGE)) == 1


def test_no_instances(tmp_path):
    result = load_model(write(tmp_path / "m.onnx", {**outputs_of(), "scores": np.zeros((1, 2), np.float32)}))(
        IMAGE
    )
    assert len(result) == 0 and result.masks.shape == (0, 40, 60)


@pytest.mark.parametrize(
    ("engine_name", "package", "extra"),
    [
        ("onnxruntime", "onnxruntime", "export"),
        ("onnxruntime", "onnx", "export"),
        ("openvino", "openvino", "openvino"),
    ],
)
def test_missing_packages_raise(engine_name, package, extra, tmp_path, monkeypatch):
    path = write(tmp_path / "m.onnx")
    monkeypatch.setitem(__import__("sys").modules, package, None)
    with pytest.raises(ExportError, match=rf"pip install 'solo-infer\[{extra}\]'"):
        load_model(path, engine=engine_name)


def test_wrong_arguments_raise(tmp_path):
    path = write(tmp_path / "m.onnx")
    with pytest.raises(ConfigError, match="engine='tensorrt'"):
        load_model(path, engine="tensorrt")
    with pytest.raises(ConfigError, match="expected an existing .onnx or .xml file"):
        load_model("tiny", engine="onnxruntime")
    with pytest.raises(ConfigError, match="holds its own configuration"):
        load_model(path, config=small_tiny_config())
    with pytest.raises(DeviceError, match="float8"):
        load_model(path, dtype="float8")
    with pytest.raises(DeviceError, match="run on the CPU|is not available"):
        load_model(path, device="cuda")
    for name in ("missing.onnx", "missing.xml", f"{'x' * 300}.onnx", str(tmp_path / "missing.onnx")):
        with pytest.raises(CheckpointError, match="does not exist"):
            load_model(name)


def test_fixed_size_is_kept(tmp_path):
    model = load_model(write(tmp_path / "m.onnx"))
    assert len(model(IMAGE, input_size=[96, 160])) == 2
    with pytest.raises(ConfigError, match="fixed input size 96 x 160"):
        model(IMAGE, input_size=128)
    with pytest.raises(ConfigError, match="fixed input size 96 x 160"):
        model.with_settings(input_size=128)


def test_pixels_are_passed_as_uint8(tmp_path):
    path = write(
        tmp_path / "m.onnx", metadata=ExportedConfig(small_tiny_config(), (96, 160), True).to_metadata("0")
    )
    model = load_model(path)
    passed = []
    run = model.session.run
    model.session.run = lambda inputs: passed.append(inputs) or run(inputs.astype(np.float32))
    assert len(model(np.full((96, 144, 3), 200, np.uint8))) == 2
    assert passed[0].dtype == np.uint8 and passed[0].shape == (1, 3, 96, 160)
    assert (passed[0][..., :144] == 200).all()
    assert passed[0][0, :, 0, 150].tolist() == [124, 116, 104]


def test_threads_follow_torch(tmp_path, engine, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    session = load_model(write(tmp_path / "m.onnx"), engine=engine).session
    if engine == "onnxruntime":
        assert session._opened.get_session_options().intra_op_num_threads == 1
    else:
        assert session._opened.get_property("INFERENCE_NUM_THREADS") == 1


def test_metadata_survive_a_round_trip():
    exported = ExportedConfig(small_tiny_config(), None, True, "tiny")
    assert ExportedConfig.from_metadata(exported.to_metadata("1")) == exported
    assert json.loads(exported.to_metadata("1")["solo_infer.size"]) is None
