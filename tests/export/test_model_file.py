"""Whole models in one file: the same results as PyTorch through ONNX Runtime and OpenVINO."""

import functools
import json
import pickle
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from helpers.exporters import require_exporter
from helpers.models import small_tiny_config, small_tiny_network

from solo_infer import SOLO, YOLACT, load_model
from solo_infer.config import TinyPostprocessConfig
from solo_infer.errors import ConfigError, DeviceError, ExportError, ResultError
from solo_infer.export import model_file
from solo_infer.export.detection_graph import greedy_keep, mask_bounds
from solo_infer.export.engine import ExportedModel
from solo_infer.export.model_file import build_detector, export_model, format_of, trace
from solo_infer.inference import solo, tiny, yolact
from solo_infer.inference.cuda_graphs import GraphCache
from solo_infer.inference.engines.metadata import ExportedConfig
from solo_infer.inference.preprocess import prepare, to_pixels
from solo_infer.runtime.stopwatch import Stopwatch
from solo_infer.segmenters.tiny import Tiny

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

FAMILIES = ("tiny", "solo", "decoupled", "decoupled_light", "solov2", "mmdet", "original")


@pytest.fixture(scope="module")
def models(small_models, small_yolacts, small_tiny):
    """Return a small model of every family and variant."""
    return {"tiny": small_tiny, **small_models, **small_yolacts}


@pytest.fixture(scope="module")
def tiny_files(small_tiny, tmp_path_factory):
    """Return a folder with a Tiny model exported in every format, for network inputs of any size.

    The model is traced and converted once, which takes seconds.
    """
    require_exporter()
    folder = tmp_path_factory.mktemp("tiny")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("trace", "to_onnx"):
            patch.setattr(model_file, name, first_result_of(getattr(model_file, name)))
        for name in ["tiny.pt2", "tiny.onnx", *(["tiny.xml"] if find_spec("openvino") else [])]:
            path = folder / name
            assert export_model(small_tiny, path, source="somewhere/tiny") == path
    expected = {"tiny.pt2", "tiny.onnx"} | ({"tiny.xml", "tiny.bin"} if find_spec("openvino") else set())
    assert {entry.name for entry in folder.iterdir()} == expected
    return folder


def first_result_of(function):
    """Return a function that returns the first result of another one."""
    results = []

    def cached(*args):
        if not results:
            results.append(function(*args))
        return results[0]

    return cached


@pytest.fixture(scope="module")
def tiny_file(tiny_files):
    """Return a Tiny model exported as ONNX."""
    return tiny_files / "tiny.onnx"


def engine_of(name):
    if name == "openvino":
        pytest.importorskip("openvino")
    return name


def assert_same(result, expected, scores=1e-3, pixels=1e-3):
    """Check that two results have the same instances, apart from rounding."""
    assert len(result) == len(expected) > 5
    assert result.image_size == expected.image_size and result.categories == expected.categories
    assert (result.labels == expected.labels).float().mean() > 0.95  # equal scores may change places
    torch.testing.assert_close(result.scores, expected.scores, rtol=0, atol=scores)
    # Instances of nearly equal scores may change places: each mask has an equal one at such a score.
    close = result.labels[:, None] == expected.labels
    close &= (result.scores[:, None] - expected.scores).abs() <= scores
    masks, expected_masks = (item.masks.flatten(1).float() for item in (result, expected))
    differences = torch.cdist(masks, expected_masks, p=1) / masks.shape[1]
    # The last places are those of the greatest number of instances, where others of that score are left out.
    certain = result.scores > result.scores.min() + scores
    assert certain.float().mean() > 0.8
    assert torch.where(close, differences, 1.0).amin(dim=1)[certain].mean() < pixels


@pytest.mark.parametrize("family", FAMILIES)
def test_detector_equals_the_model(family, models, photo):
    """The module that is exported gives the detections of its network, on one image and in a batch."""
    model = models[family]
    inputs = inputs_of(model, photo)
    detector = build_detector(model)
    detect_batches = {
        name: functools.partial(module.detect_batch, GraphCache())
        for name, module in (("tiny", tiny), ("mmdet", yolact), ("original", yolact))
    }
    detect_batch = detect_batches.get(family, solo.detect_batch)
    settings = ([model._plan(photo)], model.config.thresholds, None, Stopwatch())
    with torch.no_grad():
        outputs = detector(torch.cat([torch.zeros_like(inputs), inputs]))
        (expected,) = detect_batch(detector.network, inputs, *settings)
    scores, labels, boxes, masks, counts = (output[1] for output in outputs)
    assert int(counts) == len(expected.scores) > 5
    assert outputs.scores.shape[1] == masks.shape[0] == model.config.thresholds.max_per_image
    # A pixel of a small mask may cross the threshold by rounding, and equal scores may change places.
    differences = (scores[: int(counts)] - expected.scores).abs()
    assert differences.median() < 1e-5 and differences.max() < 0.02 and (differences > 1e-4).sum() <= 5
    assert (labels[: int(counts)] == expected.labels).float().mean() > 0.95
    assert not scores[int(counts) :].any() and not boxes[int(counts) :].any()
    assert (boxes[: int(counts), 2:] >= boxes[: int(counts), :2]).all()


def inputs_of(model, photo):
    return prepare([photo], [model._plan(photo)], model.config.preprocessing, torch.device("cpu"))


@pytest.mark.parametrize("changes", [{"nms": "greedy"}, {"across_classes": True}, {"kernel": "linear"}])
def test_detector_has_the_settings_of_the_model(changes, small_tiny, photo):
    model = small_tiny.with_thresholds(replace(small_tiny.config.thresholds, **changes))
    inputs = inputs_of(model, photo)
    with torch.no_grad():
        outputs = build_detector(model)(inputs)
    (expected,) = model.detect(inputs, [model._plan(photo)])
    count = int(outputs.counts)
    assert count == len(expected.scores) > 5
    torch.testing.assert_close(outputs.scores[0, :count], expected.scores, rtol=0, atol=1e-4)


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_results_equal_those_of_pytorch(engine, tiny_file, small_tiny, photo):
    model = load_model(tiny_file, engine=engine_of(engine))
    assert isinstance(model, Tiny) and isinstance(model, SOLO) and engine in repr(model)
    expected = small_tiny(photo)
    assert_same(model(photo), expected)
    results = model([photo, photo[:60]], batch_size=2)
    assert_same(results[0], expected)
    assert results[1].image_size == (60, photo.shape[1])
    upright = np.ascontiguousarray(photo.transpose(1, 0, 2))
    assert_same(model(upright), small_tiny(upright))
    assert_same(model(photo, input_size=128), small_tiny(photo, input_size=128))
    assert [len(result) for result in model.stream([photo, photo])] == [len(expected)] * 2
    assert set(results[0].timings) >= {"preprocess", "engine", "post"}


def test_family_of_the_class_is_checked(tiny_file):
    assert isinstance(Tiny.from_pretrained(tiny_file), Tiny)
    assert isinstance(SOLO.from_pretrained(str(tiny_file)), SOLO)
    with pytest.raises(ConfigError, match="family 'tiny'"):
        YOLACT.from_pretrained(tiny_file)


def test_settings_after_the_engine(tiny_file, small_tiny, photo):
    model, whole = load_model(tiny_file), small_tiny(photo)
    middle = float(whole.scores[len(whole) // 2])
    assert_same(model(photo, min_score=middle - 1e-3), small_tiny(photo, min_score=middle - 1e-3))
    few = model(photo, thresholds=replace(model.config.thresholds, max_per_image=3))
    assert len(few) == 3
    only = model.only(["dog"])(photo)
    assert len(only) and set(only.names) == {"dog"}
    with pytest.raises(ResultError, match="zebra"):
        model.only("zebra")


@pytest.mark.parametrize(
    "settings",
    [
        {"thresholds": TinyPostprocessConfig(score_thr=0.2)},
        {"thresholds": TinyPostprocessConfig(mask_thr=0.4)},
        {"thresholds": TinyPostprocessConfig(max_per_image=101)},
        {"thresholds": TinyPostprocessConfig(filter_thr=0.001)},
        {"across_classes": True},
    ],
)
def test_settings_inside_the_graph_raise(settings, tiny_file, photo):
    model = load_model(tiny_file)
    with pytest.raises(ConfigError, match="tiny.onnx"):
        model(photo, **settings)
    with pytest.raises(ConfigError, match="tiny.onnx"):
        model.with_settings(**settings)


def test_what_needs_a_network_raises(tiny_file, tmp_path):
    model = load_model(tiny_file)
    actions = [
        lambda: model.network,
        lambda: model.inference_network,
        lambda: model.compile(),
        lambda: model.save_pretrained(tmp_path / "saved"),
        lambda: export_model(model, tmp_path / "again.onnx"),
        lambda: model.count_candidates(torch.zeros(1, 3, 96, 160)),
    ]
    for action in actions:
        with pytest.raises(ExportError, match="tiny.onnx"):
            action()
    assert not list(tmp_path.iterdir())
    assert model.to("cpu") is model and model.to(dtype="float32") is model
    assert (model.device.type, model.dtype) == ("cpu", torch.float32)
    with pytest.raises(DeviceError, match="was opened in float32"):
        model.to(dtype="bfloat16")
    with pytest.raises(DeviceError, match="ONNX Runtime computes"):
        load_model(tiny_file, dtype="bfloat16")


def test_model_is_shared_by_threads_and_pickled(tiny_file, photo):
    for engine in ("onnxruntime", engine_of("openvino")):
        model = load_model(tiny_file, engine=engine)
        expected = model(photo)
        with ThreadPoolExecutor(4) as pool:
            results = list(pool.map(lambda _, model=model: model(photo), range(8)))
        results.append(pickle.loads(pickle.dumps(model))(photo))
        for result in results:
            assert torch.equal(result.scores, expected.scores)
            assert torch.equal(result.packed_masks, expected.packed_masks)


def test_file_describes_itself(tiny_file, small_tiny):
    graph = onnx.load(str(tiny_file))
    onnx.checker.check_model(graph, full_check=True)
    metadata = {entry.key: entry.value for entry in graph.metadata_props}
    assert json.loads(metadata["solo_infer.config"])["categories"]["names"] == ["cat", "dog", "bird"]
    assert metadata["solo_infer.source"] == "somewhere/tiny"
    assert load_model(tiny_file).config == small_tiny.config
    names = [value.name for value in graph.graph.output]
    assert names == ["scores", "labels", "boxes", "masks", "counts"]
    assert [entry.version for entry in graph.opset_import if entry.domain == ""] == [18]
    # Paths of the machine that exported the file are no part of it.
    assert b".py" not in tiny_file.read_bytes()
    with pytest.raises(ExportError, match="use solo_infer.load_model"):
        ExportedModel.from_onnx(tiny_file)


def test_batch_of_any_size(tiny_file, small_tiny, photo):
    import onnxruntime

    session = onnxruntime.InferenceSession(str(tiny_file), providers=["CPUExecutionProvider"])
    inputs = inputs_of(small_tiny, photo).contiguous().numpy()
    single = session.run(None, {"images": inputs})
    triple = session.run(None, {"images": np.concatenate([inputs, inputs * 0, inputs])})
    for one, three in zip(single, triple, strict=True):
        assert three.shape == (3, *one.shape[1:])
        np.testing.assert_allclose(three[0], one[0], atol=2e-3)
        np.testing.assert_allclose(three[2], one[0], atol=2e-3)


def test_pixels_are_normalized_in_the_graph(small_tiny, photo):
    inputs = inputs_of(small_tiny, photo)
    pixels = to_pixels(inputs, small_tiny.config.preprocessing)
    assert pixels.dtype == torch.uint8 and pixels.shape == inputs.shape
    with torch.no_grad():
        expected, outputs = build_detector(small_tiny)(inputs), build_detector(small_tiny, True)(pixels)
    assert torch.equal(outputs.counts, expected.counts)
    torch.testing.assert_close(outputs.scores, expected.scores, rtol=0, atol=5e-3)


def test_openvino_file(tiny_files, small_tiny, photo, tmp_path):
    engine_of("openvino")
    model = load_model(tiny_files / "tiny.xml")
    assert "openvino" in repr(model) and model.config == small_tiny.config
    assert_same(model(photo), small_tiny(photo))
    half = load_model(tiny_files / "tiny.xml", dtype="bfloat16")
    assert half.dtype in (torch.bfloat16, torch.float32)  # of a CPU without bfloat16
    assert len(half(photo)) > 5
    with pytest.raises(ExportError, match="use the engine openvino"):
        load_model(tiny_files / "tiny.xml", engine="onnxruntime")
    alone = tmp_path / "alone.xml"
    alone.write_bytes((tiny_files / "tiny.xml").read_bytes())
    with pytest.raises(ExportError, match="openvino cannot open"):
        load_model(alone)


def test_torch_program_of_any_size(tiny_files, small_tiny, photo):
    extra = {"solo_infer.config": ""}
    program = torch.export.load(tiny_files / "tiny.pt2", extra_files=extra).module()
    assert json.loads(extra["solo_infer.config"])["family"] == "tiny"
    for image in (photo, np.ascontiguousarray(photo.transpose(1, 0, 2))):
        inputs = inputs_of(small_tiny, image)
        (expected,) = small_tiny.detect(inputs, [small_tiny._plan(image)])
        scores, *_, counts = program(inputs)
        assert int(counts) == len(expected.scores) > 5
        torch.testing.assert_close(scores[0, : int(counts)], expected.scores, rtol=0, atol=1e-4)


@pytest.mark.parametrize("head", ["solo", "decoupled", "decoupled_light", "solov2"])
def test_every_head_is_traced_for_any_size(head, small_models):
    """The program that torch.export writes gives the results of the module, also at sizes of no example."""
    require_exporter()
    detector = build_detector(small_models[head])
    program = trace(detector, ExportedConfig(small_models[head].config, None)).module()
    for size in ((96, 160), (160, 96), (192, 224), (512, 864)):
        inputs = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(size[0]))
        with torch.no_grad():
            for output, expected in zip(program(inputs), detector(inputs), strict=True):
                torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-4)


def test_file_of_a_head_takes_any_size(small_models, tmp_path, photo):
    require_exporter()
    model = small_models["decoupled_light"]
    exported = load_model(export_model(model, tmp_path / "light.onnx"))
    for image in (photo, np.rot90(photo).copy(), photo[:60, :60]):
        result, expected = exported(image), model(image)
        assert len(result) == len(expected) > 5
        assert torch.equal(result.labels, expected.labels)
        torch.testing.assert_close(result.scores, expected.scores, rtol=0, atol=1e-4)
    detector = build_detector(model)
    for size in ((64, 320), (224, 32)):  # P6 has sides of one pixel
        inputs = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0))
        outputs = exported.session.run(inputs.numpy())
        with torch.no_grad():
            scores = detector(inputs).scores
        torch.testing.assert_close(torch.from_numpy(outputs["scores"]), scores, rtol=0, atol=1e-4)


def test_old_torch_cannot_export_detections(small_tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.onnx, "export", lambda model, args, f: None)
    path = tmp_path / "tiny.onnx"
    with pytest.raises(ExportError, match="expected torch 2.6 or later.*--format onnx-heads"):
        export_model(small_tiny, path)
    assert list(tmp_path.iterdir()) == []


def test_chains_of_suppressions():
    """A box that a suppressed box would suppress is kept."""
    count = 12
    chain = torch.zeros(1, count, count)
    for index in range(count - 1):
        chain[0, index, index + 1] = 1
    assert greedy_keep(chain).tolist() == [[1.0, 0.0] * (count // 2)]


def test_bounds_of_masks():
    inside = torch.zeros(1, 2, 4, 6, dtype=torch.bool)
    inside[0, 0, 1:3, 2:5] = True
    assert mask_bounds(inside, 4).tolist() == [[[8, 4, 20, 12], [0, 0, 0, 0]]]


@pytest.mark.parametrize(
    ("name", "format", "expected"),
    [("m.onnx", None, "onnx"), ("m.xml", "openvino", "openvino"), ("m.pt2", None, "torch")],
)
def test_format_follows_from_the_name(name, format, expected, tmp_path):
    assert format_of(tmp_path / name, format) == expected


@pytest.mark.parametrize(
    ("name", "format", "message"),
    [
        ("m.pth", None, r"ends in \.onnx, \.xml, \.pt2"),
        ("m", None, r"ends in \.onnx"),
        ("m.onnx", "openvino", r"ends in \.xml"),
        ("m.xml", "torch", r"ends in \.pt2"),
    ],
)
def test_wrong_names_raise(name, format, message, tmp_path, small_tiny):
    with pytest.raises(ExportError, match=message):
        export_model(small_tiny, tmp_path / name, format=format)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("size", [(96, 100), (32, 96), (96,), "96", (96.0, 160)])
def test_unsupported_sizes_raise(size, small_tiny, tmp_path):
    with pytest.raises(ExportError, match="size="):
        export_model(small_tiny, tmp_path / "m.onnx", size=size)
    assert not list(tmp_path.iterdir())


def test_yolact_has_one_size(small_yolacts, tmp_path):
    with pytest.raises(ExportError, match="takes 96 x 96"):
        export_model(small_yolacts["mmdet"], tmp_path / "m.onnx", size=(128, 128))


@pytest.mark.parametrize(
    ("package", "name", "extra"),
    [("onnx", "m.onnx", "export"), ("onnxscript", "m.onnx", "export"), ("openvino", "m.xml", "openvino")],
)
def test_missing_packages_raise(package, name, extra, small_tiny, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr(model_file, "trace", lambda detector, exported: None)
    with pytest.raises(ExportError, match=rf"pip install 'solo-infer\[{extra}\]'"):
        export_model(small_tiny, tmp_path / name, size=(96, 160))
    assert not list(tmp_path.iterdir())


def test_half_precision_model_is_unchanged(tmp_path):
    config = small_tiny_config()
    model = Tiny(config, small_tiny_network(config)).to(dtype=torch.bfloat16)
    assert next(build_detector(model).parameters()).dtype == torch.float32
    assert model.dtype == torch.bfloat16
