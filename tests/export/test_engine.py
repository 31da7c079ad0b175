"""Network inputs for an engine, and results from its raw outputs."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.models import randomize, small_config, small_network, variant_of

from solo_infer import SOLO, PostprocessConfig, SOLOConfig, YOLACTPostprocessConfig
from solo_infer.config import find_preset
from solo_infer.errors import ConfigError, ExportError
from solo_infer.export import onnx_recorder
from solo_infer.export.engine import ExportedModel, detections_from_outputs
from solo_infer.export.onnx import export_onnx
from solo_infer.export.solo_heads import RawHeads, output_names
from solo_infer.inference.preprocess import Geometry, plan

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
from helpers.onnx_files import INPUT_SIZE, run_onnx  # noqa: E402


def raw_outputs(model, inputs):
    """Return the raw outputs of the plain network for an array (1, 3, H, W)."""
    with torch.no_grad():
        return RawHeads(model.network)(torch.from_numpy(inputs))


def assert_same_instances(result, expected):
    assert len(result) == len(expected) > 0
    assert torch.equal(result.labels, expected.labels)
    differences = (result.scores - expected.scores).abs()
    # A pixel at the threshold is a large part of these small masks.
    assert float(differences.max()) < 5e-3 and int((differences > 2e-5).sum()) <= 0.05 * len(result)
    for mask, expected_mask in zip(result.masks, expected.masks, strict=True):
        intersection, union = int((mask & expected_mask).sum()), int((mask | expected_mask).sum())
        assert union - intersection <= 5 or intersection / union >= 0.999


def test_outputs_and_results_equal_the_model(exported, model, photo):
    path, _ = exported
    exported_model = ExportedModel.from_onnx(path)
    assert (exported_model.config, exported_model.size) == (model.config, INPUT_SIZE)
    inputs, geometry = exported_model.prepare(photo)
    assert inputs.shape == (1, 3, *INPUT_SIZE) and geometry.padded == INPUT_SIZE
    session, outputs = run_onnx(path, inputs)
    for output, expected in zip(outputs, raw_outputs(model, inputs), strict=True):
        torch.testing.assert_close(torch.from_numpy(output), expected, rtol=0, atol=2e-4)
    metadata = session.get_modelmeta().custom_metadata_map
    assert ExportedModel.from_metadata(metadata) == exported_model
    result = exported_model.result(outputs, geometry, photo)
    assert_same_instances(result, model(photo))
    assert (result.categories, result.image_size) == (model.config.categories, photo.shape[:2])
    by_name = dict(zip(output_names(model.config.architecture), outputs, strict=True))
    from_names = exported_model.result(by_name, geometry)
    assert torch.equal(from_names.packed_masks, result.packed_masks)


def test_other_backbone(tmp_path, photo):
    """Export EfficientNet's asymmetric padding and bounded activations."""
    config = variant_of(small_config("decoupled_light"), {"backbone": "efficientnet_lite0"})
    model = SOLO(config, randomize(small_network(config)))
    path = export_onnx(model, tmp_path / "lite0.onnx", size=INPUT_SIZE, opset=11)
    assert {"Pad", "Clip"} < {node.op_type for node in onnx.load(str(path)).graph.node}
    exported_model = ExportedModel.from_onnx(path)
    inputs, geometry = exported_model.prepare(photo)
    _, outputs = run_onnx(path, inputs)
    assert geometry.padded == INPUT_SIZE == plan(photo, model.config.preprocessing).padded
    assert_same_instances(exported_model.result(outputs, geometry), model(photo))


def test_no_candidates(model, photo):
    exported_model = ExportedModel(model.config, INPUT_SIZE)
    inputs, geometry = exported_model.prepare(photo)
    outputs = list(raw_outputs(model, inputs))
    outputs[:5] = [logits - 1000 for logits in outputs[:5]]
    assert len(exported_model.result(outputs, geometry)) == 0


def test_thresholds_of_a_call(model, photo):
    exported_model = ExportedModel(model.config, INPUT_SIZE)
    inputs, geometry = exported_model.prepare(photo)
    outputs = raw_outputs(model, inputs)
    thresholds = PostprocessConfig(max_per_image=1)
    assert len(exported_model.result(outputs, geometry, thresholds=thresholds)) == 1
    assert len(detections_from_outputs(outputs, geometry, model.config).scores) > 1
    with pytest.raises(ConfigError):
        exported_model.result(outputs, geometry, thresholds=YOLACTPostprocessConfig())


def test_half_precision_outputs(model, photo):
    exported_model = ExportedModel(model.config, INPUT_SIZE)
    inputs, geometry = exported_model.prepare(photo)
    outputs = raw_outputs(model, inputs)
    expected = exported_model.result(outputs, geometry)
    result = exported_model.result([output.half() for output in outputs], geometry)
    assert result.scores.dtype == torch.float32
    assert abs(float(result.scores[0]) - float(expected.scores[0])) < 0.02


def test_outputs_of_another_network_raise(model, photo):
    exported_model = ExportedModel(model.config, INPUT_SIZE)
    inputs, geometry = exported_model.prepare(photo)
    outputs = list(raw_outputs(model, inputs))
    names = output_names(model.config.architecture)
    with pytest.raises(ExportError, match=f"{len(names) - 1} outputs: expected {len(names)}: class_0, "):
        exported_model.result(outputs[1:], geometry)
    with pytest.raises(ExportError, match=r"Output class_0 is \(1, 3, 8, 8\): expected \(1, 3, 10, 10\)"):
        exported_model.result([outputs[1], *outputs[1:]], geometry)
    with pytest.raises(ExportError, match="Outputs class_0 are missing: got class_1, "):
        exported_model.result(dict(zip(names[1:], outputs[1:], strict=True)), geometry)


def test_yolact_raises():
    with pytest.raises(ExportError, match="A yolact model cannot be exported: expected one of the SOLO"):
        detections_from_outputs([], Geometry((9, 9), (9, 9), (64, 64)), find_preset("yolact_r50"))


def test_unreadable_files_raise(tmp_path):
    (tmp_path / "text.onnx").write_text("not a model", encoding="utf-8")
    with pytest.raises(ExportError, match="text.onnx is not a readable ONNX file"):
        ExportedModel.from_onnx(tmp_path / "text.onnx")
    with pytest.raises(ExportError, match="missing.onnx is not a readable ONNX file"):
        ExportedModel.from_onnx(tmp_path / "missing.onnx")


class Identity(torch.nn.Module):
    def forward(self, x):
        return (x.relu(),)


def test_files_of_other_exporters_raise(tmp_path):
    graph = onnx_recorder.record(Identity(), torch.zeros(1, 3, 5, 9), ["out"], 13)
    onnx.save_model(graph, str(tmp_path / "other.onnx"))
    with pytest.raises(ExportError, match=r"Metadata \[\] were not written by export_onnx"):
        ExportedModel.from_onnx(tmp_path / "other.onnx")


# Metadata as version 0.1 wrote them, of ``small_config("decoupled")``.
FORMAT_1 = {
    "format": "solo_infer/1",
    "architecture": {
        "head": "decoupled",
        "backbone": "resnet50",
        "num_classes": 3,
        "num_grids": [10, 8, 6, 4, 3],
        "strides": [8, 8, 16, 32, 32],
        "stacked_convs": 2,
        "pyramid_channels": 32,
        "head_channels": 32,
        "scale_ranges": [[1, 96], [48, 192], [96, 384], [192, 768], [384, 2048]],
        "head_bias": False,
        "extra_level": "max_pool",
        "deformable_head": False,
        "deformable_stages": [],
    },
    "preprocessing": {
        "short_side": 96,
        "long_side": 160,
        "mean": [123.675, 116.28, 103.53],
        "std": [58.395, 57.12, 57.375],
        "size_divisor": 32,
        "keep_ratio": True,
        "whole_values": True,
    },
    "thresholds": {
        "score_thr": 0.1,
        "mask_thr": 0.5,
        "filter_thr": 0.05,
        "nms_pre": 500,
        "max_per_image": 100,
        "kernel": "gaussian",
        "sigma": 2.0,
        "nms": "matrix",
        "nms_iou": 0.5,
    },
    "categories": {"names": ["cat", "dog", "bird"], "ids": [1, 2, 3]},
}


def with_default_mask_channels(config):
    """Return a configuration with the default of a setting that earlier versions did not have."""
    channels = SOLOConfig().mask_channels
    return replace(config, architecture=replace(config.architecture, mask_channels=channels))


def test_metadata_of_earlier_versions(tmp_path, small_models, photo):
    metadata = {
        "solo_infer.config": json.dumps(FORMAT_1),
        "solo_infer.size": "[96, 160]",
        "solo_infer.version": "0.1.0",
    }
    expected = ExportedModel(with_default_mask_channels(small_config("decoupled")), INPUT_SIZE)
    assert ExportedModel.from_metadata(metadata) == expected
    path = export_onnx(small_models["decoupled"], tmp_path / "model.onnx", size=INPUT_SIZE)
    graph = onnx.load(str(path))
    del graph.metadata_props[:]
    onnx.helper.set_model_props(graph, metadata)
    onnx.save_model(graph, str(path))
    exported_model = ExportedModel.from_onnx(path)
    assert exported_model == expected
    inputs, geometry = exported_model.prepare(photo)
    _, outputs = run_onnx(path, inputs)
    result = exported_model.result(outputs, geometry)
    assert_same_instances(result, small_models["decoupled"](photo))


def test_rounding_of_earlier_versions_is_kept():
    preprocessing = {**FORMAT_1["preprocessing"], "whole_values": False}
    metadata = {
        "solo_infer.config": json.dumps({**FORMAT_1, "preprocessing": preprocessing}),
        "solo_infer.size": "[96, 160]",
    }
    config = with_default_mask_channels(small_config("decoupled"))
    expected = replace(config, preprocessing=replace(config.preprocessing, round_to_uint8=False))
    assert ExportedModel.from_metadata(metadata).config == expected


@pytest.mark.parametrize(
    "changes",
    [
        {"solo_infer.size": "[96]"},
        {"solo_infer.size": "not json"},
        {"solo_infer.config": "[]"},
        {"solo_infer.config": "{"},
    ],
)
def test_damaged_metadata_raise(changes):
    metadata = {"solo_infer.config": json.dumps(FORMAT_1), "solo_infer.size": "[96, 160]", **changes}
    with pytest.raises(ExportError, match=r"were not written by export_onnx: .*[^.]\.$"):
        ExportedModel.from_metadata(metadata)


def test_prepare_fits_large_images(small_model):
    exported_model = ExportedModel(small_model.config, INPUT_SIZE)
    inputs, geometry = exported_model.prepare(np.full((288, 192, 3), 255, np.uint8))
    assert geometry == Geometry((288, 192), (96, 64), INPUT_SIZE)
    assert inputs.dtype == np.float32 and inputs.flags.c_contiguous
    assert (inputs[..., :64] > 0).all() and not inputs[..., 64:].any()
