"""Photos of one size as the input of a graph: the same network inputs and results as outside of it."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.exporters import require_exporter

from solo_infer import load_model
from solo_infer.config import PRESETS
from solo_infer.errors import ExportError, ImageError
from solo_infer.export.model_file import build_detector, export_model
from solo_infer.export.photo_input import AntialiasedResize, PhotoDetector
from solo_infer.inference.engines.metadata import ExportedConfig
from solo_infer.inference.preprocess import plan, prepare


class Inputs(torch.nn.Module):
    """Detector that returns its network inputs."""

    takes_any_batch = True

    def forward(self, inputs):
        return inputs


def random_photos(height, width):
    return np.random.default_rng(height).integers(0, 256, (2, height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    "name", ["solo_r50", "decoupled_light_r50", "yolact_r50", "yolact_original_r50", "tiny"]
)
@pytest.mark.parametrize("size", [(61, 40), (530, 928), (1066, 1600), (1100, 1100), (32, 700)])
def test_network_inputs_equal_those_of_the_library(name, size, small_tiny):
    if name == "tiny":
        config = load_model("tiny", device="cpu").config.preprocessing
    else:
        config = PRESETS[name].preprocessing
    photos = random_photos(*size)
    geometry = plan(photos[0], config)
    expected = prepare(list(photos), [geometry] * 2, config, torch.device("cpu"))
    inputs = PhotoDetector(Inputs(), config, size)(torch.from_numpy(photos))
    assert inputs.shape == expected.shape
    if config.round_to_uint8:
        assert torch.equal(inputs, expected)
    else:
        torch.testing.assert_close(inputs, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "old, new",
    [
        ((90, 70), (30, 20)),
        ((300, 512), (299, 512)),
        ((1000, 97), (33, 96)),
        ((640, 480), (80, 61)),
        ((7, 5), (1, 1)),
        ((2000, 1500), (61, 40)),
    ],
)
def test_antialiased_resize_equals_torchs(old, new):
    photos = torch.from_numpy(random_photos(*old)).permute(0, 3, 1, 2)
    expected = F.interpolate(photos, size=new, mode="bilinear", antialias=True, align_corners=False)
    assert torch.equal(AntialiasedResize(old, new)(photos), expected.float())


@pytest.fixture(scope="module")
def photo_file(small_tiny, tmp_path_factory):
    require_exporter()
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    return export_model(small_tiny, tmp_path_factory.mktemp("photos") / "tiny.onnx", photo_size=(150, 210))


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_results_equal_those_of_pytorch(engine, photo_file, small_tiny, photo):
    pytest.importorskip(engine)
    photo = np.ascontiguousarray(np.resize(photo, (150, 210, 3)))
    exported, expected = load_model(photo_file, engine=engine), small_tiny(photo)
    assert "150 x 210" in repr(exported)
    result = exported(photo)
    assert len(result) == len(expected) > 5
    assert torch.equal(result.labels, expected.labels)
    torch.testing.assert_close(result.scores, expected.scores, rtol=0, atol=2e-3)
    assert (result.masks != expected.masks).float().mean() < 1e-3
    assert len(exported([photo, photo], batch_size=2)[1]) == len(expected)


def test_other_sizes_are_refused(photo_file):
    model = load_model(photo_file)
    with pytest.raises(ImageError, match="210 x 150 pixels.*takes photos of 150 x 210.*--photo-size"):
        model(np.zeros((210, 150, 3), np.uint8))


def test_metadata(photo_file, small_tiny):
    exported = load_model(photo_file).session.exported
    assert exported == ExportedConfig.of_photos(small_tiny.config, (150, 210))
    metadata = exported.to_metadata("1.0")
    assert json.loads(metadata["solo_infer.photo_size"]) == [150, 210]
    assert ExportedConfig.from_metadata(metadata) == exported
    metadata["solo_infer.photo_size"] = "[1500, 2100]"
    if exported.size == ExportedConfig.of_photos(small_tiny.config, (1500, 2100)).size:
        metadata["solo_infer.photo_size"] = "[150, 2100]"
    with pytest.raises(ExportError, match="does not belong to"):
        ExportedConfig.from_metadata(metadata)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"photo_size": (0, 20)}, "photo_size=.*expected .height, width. of 1 to 16384"),
        ({"photo_size": 20}, "photo_size=20: expected"),
        ({"photo_size": (20, 30), "size": (32, 32)}, "given with size or pixels"),
        ({"photo_size": (20, 30), "pixels": True}, "given with size or pixels"),
    ],
)
def test_wrong_sizes_raise(arguments, message, small_tiny, tmp_path):
    with pytest.raises(ExportError, match=message):
        export_model(small_tiny, tmp_path / "tiny.onnx", **arguments)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("head", ["decoupled_light", "solov2"])
def test_other_families_take_photos(head, small_models, photo):
    model = small_models[head]
    photo = np.ascontiguousarray(photo)
    geometry = plan(photo, model.config.preprocessing)
    inputs = prepare([photo], [geometry], model.config.preprocessing, torch.device("cpu"))
    with torch.no_grad():
        outputs = build_detector(model, photo_size=photo.shape[:2])(torch.from_numpy(photo)[None])
        expected = build_detector(model)(inputs)
    for output, value in zip(outputs, expected, strict=True):
        torch.testing.assert_close(output, value)
