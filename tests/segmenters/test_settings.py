"""Settings of a call: lowest score, input size, NMS across classes; hints for other keywords."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.results import assert_same
from helpers.smooth_images import smooth_images

from solo_infer import SOLO, YOLACT, PostprocessConfig, evaluate, load_model
from solo_infer.errors import ConfigError, KeywordError
from solo_infer.inference.preprocess import plan
from solo_infer.models.yolact.anchors import _anchors
from solo_infer.ops.greedy_nms import greedy_nms
from solo_infer.ops.native.paste_masks import _taps
from solo_infer.ops.paste_by_tiles import _tiles
from solo_infer.results.result_list import ResultList
from solo_infer.segmenters.tiny import Tiny

MODELS = ("solo", "decoupled", "decoupled_light", "solov2", "mmdet", "original", "tiny")


@pytest.fixture(scope="module")
def models(small_models, small_yolacts, small_tiny):
    return {**small_models, **small_yolacts, "tiny": small_tiny}


@pytest.fixture(scope="session")
def photo(photo):
    return np.ascontiguousarray(photo[::3, ::3])


@pytest.fixture
def model(models, request):
    return models[request.param]


every_model = pytest.mark.parametrize("model", MODELS, indirect=True)


# --- Lowest score


@every_model
def test_lowest_score_of_a_call_filters_the_result(model, photo):
    everything = model(photo)
    middle = len(everything) // 2
    exact = everything.scores[middle].item()  # is kept
    result = model(photo, min_score=exact)
    assert_same(result, everything.filter(exact))
    assert len(result) == middle + 1
    assert_same(model(photo, min_score=0.5), everything.filter(0.5))
    assert (everything.display_threshold, result.display_threshold) == (0.3, exact)


def test_lowest_score_of_every_way_to_predict(small_model, photo):
    model, everything = small_model, small_model(photo)
    for min_score in (0.0, np.float32(0.5), 1):
        expected = everything.filter(min_score)
        for result in (
            *model([photo], min_score=min_score),
            *model.stream([photo], min_score=min_score),
            model.with_settings(min_score=min_score)(photo),
            model.predict(photo, min_score=min_score, thresholds=model.config.thresholds),
        ):
            assert_same(result, expected)
            assert result.display_threshold == pytest.approx(float(min_score))


def test_lowest_score_is_also_drawn(small_model, photo):
    low = small_model(photo, min_score=0.06, thresholds=PostprocessConfig(nms_pre=12, sigma=10.0))
    assert (low.scores < 0.3).any()
    assert low.plot().tobytes() == low.plot(min_score=0.0).tobytes()
    assert low.plot().tobytes() != low.plot(min_score=0.3).tobytes()


@pytest.mark.parametrize("min_score", [-0.1, 1.1, "0.5", float("nan"), [0.5]])
def test_invalid_lowest_score(small_model, photo, min_score):
    with pytest.raises(ConfigError, match="min_score=.*expected a number in 0..1"):
        small_model(photo, min_score=min_score)


# --- Input size


@every_model
@pytest.mark.parametrize("input_size", [64, (96, 224)])
def test_input_size_of_a_call(model, photo, input_size):
    if not model.config.preprocessing.keep_ratio and isinstance(input_size, tuple):
        with pytest.raises(ConfigError, match="scales every image to a square"):
            model(photo, input_size=input_size)
        return
    for image in (photo, np.ascontiguousarray(photo.transpose(1, 0, 2))):
        result = model(image, input_size=input_size)
        sized = model.with_settings(input_size=input_size)
        height, width = plan(image, sized.config.preprocessing).padded
        assert height % 32 == width % 32 == 0
        if isinstance(input_size, int):
            assert max(height, width) == input_size
        else:
            assert sorted((height, width)) <= sorted(input_size)
        assert result.image_size == image.shape[:2]
        assert_same(result, sized(image))
    assert_same(model(photo), model(photo, input_size=None))


def test_published_input_size_gives_the_same_result(small_model, photo):
    own = small_model.config.preprocessing
    assert_same(small_model(photo, input_size=(own.short_side, own.long_side)), small_model(photo))


def test_invalid_input_size(small_model, photo):
    with pytest.raises(ConfigError, match="expected multiples of 32, e.g. 96 x 96"):
        small_model(photo, input_size=100)


@pytest.mark.parametrize("name", ["tiny", "mmdet", "decoupled_light"])
def test_threads_may_use_different_sizes(models, name):
    model = models[name]
    images = smooth_images(2, seed=3)
    sizes = [64, 96, None]
    expected = {size: [model(image, input_size=size) for image in images] for size in sizes}
    start = threading.Barrier(3)

    def work(size):
        start.wait()
        return size, [model(image, input_size=size) for image in images * 2]

    with ThreadPoolExecutor(3) as pool:
        for size, results in pool.map(work, sizes):
            for result, image_expected in zip(results, expected[size] * 2, strict=True):
                assert_same(result, image_expected)


def test_many_sizes_keep_bounded_resources(models):
    image = np.full((20, 30, 3), 128, np.uint8)
    for side in range(32, 32 * 40, 32):
        geometry = plan(image, models["tiny"].with_settings(input_size=side).config.preprocessing)
        assert geometry.padded[1] == side
        if side <= 32 * 8:
            for name in ("tiny", "original"):
                models[name](image, input_size=side)
    for cache in (_anchors, _tiles, _taps):
        assert cache.cache_info().maxsize <= 64 and cache.cache_info().currsize <= 64


# --- NMS across classes


@pytest.mark.parametrize("nms", ["matrix", "greedy"])
@pytest.mark.parametrize("name", ["solo", "decoupled", "decoupled_light", "solov2", "tiny"])
def test_across_classes_removes_copies_of_other_classes(models, name, nms, photo):
    model = models[name]
    settings = replace(
        model.config.thresholds, nms=nms, kernel="linear", filter_thr=0.001, nms_pre=150, max_per_image=1000
    )
    apart = model(photo, thresholds=settings)
    across = model(photo, thresholds=settings, across_classes=True)
    assert len(set(across.labels.tolist())) > 1
    assert 0 < len(across) < len(apart)
    if nms == "greedy":
        kept = greedy_nms(
            across.masks, torch.zeros_like(across.labels), across.scores, iou_thr=0.9
        )  # full-size masks differ slightly from those that NMS compares
        assert len(kept.keep) == len(across)
    assert_same(across, model(photo, thresholds=replace(settings, across_classes=True)))
    assert_same(across, model.with_settings(thresholds=settings, across_classes=True)(photo))
    assert_same(apart, model(photo, thresholds=replace(settings, across_classes=True), across_classes=False))


@pytest.mark.parametrize("name", ["mmdet", "original"])
def test_across_classes_of_yolact(models, name, photo):
    model = models[name]
    settings = replace(model.config.thresholds, filter_thr=0.01, max_per_image=1000)
    apart = model(photo, thresholds=settings)
    across = model(photo, thresholds=settings, across_classes=True)
    assert 0 < len(across) < len(apart)
    boxes = [tuple(box) for box in across.boxes.tolist()]
    assert len(boxes) == len(set(boxes))


def test_across_classes_is_a_bool(small_model, photo):
    with pytest.raises(ConfigError, match="across_classes is a str: expected a bool"):
        small_model(photo, across_classes="yes")


# --- Copies


def test_settings_are_kept_by_copies_and_not_by_the_model(small_model, photo):
    before = small_model.config
    copy = small_model.with_settings(min_score=0.2, input_size=64, across_classes=True)
    assert copy.network is small_model.network and small_model.config == before
    assert copy.only("dog")(photo).display_threshold == 0.2
    assert copy.config.thresholds.across_classes and copy.config.preprocessing.long_side == 64
    expected = copy(photo)
    assert_same(copy.with_settings(min_score=0.0)(photo), expected)  # never lower than the model's own


def test_results_of_a_list_have_a_picture(small_model, photo):
    results = small_model([photo, photo])
    assert isinstance(results, ResultList) and results._repr_png_().startswith(b"\x89PNG")


# --- Keywords of other libraries


@pytest.mark.parametrize(
    ("keyword", "hint"),
    [
        ("conf", "min_score="),
        ("threshold", "min_score="),
        ("confidence", "min_score="),
        ("score_thr", "min_score="),
        ("score_threshold", "min_score="),
        ("imgsz", "input_size="),
        ("size", "input_size="),
        ("max_det", "max_per_image="),
        ("iou", "nms_iou="),
        ("agnostic_nms", "across_classes=True"),
        ("classes", "model.only"),
        ("stream", "model.stream(source)"),
        ("device", "model.to("),
        ("half", "dtype="),
        ("verbose", "prints nothing"),
        ("save", "result.save"),
        ("show", "result.plot()"),
        ("batch", "batch_size="),
        ("min_scor", "'min_score'"),
        ("nonsense", "Keywords: source, color"),
    ],
)
def test_call_explains_other_keywords(small_model, photo, keyword, hint):
    for call in (small_model, small_model.predict, small_model.stream):
        with pytest.raises(KeywordError) as caught:
            call(photo, **{keyword: 1})  # a stream too, before its first image
        assert f"{keyword}=1" in str(caught.value) and hint in str(caught.value)


@pytest.mark.parametrize(
    ("keyword", "hint"),
    [
        ("weights", "name_or_path="),
        ("torch_dtype", "dtype="),
        ("conf", "model(image, min_score=...)"),
        ("imgsz", "model(image, input_size=...)"),
        ("local_files_only", "offline=True"),
        ("cache_dir", "SOLO_INFER_HOME"),
        ("devise", "'device'"),
    ],
)
@pytest.mark.parametrize("load", [SOLO.from_pretrained, YOLACT.from_pretrained, load_model])
def test_loading_explains_other_keywords(load, keyword, hint):
    with pytest.raises(KeywordError) as caught:
        load(**{keyword: "x"})
    assert hint in str(caught.value)


def test_results_and_evaluation_explain_other_keywords(small_model, photo, tmp_path):
    result = small_model(photo)
    for call, hint in (
        (lambda: result.plot(conf=0.5), "min_score="),
        (lambda: result.plot(labels=False), "captions="),
        (lambda: result.save(tmp_path / "a.png", threshold=0.5), "min_score="),
        (lambda: result.save(filename="a.png"), "path="),
        (lambda: result.filter(score=0.5), "min_score="),
        (lambda: evaluate(small_model, tmp_path, ann_file="a.json"), "annotations="),
    ):
        with pytest.raises(KeywordError) as caught:
            call()
        assert hint in str(caught.value)
    assert not list(tmp_path.iterdir())


# --- Construction


@pytest.mark.parametrize("kind", [SOLO, YOLACT, Tiny])
def test_construction_by_name_names_the_loader(kind):
    name = kind.__name__
    for build, call in (
        (lambda: kind("tiny"), "('tiny')"),
        (lambda: kind(), "('tiny')"),
        (lambda: kind("tiny", device="cuda"), "('tiny')"),
        (lambda: kind(weights="a.pth"), "('a.pth')"),
        (lambda: kind(Path("a.pth")), "a.pth"),
        (lambda: kind("tiny", "other"), "('tiny')"),
    ):
        with pytest.raises(ConfigError) as caught:
            build()
        assert f"{name}.from_pretrained(" in str(caught.value) and call in str(caught.value)


def test_construction_of_other_values_names_the_expected_type(small_model):
    with pytest.raises(ConfigError, match="config is a int: expected a ModelConfig"):
        SOLO(3, small_model.network)
    with pytest.raises(ConfigError, match=r"SOLO\.from_pretrained"):
        SOLO(small_model.config)


def test_thresholds_are_hashable():
    """They are part of the key of CUDA graphs."""
    assert hash(PostprocessConfig(across_classes=True)) != hash(PostprocessConfig())
