"""The state of torch around a call neither changes results, nor is changed, nor outlives the call."""

from dataclasses import replace
from functools import cache
from unittest.mock import patch

import pytest
import torch
from helpers.ambient_states import STATES, clear_caches, snapshot
from helpers.models import (
    DEFORMABLE,
    YOLACT_VARIANTS,
    randomize,
    small_config,
    small_network,
    small_tiny_config,
    small_tiny_network,
    small_yolact_config,
    small_yolact_network,
    variant_of,
)
from helpers.results import assert_same
from helpers.smooth_images import smooth_images

from solo_infer import PostprocessConfig, load_image, load_model
from solo_infer.config.solo import LITE0
from solo_infer.inference import solo_static
from solo_infer.inference.preprocess import plan, prepare
from solo_infer.segmenters.auto import build_segmenter

IMAGE = smooth_images(1)[0]


def _configs():
    """Every family and head, with each layer and each NMS in at least one of them."""
    lite = {"backbone": LITE0}
    wide = {**lite, "pyramid_channels": 256, "head_channels": 256, "stacked_convs": 1}
    yield "solo", variant_of(small_config("solo"), wide)
    greedy = replace(small_config("decoupled"), thresholds=PostprocessConfig(nms="greedy"))
    yield "decoupled", variant_of(greedy, lite)
    linear = replace(small_config("decoupled_light"), thresholds=PostprocessConfig(kernel="linear"))
    yield "decoupled_light", variant_of(linear, DEFORMABLE)
    yield "tiny", small_tiny_config()
    yield from ((f"yolact_{name}", small_yolact_config(name)) for name in YOLACT_VARIANTS)


CONFIGS = dict(_configs())
STATIC = ("solo", "decoupled_light")  # models whose path with static shapes is run too


@cache
def network(name):
    config = CONFIGS[name]
    builders = {"solo": small_network, "yolact": small_yolact_network, "tiny": small_tiny_network}
    build = builders[config.architecture.family]
    return randomize(build(config))


def run(name):
    """Return all that a new model of a network computes."""
    model = build_segmenter(CONFIGS[name], network(name))
    image = load_image(IMAGE)
    geometry = plan(image.pixels, model.config.preprocessing)
    inputs = prepare([image.pixels], [geometry], model.config.preprocessing, model.device, model.dtype)
    results = [model(IMAGE), model.only("cat")(torch.from_numpy(IMAGE).permute(2, 0, 1))]
    outputs = [inputs, *model.detect(inputs, [geometry])[0], *results[0].masks]
    if name in STATIC:
        outputs += detect_static(model, inputs, geometry)
    texts = [result.to_json() for result in (*results, results[0].filter(0.2, "cat"), results[0][::2])]
    return results, outputs, [model.count_candidates(inputs), *texts]


@torch.no_grad()
def detect_static(model, inputs, geometry):
    """Return the detections by the path of GPUs, which ``detect`` runs in the same surroundings."""
    with patch.object(solo_static, "is_supported", return_value=True):
        return model.detect(inputs, [geometry])[0]


@pytest.fixture(scope="module")
def expected():
    clear_caches()
    return {name: run(name) for name in CONFIGS}


def assert_equal(outcome, expected_outcome):
    for result, expected_result in zip(outcome[0], expected_outcome[0], strict=True):
        assert_same(result, expected_result)
        assert not result.packed_masks.is_inference()  # callers may change it
    for tensor, expected_tensor in zip(outcome[1], expected_outcome[1], strict=True):
        assert torch.equal(tensor, expected_tensor) and tensor.dtype == expected_tensor.dtype
    assert outcome[2] == expected_outcome[2]


@pytest.mark.parametrize("state", sorted({*STATES} - {"float16", "bfloat16", "device_context"}))
def test_predictions_do_not_depend_on_it(state, expected):
    """First calls of new models in the state fill every cache; later ones outside of it use them."""
    clear_caches()
    names = CONFIGS if state == "everything" else ("solo", "yolact_mmdet")
    for name in names:
        with STATES[state]():
            before = snapshot()
            inside = run(name)
            after = snapshot()
        assert len(inside[0][0]) > 0
        assert before == after, name
        assert_equal(inside, expected[name])
    for name in ("solo", "yolact_mmdet") if state == "everything" else ("yolact_mmdet",):
        assert_equal(run(name), expected[name])


@pytest.mark.parametrize("name", ["decoupled", "yolact_original"])
def test_loading_does_not_depend_on_it(name, tmp_path):
    folder = build_segmenter(CONFIGS[name], network(name)).save_pretrained(tmp_path / name)
    expected = load_model(folder, device="cpu")(IMAGE)
    for state in ("float64", "default_device", "inference_mode", "everything"):
        with STATES[state]():
            before = snapshot()
            model = load_model(folder, device="cpu")
            result = model(IMAGE)
            after = snapshot()
        assert before == after
        assert_same(result, expected)
        tensors = model.network.state_dict()
        assert not any(tensor.is_inference() or tensor.is_meta for tensor in tensors.values())
        assert all(torch.equal(tensors[key], value) for key, value in network(name).state_dict().items())
