"""ONNX files: the graph that engines want, the network's numbers, the model's instances."""

import copy
import inspect
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.models import HEADS, small_config
from solo_infer.export.raw_heads import RawHeads, output_names
from torch import nn

from solo_infer import SOLO, YOLACT, PostprocessConfig
from solo_infer.config import find_preset
from solo_infer.errors import ExportError
from solo_infer.export.onnx import ExportedModel, detections_from_heads, export_onnx, fit, onnx_recorder
from solo_infer.inference.preprocess import Geometry, plan
from solo_infer.models import build_network
from solo_infer.training.initialization import init_model

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

SIZE = (96, 160)  # of the network's input, which the photo of 96 x 144 does not fill
# What IxRT and IGIE are known to read.
OPERATORS = {
    "Conv", "Relu", "Clip", "Add", "Mul", "MaxPool", "Concat", "Slice", "Pad", "Resize", "Reshape",
    "InstanceNormalization",
}  # fmt: skip


def run(path, inputs):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return session, session.run(None, {"images": inputs})


@pytest.fixture(scope="module", params=HEADS)
def model(request, small_models):
    return small_models[request.param]


@pytest.fixture(scope="module", params=[11, 13])
def exported(request, model, tmp_path_factory):
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    assert export_onnx(model, path, size=SIZE, opset=request.param) == path
    assert [entry.name for entry in path.parent.iterdir()] == ["model.onnx"]
    return path, request.param


def assert_same_instances(found, expected):
    assert len(found) == len(expected) > 0
    assert torch.equal(found.labels, expected.labels)
    differences = (found.scores - expected.scores).abs()
    # Where a pixel crosses its threshold; these masks are small, so that one is a large part of them.
    assert float(differences.max()) < 5e-3 and int((differences > 2e-5).sum()) <= 0.05 * len(found)
    for one, other in zip(found.masks, expected.masks, strict=True):
        common, union = int((one & other).sum()), int((one | other).sum())
        assert union - common <= 5 or common / union >= 0.999


def test_graph_is_what_engines_read(exported, model):
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
    assert [value.name for value in graph.graph.output] == output_names(model.config.architecture)
    assert len(graph.graph.output) == (10 if model.config.architecture.head == "solo" else 15)
    used = {name for node in graph.graph.node for name in node.input}
    assert {entry.name for entry in graph.graph.initializer} <= used
    kinds = {entry.data_type for entry in graph.graph.initializer}
    assert kinds == {onnx.TensorProto.FLOAT, onnx.TensorProto.INT64}


def test_raw_heads_and_instances_are_the_models(exported, model, photo):
    path, _ = exported
    heads = ExportedModel.from_onnx(path)
    assert (heads.config, heads.size) == (model.config, SIZE)
    inputs, geometry = heads.prepare(photo)
    assert inputs.shape == (1, 3, *SIZE) and geometry.padded == SIZE
    session, outputs = run(path, inputs)
    with torch.no_grad():
        expected = RawHeads(model.network)(torch.from_numpy(inputs))
    for found, wanted in zip(outputs, expected, strict=True):
        torch.testing.assert_close(torch.from_numpy(found), wanted, rtol=0, atol=2e-4)
    assert ExportedModel.from_metadata(session.get_modelmeta().custom_metadata_map) == heads
    result = heads.result(outputs, geometry, photo)
    assert_same_instances(result, model(photo))
    named = dict(zip(output_names(model.config.architecture), outputs, strict=True))
    again = heads.result(named, geometry)
    assert torch.equal(again.packed_masks, result.packed_masks)
    assert (result.categories, result.image_size) == (model.config.categories, photo.shape[:2])


def test_no_candidates(model, photo):
    heads = ExportedModel(model.config, SIZE)
    inputs, geometry = heads.prepare(photo)
    with torch.no_grad():
        outputs = list(RawHeads(model.network)(torch.from_numpy(inputs)))
    outputs[:5] = [logits - 1000 for logits in outputs[:5]]
    assert len(heads.result(outputs, geometry)) == 0


def test_thresholds_of_a_call(model, photo):
    heads = ExportedModel(model.config, SIZE)
    inputs, geometry = heads.prepare(photo)
    with torch.no_grad():
        outputs = RawHeads(model.network)(torch.from_numpy(inputs))
    assert len(heads.result(outputs, geometry, thresholds=PostprocessConfig(max_per_image=1))) == 1
    assert len(detections_from_heads(outputs, geometry, model.config).scores) > 1


def test_images_are_scaled_to_fit_the_input(small_model):
    config = small_model.config.preprocessing
    assert fit(np.zeros((192, 288, 3)), (96, 160), config).resized == (96, 144)
    assert fit(np.zeros((288, 192, 3)), (96, 160), config).resized == (96, 64)
    assert fit(np.zeros((100, 1000, 3)), (64, 160), config).resized == (16, 160)
    assert fit(np.zeros((1, 3000, 3)), (64, 128), config).resized == (1, 128)


def test_half_precision_is_exported_in_float32_and_left_alone(small_model, tmp_path):
    model = SOLO(small_model.config, copy.deepcopy(small_model.network)).to(dtype=torch.bfloat16)
    path = export_onnx(model, tmp_path / "half.onnx", size=(64, 64))
    assert model.dtype == torch.bfloat16
    weights = [entry for entry in onnx.load(str(path)).graph.initializer if len(entry.dims) == 4]
    assert {entry.data_type for entry in weights} == {onnx.TensorProto.FLOAT}


def test_a_body_of_another_kind(tmp_path, photo):
    """EfficientNet's uneven padding and limited activations."""
    model = SOLO.from_pretrained("tiny", device="cpu")
    path = export_onnx(model, tmp_path / "tiny.onnx", size=(320, 448), opset=11)
    assert {"Pad", "Clip"} < {node.op_type for node in onnx.load(str(path)).graph.node}
    heads = ExportedModel.from_onnx(path)
    inputs, geometry = heads.prepare(photo)
    _, outputs = run(path, inputs)
    assert geometry.padded == (320, 448) == plan(photo, model.config.preprocessing).padded
    assert_same_instances(heads.result(outputs, geometry), model(photo))


@pytest.mark.parametrize("size", [(96, 100), (100, 96), (32, 96), (0, 64)])
def test_sizes_that_cannot_be(size, small_model, tmp_path):
    with pytest.raises(ExportError, match="expected multiples of 32 from 64 on"):
        export_onnx(small_model, tmp_path / "model.onnx", size=size)
    assert not list(tmp_path.iterdir())


def test_opsets_that_cannot_be(small_model, tmp_path):
    with pytest.raises(ExportError, match="opset=17: expected one of 11, 13"):
        export_onnx(small_model, tmp_path / "model.onnx", size=SIZE, opset=17)


def test_networks_that_cannot_be(small_model, tmp_path):
    other = SimpleNamespace(network=nn.Conv2d(3, 3, 1))
    with pytest.raises(ExportError, match="expected a model of the SOLO family"):
        export_onnx(other, tmp_path / "model.onnx", size=SIZE)
    model = init_model(small_config("solo"))
    model.network.mask_head.conv_cls = nn.Sequential(model.network.mask_head.conv_cls, nn.Softmax(dim=1))
    with pytest.raises(ExportError, match="'_softmax' has no counterpart in ONNX opset 13"):
        export_onnx(model, tmp_path / "model.onnx", size=SIZE)
    assert not list(tmp_path.iterdir())


def test_models_of_another_family(tmp_path):
    config = find_preset("yolact_r50")
    with pytest.raises(ExportError, match="A yolact model has other outputs"):
        detections_from_heads([], Geometry((9, 9), (9, 9), (64, 64)), config)
    with pytest.raises(ExportError, match="expected a model of the SOLO family"):
        export_onnx(YOLACT(config, build_network(config.architecture, "meta")), tmp_path / "x", size=SIZE)


def test_deformable_convolutions(tmp_path):
    config = small_config("decoupled_light")
    model = init_model(replace(config, architecture=replace(config.architecture, deformable_head=True)))
    with pytest.raises(ExportError, match="Deformable convolutions have no counterpart in ONNX"):
        export_onnx(model, tmp_path / "model.onnx", size=SIZE, opset=11)


@pytest.mark.parametrize(
    "layer, told",
    [
        (nn.ConvTranspose2d(3, 3, 2), "Transposed"),
        (nn.MaxPool2d(2, dilation=2), "Pooling"),
        (nn.MaxPool2d(3, 2, ceil_mode=True), "Pooling"),
        (nn.Upsample(scale_factor=2.0, mode="bilinear", align_corners=True), "align_corners"),
    ],
)
def test_layers_that_would_come_out_otherwise(layer, told):
    with pytest.raises(ExportError, match=f"{told}.* cannot be exported"):
        onnx_recorder.record(nn.Sequential(layer, Several()), torch.zeros(1, 3, 8, 8), ["out"], 13)


class Several(nn.Module):
    """Makes a tuple, as what is recorded must return."""

    def forward(self, x):
        return (x,)


class Oddities(nn.Module):
    """What the networks of today do not do, but a graph can say."""

    def forward(self, x):
        cut = x[:, 1:, :, 2:-1:3]
        other = torch.nn.functional.pad(cut, (1, 2, 3, 0), value=7.0).clone()
        return (cut.sigmoid() * cut, other.contiguous().detach() + 0 * torch.ones(1, device=x.device))


@pytest.mark.parametrize("opset", [11, 13])
def test_slices_pads_and_copies(opset, tmp_path):
    inputs = torch.randn(1, 3, 5, 9, generator=torch.Generator().manual_seed(0))
    graph = onnx_recorder.record(Oddities(), inputs, ["a", "b"], opset)
    onnx.checker.check_model(graph, full_check=True)
    onnx.save_model(graph, str(tmp_path / "odd.onnx"))
    _, outputs = run(tmp_path / "odd.onnx", inputs.numpy())
    for found, expected in zip(outputs, Oddities()(inputs), strict=True):
        torch.testing.assert_close(torch.from_numpy(found), expected)


def test_other_types_inside_the_network():
    class Doubles(nn.Module):
        def forward(self, x):
            return (x.double(),)

    with pytest.raises(ExportError, match="float32 to torch.float64 cannot be exported"):
        onnx_recorder.record(Doubles(), torch.zeros(1, 3, 8, 8), ["out"], 13)


def test_outputs_that_are_not_the_networks(model, photo):
    heads = ExportedModel(model.config, SIZE)
    inputs, geometry = heads.prepare(photo)
    with torch.no_grad():
        outputs = list(RawHeads(model.network)(torch.from_numpy(inputs)))
    names = output_names(model.config.architecture)
    with pytest.raises(ExportError, match=f"{len(names) - 1} outputs: expected {len(names)}: class_0, "):
        heads.result(outputs[1:], geometry)
    with pytest.raises(ExportError, match=r"Output class_0 is \(1, 3, 8, 8\): expected \(1, 3, 10, 10\)"):
        heads.result([outputs[1], *outputs[1:]], geometry)
    with pytest.raises(ExportError, match="Outputs class_0 are missing: got class_1, "):
        heads.result(dict(zip(names[1:], outputs[1:], strict=True)), geometry)


def test_files_that_are_not_ours(tmp_path):
    (tmp_path / "text.onnx").write_text("no model", encoding="utf-8")
    with pytest.raises(ExportError, match="text.onnx is no ONNX file"):
        ExportedModel.from_onnx(tmp_path / "text.onnx")
    with pytest.raises(ExportError, match="none.onnx is no ONNX file"):
        ExportedModel.from_onnx(tmp_path / "none.onnx")
    onnx.save_model(
        onnx_recorder.record(Oddities(), torch.zeros(1, 3, 5, 9), ["a", "b"], 13),
        str(tmp_path / "other.onnx"),
    )
    with pytest.raises(ExportError, match=r"Metadata \[\] are not those of a network"):
        ExportedModel.from_onnx(tmp_path / "other.onnx")


def test_older_file_stays_when_it_cannot_be_written(small_model, tmp_path, monkeypatch):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"older")

    def fail(graph, name):
        (tmp_path / name).write_bytes(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(onnx, "save_model", fail)
    with pytest.raises(ExportError, match="cannot be written: No space left"):
        export_onnx(small_model, path, size=(64, 64))
    assert path.read_bytes() == b"older" and len(list(tmp_path.iterdir())) == 1


def test_without_onnx(small_model, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    with pytest.raises(ExportError, match=r"pip install 'solo-infer\[export\]'"):
        export_onnx(small_model, tmp_path / "model.onnx", size=SIZE)


@torch.no_grad()
@pytest.mark.skipif(
    "strict" not in inspect.signature(torch.export.export).parameters,
    reason="the first torch.export could not trace zip(strict=True)",
)
@pytest.mark.parametrize("which", ["network", "inference_network"])
def test_torch_export_gives_the_same_numbers(which):
    """Also of the fast network, whose convolutions must stay usable afterwards."""
    config = small_config("decoupled")
    wide = replace(config.architecture, pyramid_channels=256, stacked_convs=1)
    model = init_model(replace(config, architecture=wide))
    model.network.eval()
    network = getattr(model, which)
    images = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(5))
    levels, scores = torch.export.export(network, (images,), strict=False).module()(images)
    expected_levels, expected_scores = model.network(images)
    for found, expected in zip([*levels, scores], [*expected_levels, expected_scores], strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    for found, expected in zip(network(images)[0], expected_levels, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
