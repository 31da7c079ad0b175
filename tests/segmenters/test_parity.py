"""mmdet 3.3.0's results on the same weights and images, from the photo to the final masks.

The small goldens are here; the kit's full ones are compared where the kit is beside the checkout.
"""

import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import golden_io
from helpers.paths import DATA, KIT

from solo_infer.diagnostics.procedural_weights import input_tensor
from solo_infer.diagnostics.verify import MODELS, SOLO_MODELS, check_model
from solo_infer.inference import solo
from solo_infer.inference.preprocess import Geometry, plan, prepare
from solo_infer.ops import packed_masks
from solo_infer.weights.key_mapping import mmdet_name

YOLACT_MODELS = ("yolact_r50", "yolact_r101")
GOLDENS, YOLACT_GOLDENS = (
    sorted(path.stem for model in models for path in (KIT / "goldens").glob(f"{model}__*.npz"))
    for models in (SOLO_MODELS, YOLACT_MODELS)
)


def assert_detections(golden, image, scores, labels, masks):
    """Apply the kit's tolerances: 1e-4 in score, 2e-3 for 2% of them, IoU 0.999 or 5 pixels."""
    assert len(scores) == len(golden[f"img{image}_scores"])
    assert (np.diff(scores) <= 0).all()
    strict = golden_io.compare(golden, image, scores, labels, masks)
    loose = golden_io.compare(golden, image, scores, labels, masks, tolerance=2e-3)
    assert loose["missing"] == loose["extra"] == 0, loose
    assert strict["missing"] + strict["extra"] <= 2 * max(1, round(0.02 * len(scores))), strict
    assert loose["mask_iou"] >= 0.999 or loose["mask_pixels"] <= 5, loose


def assert_result(golden, result):
    found = result.numpy()
    assert_detections(golden, 0, found["scores"], found["labels"], found["masks"])


@pytest.mark.parametrize("model", MODELS)
def test_photo_to_masks(model, procedural, photo_path):
    with np.load(DATA / f"photo__{model}.npz") as golden:
        result = procedural(model)(photo_path)
        assert_result(golden, result)
        if model not in SOLO_MODELS:
            assert_boxes(golden, 0, result)


@pytest.mark.parametrize("model", MODELS)
def test_network_input_is_equal_to_the_last_bit(model, procedural, photo):
    config = procedural(model).config.preprocessing
    found = prepare(photo, plan(photo, config), config, torch.device("cpu"))[None].numpy()
    with np.load(DATA / f"photo__{model}.npz") as golden:
        assert found.shape == tuple(golden["input_shape"])
        assert zlib.crc32(found.tobytes()) == int(golden["input_crc32"])


@pytest.mark.parametrize("model", MODELS)
def test_tensor_to_masks(model):
    checks = list(check_model(model, torch.device("cpu"), torch.float32))
    assert len(checks) == (6 if model in SOLO_MODELS else 9)
    assert all(check.passed for check in checks), checks


@pytest.mark.parametrize("name", GOLDENS or ["no kit"])
def test_full_golden(name, kit, procedural):
    model, case = name.split("__")
    segmenter = procedural(model)
    with np.load(kit / "goldens" / f"{name}.npz") as file:
        golden = dict(file)
    inputs, geometries = golden_input(golden, case, kit, segmenter.config.preprocessing)
    assert zlib.crc32(inputs.numpy().tobytes()) == int(golden["input_crc32"])
    with torch.no_grad():
        network = segmenter.inference_network
        levels, scores = network(inputs.contiguous(memory_format=torch.channels_last))
        assert_maps(golden, network, levels, scores)
        detections = segmenter._detect(levels, scores, geometries, segmenter.config.thresholds)
    for image, (found, geometry) in enumerate(zip(detections, geometries, strict=True)):
        candidates = solo.find_candidates(scores[image], 0.1)
        assert abs(len(candidates.cells) - int(golden[f"img{image}_num_candidates"])) <= 1
        masks = packed_masks.unpack(found.packed_masks, geometry.original[1]).numpy()
        assert_detections(golden, image, found.scores.numpy(), found.labels.numpy(), masks)


@pytest.mark.parametrize("name", YOLACT_GOLDENS or ["no kit"])
def test_full_golden_of_yolact(name, kit, procedural):
    model, case = name.split("__")
    segmenter = procedural(model)
    with np.load(kit / "goldens" / f"{name}.npz") as file:
        golden = dict(file)
    inputs, geometries = golden_input(golden, case, kit, segmenter.config.preprocessing)
    assert zlib.crc32(inputs.numpy().tobytes()) == int(golden["input_crc32"])
    inputs = inputs.contiguous(memory_format=torch.channels_last)
    thresholds = segmenter.config.thresholds
    with torch.no_grad():
        network = segmenter.inference_network
        maps = network.backbone(inputs)
        levels, found, prototypes = network(inputs)
        detections = segmenter._detect(levels, found, prototypes, geometries, thresholds)
        scores = segmenter.class_scores(inputs)
    for part, features in (("backbone", maps), ("fpn", levels)):
        for level, feature in enumerate(features):
            assert_sampled(golden, f"{part}{level}", feature, 1e-4)
    assert_sampled(golden, "proto", prototypes, 2e-4)
    for image, (result, geometry) in enumerate(zip(detections, geometries, strict=True)):
        candidates = int((scores[image] > thresholds.score_thr).sum())
        assert abs(candidates - int(golden[f"img{image}_num_candidates"])) <= 1
        masks = packed_masks.unpack(result.packed_masks, geometry.original[1]).numpy()
        assert_detections(golden, image, result.scores.numpy(), result.labels.numpy(), masks)
        assert_boxes(golden, image, result)


def assert_sampled(golden, name, feature, tolerance):
    assert tuple(feature.shape) == tuple(golden[f"{name}_shape"])
    values = feature.contiguous().flatten()[torch.from_numpy(golden[f"{name}_index"])].numpy()
    assert np.abs(values - golden[f"{name}_value"]).max() <= tolerance * golden[f"{name}_std"]


def assert_boxes(golden, image, result):
    """Pair the boxes of equal label and near score that lie nearest, and compare them."""
    scores, labels, boxes = result.scores.numpy(), result.labels.numpy(), result.boxes.numpy()
    for score, label, box in zip(
        *(golden[f"img{image}_{key}"] for key in ("scores", "labels", "boxes")), strict=True
    ):
        options = boxes[(labels == label) & (np.abs(scores - score) <= 1e-4)]
        assert np.abs(options - box).max(axis=1).min() <= 0.05


def golden_input(golden, case, kit, config):
    if not case.startswith("tensor"):
        from solo_infer.data.images import load_image

        pixels = load_image(next((kit / "images").glob(f"{case}.*"))).pixels
        geometry = plan(pixels, config)
        return prepare(pixels, geometry, config, torch.device("cpu"))[None], [geometry]
    shape = tuple(golden["input_shape"].tolist())
    sizes = [
        [tuple(golden[f"img{i}_{kind}"].tolist()) for kind in ("ori_shape", "img_shape")]
        for i in range(shape[0])
    ]
    geometries = [Geometry(original, resized, shape[2:]) for original, resized in sizes]
    tensor = input_tensor(case, shape, [geometry.resized for geometry in geometries])
    return torch.from_numpy(tensor), geometries


def assert_maps(golden, network, levels, scores):
    start = flips = 0
    for level, grid in enumerate(network.config.num_grids):
        part = (
            scores[:, start : start + grid * grid]
            .transpose(1, 2)
            .reshape(len(scores), 80, grid, grid)
            .numpy()
        )
        expected = golden[f"cls{level}"]
        one_sided = (part == 0) != (expected == 0)
        flips += one_sided.sum()
        assert np.abs(part - expected)[~one_sided].max() <= 1e-4
        cells = torch.from_numpy(golden[f"mask{level}_cells"]) + start
        maps = network.mask_maps(levels, cells)
        for image in range(len(scores)):
            found = maps.scores(image, cells).flatten(1)[:, torch.from_numpy(golden[f"mask{level}_index"])]
            assert np.abs(found.numpy() - golden[f"mask{level}_value"][image]).max() <= 1e-4
        start += grid * grid
    assert flips <= 20


def test_the_kits_weights_are_ours(kit):
    from solo_infer.diagnostics import procedural_weights

    for line in (kit / "README.md").read_text().splitlines():
        columns = [column.strip(" `") for column in line.split("|")]
        if len(columns) == 6 and columns[1] in procedural_weights.CALIBRATION:
            weights = procedural_weights.state_dict(columns[1])
            by_name = {mmdet_name(name): tensor for name, tensor in weights.items()}
            assert crc_in_mmdets_order(by_name, kit, columns[1]) == columns[4]


def crc_in_mmdets_order(weights, kit, model):
    import json

    crc = 0
    for name in json.loads(Path(kit / "state_dicts" / f"{model}.json").read_text()):
        crc = zlib.crc32(weights[name].numpy().tobytes(), crc)
    return f"{crc:08x}"
