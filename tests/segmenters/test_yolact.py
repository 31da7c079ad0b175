"""YOLACT models of both variants: predictions, settings, checkpoints."""

import copy
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.models import YOLACT_VARIANTS
from helpers.results import assert_same, assert_same_but_for_rounding
from helpers.smooth_images import smooth_images

from solo_infer import YOLACT, YOLACTConfig, YOLACTPostprocessConfig, load_model
from solo_infer.config import ModelConfig, PreprocessConfig
from solo_infer.config.presets import config_from_preset
from solo_infer.config.yolact import yolact_preset
from solo_infer.diagnostics import procedural_weights
from solo_infer.diagnostics.benchmark import STAGES
from solo_infer.errors import CheckpointError, ConfigError
from solo_infer.inference import yolact
from solo_infer.inference.preprocess import plan, prepare
from solo_infer.results.result import Result
from solo_infer.weights.checkpoint import read_checkpoint

both_variants = pytest.mark.parametrize("variant", YOLACT_VARIANTS)


@both_variants
def test_result_of_one_image(variant, small_yolacts, photo_path):
    model = small_yolacts[variant]
    result = model(photo_path)
    assert isinstance(result, Result)
    assert result.image_size == (300, 451)
    assert 20 < len(result) <= 100
    assert (result.scores.dtype, result.labels.dtype, result.boxes.dtype) == (
        torch.float32,
        torch.int64,
        torch.float32,
    )
    assert (result.scores.diff() <= 0).all()
    assert result.masks.shape == (len(result), 300, 451) and result.masks.any()
    assert (result.boxes >= 0).all() and (result.boxes <= torch.tensor([451, 300, 451, 300])).all()
    assert (result.boxes[:, 2:] >= result.boxes[:, :2]).all()
    assert set(result.timings) == {"load", "wait", *STAGES}


@both_variants
def test_masks_stay_in_their_boxes(variant, small_yolacts, photo):
    result = small_yolacts[variant](photo)
    margin = 3 * 451 / 24  # a prototype pixel, and the blur of the up-sampling
    for instance in result[:20]:
        rows, columns = torch.nonzero(instance.mask, as_tuple=True)
        if len(rows):
            x1, y1, x2, y2 = instance.box
            assert columns.min() >= x1 - margin and columns.max() <= x2 + margin
            assert rows.min() >= y1 - margin and rows.max() <= y2 + margin


@both_variants
def test_batch_size_does_not_change_results(variant, small_yolacts):
    model = small_yolacts[variant]
    images = smooth_images(5)
    alone = [model(image) for image in images]
    for result, expected in zip(model(images, batch_size=5), alone, strict=True):
        assert_same(result, expected)


@both_variants
def test_images_of_a_shared_forward_pass_get_their_own_results(variant, small_yolacts, monkeypatch):
    """Group images as on a GPU: all inputs have one size, so that all images share a pass."""
    model = small_yolacts[variant]
    images = smooth_images(4)
    alone = [model(image) for image in images]
    monkeypatch.setattr(
        "solo_infer.segmenters.base.forward_groups", lambda geometries, device: [[0, 1, 2, 3]]
    )
    for result, expected in zip(model(images, batch_size=4), alone, strict=True):
        assert result.labels[:10].tolist() == expected.labels[:10].tolist()
        torch.testing.assert_close(result.scores[:10], expected.scores[:10], rtol=0, atol=1e-4)
        torch.testing.assert_close(result.boxes[:10], expected.boxes[:10], rtol=0, atol=0.05)


@both_variants
def test_threads_can_share_one_model(variant, small_yolacts):
    model = copy.deepcopy(small_yolacts[variant])  # its optimized network is built by the threads
    images = smooth_images(4, seed=1)
    expected = [small_yolacts[variant](image) for image in images]
    start = threading.Barrier(4)

    def work(worker):
        start.wait()
        return [(index, model(images[index])) for index in (worker, (worker + 3) % 4)]

    with ThreadPoolExecutor(4) as pool:
        for results in pool.map(work, range(4)):
            for index, result in results:
                assert_same(result, expected[index])


@both_variants
def test_empty_result_has_the_same_types(variant, small_yolacts, photo):
    result = small_yolacts[variant](photo, thresholds=YOLACTPostprocessConfig(score_thr=1.0))
    assert isinstance(result, Result) and len(result) == 0
    assert result.masks.shape == (0, 300, 451)
    assert result.boxes.shape == (0, 4)
    assert (result.scores.dtype, result.labels.dtype, result.masks.dtype) == (
        torch.float32,
        torch.int64,
        torch.bool,
    )


@both_variants
def test_thin_images(variant, small_yolacts):
    for size in ((1, 1), (1, 4000), (3, 2)):
        result = small_yolacts[variant](np.full((*size, 3), 128, np.uint8))
        assert result.image_size == size and result.masks.shape == (len(result), *size)


def test_chunks_of_masks_do_not_change_results(small_yolacts, photo, monkeypatch):
    model = small_yolacts["mmdet"]
    expected = model(photo)
    monkeypatch.setattr(yolact, "CHUNK_BYTES", 3 * 4 * 24 * 24)  # three masks at a time
    assert_same_but_for_rounding(model(photo), expected)


def test_nms_pre_limits_the_anchors_of_each_level(small_yolacts, photo):
    model = small_yolacts["mmdet"]
    result = model(photo, thresholds=YOLACTPostprocessConfig(nms_pre=2, iou_thr=1.0))
    assert 0 < len(result) <= 5 * 2 * 3
    assert result.scores[0] == model(photo).scores[0]


@both_variants
def test_only_excludes_classes_before_nms(variant, small_yolacts, photo):
    model = small_yolacts[variant]
    cats = model.only("cat")(photo)
    assert set(cats.names) == {"cat"} and len(cats) >= len(model(photo).filter(classes="cat"))


@both_variants
def test_saved_model_loads_with_equal_results(variant, small_yolacts, photo, tmp_path):
    model = small_yolacts[variant]
    model.save_pretrained(tmp_path)
    for load in (load_model, YOLACT.from_pretrained):
        loaded = load(tmp_path, device="cpu")
        assert isinstance(loaded, YOLACT) and loaded.config == model.config
        assert_same(loaded(photo), model(photo))


def test_invalid_settings_are_named():
    for values in (
        {"variant": "solo"},
        {"backbone": "vgg"},
        {"anchor_sizes": (1, 2)},
        {"strides": (0, 1, 1, 1, 1)},
    ):
        with pytest.raises(ConfigError, match=f"{next(iter(values))}="):
            YOLACTConfig(**values)
    for values in ({"iou_thr": 1.5}, {"top_k": 0}, {"filter_thr": -1}):
        with pytest.raises(ConfigError, match=f"{next(iter(values))}="):
            YOLACTPostprocessConfig(**values)
    with pytest.raises(
        ConfigError, match="keep_ratio=False, short_side=400, long_side=500: expected equal sides"
    ):
        PreprocessConfig(short_side=400, long_side=500, keep_ratio=False)


@both_variants
def test_configuration_survives_json(variant):
    config = config_from_preset(yolact_preset(variant, "resnet101", 700))
    assert ModelConfig.from_dict(config.to_dict()) == config
    invalid = config.to_dict() | {"thresholds": {"sigma": 2.0}}
    with pytest.raises(ConfigError, match="YOLACTPostprocessConfig: unknown field"):
        ModelConfig.from_dict(invalid)


def test_checkpoints_of_mmdet_2(small_yolacts, tmp_path):
    """They name the semantic branch segm_head."""
    weights = small_yolacts["mmdet"].network.state_dict()
    renamed = {}
    for name, tensor in weights.items():
        name = name.replace("mask_head.segm_branch.", "segm_head.")
        name = name.replace("inner_blocks", "lateral_convs").replace("layer_blocks", "fpn_convs")
        renamed[
            name.replace(".0.weight", ".conv.weight").replace(".0.bias", ".conv.bias")
            if "neck" in name
            else name
        ] = tensor
    torch.save({"meta": {"CLASSES": ("ant", "bee", "cow")}, "state_dict": renamed}, tmp_path / "a.pth")
    checkpoint = read_checkpoint(tmp_path / "a.pth")
    assert all(torch.equal(checkpoint.state_dict[name], tensor) for name, tensor in weights.items())
    assert checkpoint.config.architecture.variant == "mmdet" and checkpoint.config.categories.names == (
        "ant",
        "bee",
        "cow",
    )
    del renamed["segm_head.segm_conv.weight"]
    torch.save(renamed, tmp_path / "b.pth")
    with pytest.raises(CheckpointError, match=r"does not fit yolact.*segm_conv\.weight .* is missing"):
        read_checkpoint(tmp_path / "b.pth")


def test_published_preprocessing(photo):
    inputs = {}
    for variant in YOLACT_VARIANTS:
        config = config_from_preset(yolact_preset(variant)).preprocessing
        geometry = plan(photo, config)
        assert (geometry.resized, geometry.padded) == ((550, 550), (550, 550))
        inputs[variant] = prepare([photo], [geometry], config, torch.device("cpu"))
    difference = (inputs["mmdet"] - inputs["original"]).abs().max()
    assert 0.1 / 58.4 < difference < 1.01 / 57.12  # OpenCV rounds uint8 values, the original does not
    assert procedural_weights.CALIBRATION.keys() >= {"yolact_r50", "yolact_r101"}


def test_published_thresholds_of_the_variants():
    original, mmdet = (config_from_preset(yolact_preset(variant)) for variant in reversed(YOLACT_VARIANTS))
    assert original.thresholds == replace(
        mmdet.thresholds, filter_thr=0.0, nms_pre=original.thresholds.nms_pre
    )
    assert original.thresholds.nms_pre > 3 * 88 * 88
