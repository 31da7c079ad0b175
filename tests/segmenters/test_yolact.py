"""YOLACT as users hold it: both kinds, loaded, called, shared, saved."""

import copy
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.models import YOLACT_VARIANTS, small_yolact_config
from segmenters.test_segmenter import assert_equal, pictures

from solo_infer import SOLO, YOLACT, PostprocessConfig, YOLACTConfig, YOLACTPostprocessConfig, load_model
from solo_infer.config import ModelConfig, PreprocessConfig, find_preset
from solo_infer.config.presets import config_from_preset
from solo_infer.config.yolact import yolact_preset
from solo_infer.diagnostics import procedural_weights
from solo_infer.diagnostics.benchmark import STAGES
from solo_infer.errors import CheckpointError, ConfigError
from solo_infer.models import build_network
from solo_infer.models.optimized.optimize import inference_twin
from solo_infer.results.result import Result
from solo_infer.weights.checkpoint import read_checkpoint

both_kinds = pytest.mark.parametrize("variant", YOLACT_VARIANTS)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("yolact_r50", 35_293_711),
        ("yolact_r101", 54_285_839),
        ("yolact_original_r50", 31_164_943),
        ("yolact_original_r101", 50_157_071),
        ("yolact_original_r101_700", 50_157_071),
    ],
)
def test_number_of_parameters(name, parameters):
    network = build_network(find_preset(name).architecture, device="meta")
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters


@both_kinds
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


@both_kinds
def test_masks_stay_in_their_boxes(variant, small_yolacts, photo):
    result = small_yolacts[variant](photo)
    reach = 3 * 451 / 24  # a prototype pixel of margin, and what the up-sampling blurs
    for instance in result[:20]:
        rows, columns = torch.nonzero(instance.mask, as_tuple=True)
        if len(rows):
            x1, y1, x2, y2 = instance.box
            assert columns.min() >= x1 - reach and columns.max() <= x2 + reach
            assert rows.min() >= y1 - reach and rows.max() <= y2 + reach


@both_kinds
def test_batches_change_nothing(variant, small_yolacts):
    model = small_yolacts[variant]
    images = pictures(5)
    alone = [model(image) for image in images]
    for result, expected in zip(model(images, batch_size=5), alone, strict=True):
        assert_equal(result, expected)


@both_kinds
def test_a_shared_forward_pass_gives_each_image_its_own(variant, small_yolacts, monkeypatch):
    """What a GPU does: all inputs are of one size, so that all images share a pass."""
    model = small_yolacts[variant]
    images = pictures(4)
    alone = [model(image) for image in images]
    monkeypatch.setattr(YOLACT, "_groups", lambda self, geometries: [[0, 1, 2, 3]])
    for result, expected in zip(model(images, batch_size=4), alone, strict=True):
        assert result.labels[:10].tolist() == expected.labels[:10].tolist()
        torch.testing.assert_close(result.scores[:10], expected.scores[:10], rtol=0, atol=1e-4)
        torch.testing.assert_close(result.boxes[:10], expected.boxes[:10], rtol=0, atol=0.05)


@both_kinds
def test_threads_share_one_model(variant, small_yolacts):
    model = copy.deepcopy(small_yolacts[variant])  # so that its twin is made by the threads
    images = pictures(8, seed=1)
    expected = [small_yolacts[variant](image) for image in images]
    start = threading.Barrier(8)

    def work(worker):
        start.wait()
        return [(index, model(images[index])) for index in (worker, (worker + 3) % 8)]

    with ThreadPoolExecutor(8) as pool:
        for results in pool.map(work, range(8)):
            for index, result in results:
                assert_equal(result, expected[index])


@both_kinds
def test_nothing_found_is_the_same_type(variant, small_yolacts, photo):
    result = small_yolacts[variant](photo, thresholds=YOLACTPostprocessConfig(score_thr=1.0))
    assert isinstance(result, Result) and len(result) == 0
    assert result.masks.shape == (0, 300, 451)
    assert result.boxes.shape == (0, 4)
    assert (result.scores.dtype, result.labels.dtype, result.masks.dtype) == (
        torch.float32,
        torch.int64,
        torch.bool,
    )


@both_kinds
def test_thin_images(variant, small_yolacts):
    for size in ((1, 1), (1, 4000), (3, 2)):
        result = small_yolacts[variant](np.full((*size, 3), 128, np.uint8))
        assert result.image_size == size and result.masks.shape == (len(result), *size)


def test_memory_is_bounded_by_chunks(small_yolacts, photo, monkeypatch):
    from solo_infer.inference import yolact

    model = small_yolacts["mmdet"]
    expected = model(photo)
    monkeypatch.setattr(yolact, "CHUNK_BYTES", 3 * 4 * 24 * 24)  # three masks at a time
    assert_equal(model(photo), expected)


def test_few_anchors_of_each_level(small_yolacts, photo):
    model = small_yolacts["mmdet"]
    few = model(photo, thresholds=YOLACTPostprocessConfig(nms_pre=2, iou_thr=1.0))
    assert 0 < len(few) <= 5 * 2 * 3
    assert few.scores[0] == model(photo).scores[0]


@both_kinds
def test_only_some_classes(variant, small_yolacts, photo):
    model = small_yolacts[variant]
    cats = model.only("cat")(photo)
    assert set(cats.names) == {"cat"} and len(cats) >= len(model(photo).filter(classes="cat"))


@both_kinds
def test_saved_and_loaded(variant, small_yolacts, photo, tmp_path):
    model = small_yolacts[variant]
    model.save_pretrained(tmp_path)
    for load in (load_model, YOLACT.from_pretrained):
        again = load(tmp_path, device="cpu")
        assert isinstance(again, YOLACT) and again.config == model.config
        assert_equal(again(photo), model(photo))


def test_a_model_of_the_other_family_is_refused(small_yolacts, small_model, tmp_path, monkeypatch):
    small_yolacts["mmdet"].save_pretrained(tmp_path / "yolact")
    small_model.save_pretrained(tmp_path / "solo")
    with pytest.raises(ConfigError, match="is a yolact model .* expected one of 'solo'. Use load_model"):
        SOLO.from_pretrained(tmp_path / "yolact", device="cpu")
    with pytest.raises(ConfigError, match="is a decoupled_light model .* expected one of 'yolact'"):
        YOLACT.from_pretrained(tmp_path / "solo", device="cpu")
    assert isinstance(load_model(tmp_path / "solo", device="cpu"), SOLO)
    monkeypatch.setattr("solo_infer.weights.fetch.fetch", lambda *_, **__: pytest.fail("downloaded"))
    with pytest.raises(ConfigError, match="authors_yolact_r50 is a yolact_original model"):
        SOLO.from_pretrained("authors_yolact_r50", device="cpu")


def test_thresholds_of_the_other_family_are_refused(small_yolacts, small_model, photo):
    for model, wrong in (
        (small_yolacts["mmdet"], PostprocessConfig()),
        (small_model, YOLACTPostprocessConfig()),
    ):
        with pytest.raises(ConfigError, match="takes (Yolact)?Thresholds"):
            model(photo, thresholds=wrong)
        with pytest.raises(ConfigError, match="takes (Yolact)?Thresholds"):
            model.with_thresholds(wrong)


def test_settings_out_of_range():
    for wrong in (
        {"head": "solo"},
        {"backbone": "vgg"},
        {"anchor_sizes": (1, 2)},
        {"strides": (0, 1, 1, 1, 1)},
    ):
        with pytest.raises(ConfigError, match=f"{next(iter(wrong))}="):
            YOLACTConfig(**wrong)
    for wrong in ({"iou_thr": 1.5}, {"top_k": 0}, {"filter_thr": -1}):
        with pytest.raises(ConfigError, match=f"{next(iter(wrong))}="):
            YOLACTPostprocessConfig(**wrong)
    with pytest.raises(ConfigError, match="keep_ratio=False makes squares"):
        PreprocessConfig(short_side=400, long_side=500, keep_ratio=False)


@both_kinds
def test_configuration_as_json(variant):
    config = config_from_preset(yolact_preset(variant, "resnet101", 700))
    assert ModelConfig.from_dict(config.to_dict()) == config
    wrong = config.to_dict() | {"thresholds": {"sigma": 2.0}}
    with pytest.raises(ConfigError, match="YolactThresholds: unknown field"):
        ModelConfig.from_dict(wrong)


def test_names_of_mmdet_2(small_yolacts, tmp_path):
    """Its files name the semantic branch segm_head."""
    weights = small_yolacts["mmdet"].network.state_dict()
    theirs = {}
    for name, tensor in weights.items():
        name = name.replace("mask_head.segm_branch.", "segm_head.")
        name = name.replace("inner_blocks", "lateral_convs").replace("layer_blocks", "fpn_convs")
        theirs[
            name.replace(".0.weight", ".conv.weight").replace(".0.bias", ".conv.bias")
            if "neck" in name
            else name
        ] = tensor
    torch.save({"meta": {"CLASSES": ("ant", "bee", "cow")}, "state_dict": theirs}, tmp_path / "a.pth")
    found = read_checkpoint(tmp_path / "a.pth")
    assert all(torch.equal(found.state_dict[name], tensor) for name, tensor in weights.items())
    assert found.config.architecture.variant == "mmdet" and found.config.categories.names == (
        "ant",
        "bee",
        "cow",
    )
    del theirs["segm_head.segm_conv.weight"]
    torch.save(theirs, tmp_path / "b.pth")
    with pytest.raises(CheckpointError, match=r"does not fit yolact.*segm_conv\.weight .* is missing"):
        read_checkpoint(tmp_path / "b.pth")


@both_kinds
@torch.no_grad()
def test_the_twin_folds_batch_norm(variant):
    network = build_network(small_yolact_config(variant).architecture)
    generator = torch.Generator().manual_seed(3)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(generator=generator).mul_(0.1)
            module.running_var.uniform_(0.5, 2.0, generator=generator)
    twin = inference_twin(network)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in twin.modules())
    images = torch.randn(1, 3, 96, 96, generator=generator)
    for found, expected in zip(twin(images)[0], network(images)[0], strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_the_published_preprocessing(photo):
    from solo_infer.inference.preprocess import plan, prepare

    inputs = {}
    for variant in YOLACT_VARIANTS:
        config = config_from_preset(yolact_preset(variant)).preprocessing
        geometry = plan(photo, config)
        assert (geometry.resized, geometry.padded) == ((550, 550), (550, 550))
        inputs[variant] = prepare(photo, geometry, config, torch.device("cpu"))
    apart = (inputs["yolact"] - inputs["yolact_original"]).abs().max()
    assert 0.1 / 58.4 < apart < 1.01 / 57.12  # OpenCV rounds to whole values on uint8, the author does not
    assert procedural_weights.CALIBRATION.keys() >= {"yolact_r50", "yolact_r101"}


def test_published_configurations_are_of_their_own():
    author, openmmlab = (config_from_preset(yolact_preset(variant)) for variant in reversed(YOLACT_VARIANTS))
    assert author.thresholds == replace(
        openmmlab.thresholds, filter_thr=0.0, nms_pre=author.thresholds.nms_pre
    )
    assert author.thresholds.nms_pre > 3 * 88 * 88
