"""Parity with mmdet 3.3.0 for equal weights and images, from the pixels to the final masks.

The small goldens belong to this repository. The full ones of the reference kit are compared if the kit is
present.
"""

import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import golden_io
from helpers.dense_outputs import dense_mask_scores
from helpers.golden_io import ALL_GOLDENS
from helpers.paths import DATA, KIT

from solo_infer.data.images import load_image
from solo_infer.diagnostics import procedural_weights
from solo_infer.diagnostics.procedural_weights import input_tensor
from solo_infer.diagnostics.verify import MODELS, SOLO_MODELS, SOLOV2_MODELS, check_model
from solo_infer.inference import yolact
from solo_infer.inference.preprocess import Geometry, plan, prepare
from solo_infer.inference.solo import detect_features, extract_features
from solo_infer.models.solo.scores import class_scores_from_logits
from solo_infer.ops import packed_masks
from solo_infer.runtime.stopwatch import Stopwatch
from solo_infer.weights.key_mapping import mmdet_name

CPU = torch.device("cpu")
YOLACT_MODELS = ("yolact_r50", "yolact_r101")
# By default each part of each kind of network is compared with at least one golden.
CASES = ("*",) if ALL_GOLDENS else ("tensor_1x*",)
SOLOV2_NETWORKS = ("solov2_*",) if ALL_GOLDENS else ("solov2_light_r50_dcn",)
PHOTO_MODELS = ("solo_r50", "decoupled_light_r50", "solov2_light_r18", "yolact_r50")
KIT_MODELS = ("solo_r50", "decoupled_light_r50", "solov2_light_r50_dcn", "yolact_r101")
if ALL_GOLDENS:
    PHOTO_MODELS += ("decoupled_r50",)
    KIT_MODELS = tuple(procedural_weights.CALIBRATION)


def kit_goldens(*models):
    """Return the names of the goldens of some models in the kit."""
    paths = [
        path for model in models for case in CASES for path in (KIT / "goldens").glob(f"{model}__{case}.npz")
    ]
    return sorted({path.stem for path in paths})


GOLDENS = kit_goldens(*SOLO_MODELS, *SOLOV2_NETWORKS)
YOLACT_GOLDENS = kit_goldens(*YOLACT_MODELS)


def assert_detections(golden, image, scores, labels, masks):
    """Compare with the tolerances of the kit.

    Scores: 1e-4, and 2e-3 for 2% of them. Masks: an IoU of 0.999 or 5 pixels.
    """
    assert len(scores) == len(golden[f"img{image}_scores"])
    assert (np.diff(scores) <= 0).all()
    strict = golden_io.compare(golden, image, scores, labels, masks)
    loose = golden_io.compare(golden, image, scores, labels, masks, tolerance=2e-3)
    assert loose["missing"] == loose["extra"] == 0, loose
    assert strict["missing"] + strict["extra"] <= 2 * max(1, round(0.02 * len(scores))), strict
    assert loose["mask_iou"] >= 0.999 or loose["mask_pixels"] <= 5, loose


def assert_result(golden, result):
    arrays = result.numpy()
    assert_detections(golden, 0, arrays["scores"], arrays["labels"], arrays["masks"])


@pytest.mark.parametrize("model", PHOTO_MODELS)
def test_result_of_a_photo_equals_mmdets(model, procedural, photo_path):
    with np.load(DATA / f"photo__{model}.npz") as golden:
        result = procedural(model)(photo_path)
        assert_result(golden, result)
        if model in YOLACT_MODELS:
            assert_boxes(golden, 0, result)


@pytest.mark.parametrize("model", PHOTO_MODELS)
def test_network_input_is_bit_identical(model, procedural, photo):
    config = procedural(model).config.preprocessing
    inputs = prepare([photo], [plan(photo, config)], config, CPU).numpy()
    with np.load(DATA / f"photo__{model}.npz") as golden:
        assert inputs.shape == tuple(golden["input_shape"])
        assert zlib.crc32(inputs.tobytes()) == int(golden["input_crc32"])


@pytest.mark.parametrize("model", MODELS)
def test_checks_of_verify_pass(model):
    checks = list(check_model(model, CPU, torch.float32))
    assert len(checks) == (6 if model in SOLO_MODELS else 8 if model in SOLOV2_MODELS else 9)
    assert all(check.passed for check in checks), checks


@pytest.mark.parametrize("name", GOLDENS or ["no kit"])
@torch.no_grad()
def test_full_golden(name, kit, procedural):
    segmenter, golden, inputs, geometries = load_golden(name, kit, procedural)
    if is_for_plain_network(name):
        plain = segmenter.network
        maps = plain.backbone(inputs)
        for part, features in (("backbone", maps), ("fpn", plain.neck.pyramid(maps))):
            for level, feature in enumerate(features):
                assert_sampled(golden, f"{part}{level}", feature, 1e-4)
        assert_head_outputs(golden, plain, plain.neck(maps))
    optimized, thresholds = segmenter.inference_network, segmenter.config.thresholds
    features = extract_features(optimized, inputs, None, Stopwatch())
    assert_class_scores(golden, optimized, features.scores)
    if "tensor" in name:  # small; for photos the detections below cover the masks
        assert_head_outputs(golden, optimized, features.levels)
    candidates = (features.scores > thresholds.score_thr).flatten(1).sum(dim=1).tolist()
    detections = detect_features(optimized, features, geometries, thresholds, Stopwatch())
    for image, (image_detections, geometry) in enumerate(zip(detections, geometries, strict=True)):
        assert abs(candidates[image] - int(golden[f"img{image}_num_candidates"])) <= 1
        assert_image(golden, image, image_detections, geometry)


@pytest.mark.parametrize("name", [name for name in GOLDENS if "tensor" in name] or ["no kit"])
@torch.no_grad()
def test_output_of_the_plain_network(name, kit, procedural):
    segmenter, golden, inputs, _ = load_golden(name, kit, procedural)
    output = segmenter.network(inputs)
    assert_class_scores(golden, segmenter.network, class_scores_from_logits(output.class_logits))
    masks, start = dense_mask_scores(output), 0
    for level, grid in enumerate(segmenter.network.config.num_grids):
        cells = torch.from_numpy(golden[f"mask{level}_cells"]) + start
        assert_masks(golden, level, masks[:, cells])
        start += grid * grid


@pytest.mark.parametrize("name", YOLACT_GOLDENS or ["no kit"])
@torch.no_grad()
def test_full_golden_of_yolact(name, kit, procedural):
    segmenter, golden, inputs, geometries = load_golden(name, kit, procedural)
    thresholds = segmenter.config.thresholds
    plain = [segmenter.network] if is_for_plain_network(name) else []
    for network in (*plain, segmenter.inference_network):
        maps = network.backbone(inputs)
        for part, features in (("backbone", maps), ("fpn", network.neck(maps[1:]))):
            for level, feature in enumerate(features):
                assert_sampled(golden, f"{part}{level}", feature, 1e-4)
        output = network(inputs)
        assert_sampled(golden, "proto", output.prototypes, 2e-4)
        detections = yolact.decode_output(network, output, geometries, thresholds)
        for image, (image_detections, geometry) in enumerate(zip(detections, geometries, strict=True)):
            scores = yolact.class_scores(output.predictions.logits[image])
            candidates = int((scores > thresholds.score_thr).sum())
            assert abs(candidates - int(golden[f"img{image}_num_candidates"])) <= 1
            assert_image(golden, image, image_detections, geometry)
            assert_boxes(golden, image, image_detections)


def is_for_plain_network(name):
    """Return whether the plain network is compared too: for all tensors, and one photo per model."""
    return "tensor" in name or name.endswith("__china")


def load_golden(name, kit, procedural):
    """Return the model, the golden, the network inputs and the geometries of a case of the kit."""
    model, case = name.split("__")
    segmenter = procedural(model)
    with np.load(kit / "goldens" / f"{name}.npz") as file:
        golden = dict(file)
    inputs, geometries = golden_input(golden, case, kit, segmenter.config.preprocessing)
    assert zlib.crc32(inputs.numpy().tobytes()) == int(golden["input_crc32"])
    return segmenter, golden, inputs.contiguous(memory_format=torch.channels_last), geometries


def assert_image(golden, image, detections, geometry):
    masks = packed_masks.unpack(detections.packed_masks, geometry.original[1]).numpy()
    assert_detections(golden, image, detections.scores.numpy(), detections.labels.numpy(), masks)


def assert_sampled(golden, name, feature, tolerance):
    assert tuple(feature.shape) == tuple(golden[f"{name}_shape"])
    values = feature.contiguous().flatten()[torch.from_numpy(golden[f"{name}_index"])].numpy()
    assert np.abs(values - golden[f"{name}_value"]).max() <= tolerance * golden[f"{name}_std"]


def assert_boxes(golden, image, result):
    """Compare each box of the golden with the nearest one of equal label and near-equal score."""
    scores, labels, boxes = result.scores.numpy(), result.labels.numpy(), result.boxes.numpy()
    for score, label, box in zip(
        *(golden[f"img{image}_{key}"] for key in ("scores", "labels", "boxes")), strict=True
    ):
        options = boxes[(labels == label) & (np.abs(scores - score) <= 1e-4)]
        assert np.abs(options - box).max(axis=1).min() <= 0.05


def golden_input(golden, case, kit, config):
    """Return the network inputs and the geometries of a case."""
    if not case.startswith("tensor"):
        pixels = load_image(next((kit / "images").glob(f"{case}.*"))).pixels
        geometry = plan(pixels, config)
        return prepare([pixels], [geometry], config, CPU), [geometry]
    shape = tuple(golden["input_shape"].tolist())
    sizes = [
        [tuple(golden[f"img{i}_{kind}"].tolist()) for kind in ("ori_shape", "img_shape")]
        for i in range(shape[0])
    ]
    geometries = [Geometry(original, resized, shape[2:]) for original, resized in sizes]
    tensor = input_tensor(case, shape, [geometry.resized for geometry in geometries])
    return torch.from_numpy(tensor), geometries


def assert_head_outputs(golden, network, levels):
    head = network.mask_head
    assert_class_scores(golden, network, class_scores_from_logits(head.class_logits(levels)))
    if "feature_value" in golden:  # SOLOv2
        assert_sampled(golden, "feature", head.mask_features(levels), 1e-4)
        for level, kernels in enumerate(head.kernels(levels)):
            assert_sampled(golden, f"kernel{level}", kernels, 1e-4)
    start = 0
    for level, grid in enumerate(network.config.num_grids):
        cells = torch.from_numpy(golden[f"mask{level}_cells"]) + start
        masks = head.masks(levels, [cells] * len(levels[0]))
        assert_masks(golden, level, torch.stack([image_masks.scores(cells) for image_masks in masks]))
        start += grid * grid


def assert_class_scores(golden, network, scores):
    """Compare class scores (N, cells, classes); a few may be a local maximum on one side only.

    The goldens of SOLOv2 have zeros instead of scores below a floor.
    """
    start, one_sided, floor = 0, 0, float(golden.get("cls_floor", 0.0))
    for level, grid in enumerate(network.config.num_grids):
        level_scores = (
            scores[:, start : start + grid * grid].transpose(1, 2).unflatten(2, (grid, grid)).numpy()
        )
        expected = golden[f"cls{level}"]
        assert level_scores.shape == expected.shape
        level_scores = np.where(level_scores < floor, 0, level_scores)
        is_one_sided = (level_scores == 0) != (expected == 0)
        one_sided += is_one_sided.sum()
        assert np.abs(level_scores - expected)[~is_one_sided].max() <= 1e-4
        start += grid * grid
    assert one_sided <= 20


def assert_masks(golden, level, scores):
    """Compare mask scores (N, K, H/4, W/4) of the golden's cells of one level."""
    sampled = scores.flatten(2)[..., torch.from_numpy(golden[f"mask{level}_index"])].numpy()
    assert np.abs(sampled - golden[f"mask{level}_value"]).max() <= 1e-4


def test_procedural_weights_equal_the_kits(kit):
    compared = 0
    for line in (kit / "README.md").read_text().splitlines():
        columns = [column.strip(" `") for column in line.split("|")]
        if len(columns) == 6 and columns[1] in KIT_MODELS:
            weights = procedural_weights.state_dict(columns[1])
            by_name = {mmdet_name(name): tensor for name, tensor in weights.items()}
            assert crc_in_mmdets_order(by_name, kit, columns[1]) == columns[4]
            compared += 1
    assert compared == len(KIT_MODELS)


def crc_in_mmdets_order(weights, kit, model):
    crc = 0
    for name in json.loads(Path(kit / "state_dicts" / f"{model}.json").read_text()):
        crc = zlib.crc32(weights[name].numpy().tobytes(), crc)
    return f"{crc:08x}"
