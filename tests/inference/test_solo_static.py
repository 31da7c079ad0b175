"""Detections with static shapes equal those of the dynamic path, for any number of candidates."""

import copy
from dataclasses import replace

import pytest
import torch
from helpers.models import HEADS
from helpers.smooth_images import smooth_images

from solo_infer import PostprocessConfig
from solo_infer.inference import solo, solo_static
from solo_infer.inference.cuda_graphs import GraphCache
from solo_infer.inference.preprocess import plan, prepare
from solo_infer.models.optimized.static_masks import static_masks
from solo_infer.models.solo import masks as solo_masks
from solo_infer.ops import dispatch, mask_statistics, packed_masks
from solo_infer.ops.paste_masks import paste_masks
from solo_infer.runtime.stopwatch import Stopwatch

CPU = torch.device("cpu")
# Rounding differs between the two paths. With these images no mask score of a candidate is within 1e-5 of the
# threshold, where it would decide about a pixel and thereby change other scores.
SEED = 41


def make_batch(model, count=3):
    """Return the geometries and the network inputs of images of one padded size."""
    images = [image for image in smooth_images(4 * count, SEED) if image.shape[:2] in ((80, 120), (80, 119))]
    images = images[:count]
    geometries = [plan(image, model.config.preprocessing) for image in images]
    assert len({geometry.padded for geometry in geometries}) == 1 < len(images)
    return geometries, prepare(images, geometries, model.config.preprocessing, CPU, model.dtype)


@torch.no_grad()
def detect_static(model, thresholds, class_mask=None, stopwatch=None):
    """Return the detections of a batch with static shapes."""
    geometries, inputs = make_batch(model)
    class_mask = torch.ones(3) if class_mask is None else class_mask
    settings = geometries, thresholds, class_mask, stopwatch or Stopwatch()
    return solo_static.detect_batch(GraphCache(), model.inference_network, inputs, *settings)


@torch.no_grad()
def detect_dynamic(model, thresholds, class_mask=None):
    """Return the detections of the same batch by the dynamic path.

    Images with more candidates than the first capacity run alone, as they do with static shapes: a batch
    rounds differently.
    """
    geometries, inputs = make_batch(model)
    network, stopwatch = model.inference_network, Stopwatch()
    features = solo.extract_features(network, inputs, class_mask, stopwatch)
    detections = solo.detect_features(network, features, geometries, thresholds, stopwatch)
    for image, scores in enumerate(features.scores):
        if (scores > thresholds.score_thr).sum() > solo_static.CAPACITIES[0]:
            alone = solo.Features([level[image, None] for level in features.levels], scores[None])
            (detections[image],) = solo.detect_features(
                network, alone, [geometries[image]], thresholds, stopwatch
            )
    return detections


def in_the_order_of(expected, image):
    """Return detections in the order of others: scores that differ by rounding may change places."""
    assert len(image.scores) == len(expected.scores)
    order, left = [], list(range(len(image.scores)))
    for label, score, mask in zip(expected.labels, expected.scores, expected.packed_masks, strict=True):
        ties = [i for i in left if image.labels[i] == label and (image.scores[i] - score).abs() <= 2e-3]
        assert ties, f"no instance of class {label} with a score of {score}"
        bits = [packed_masks.unpack(image.packed_masks[i] ^ mask, 120).sum() for i in ties]
        order.append(ties[bits.index(min(bits))])
        left.remove(order[-1])
    return type(image)(*(values[order] for values in image))


def assert_close(detections, expected):
    for image, expected_image in zip(detections, expected, strict=True):
        image = in_the_order_of(expected_image, image)
        assert torch.equal(image.labels, expected_image.labels)
        difference = (image.scores - expected_image.scores).abs()
        # Another order of summation may move a pixel across the threshold, and with it a mean score.
        assert (difference > 1e-5).sum() <= 0.02 * len(difference) and (difference <= 2e-3).all()
        assert image.packed_masks.shape == expected_image.packed_masks.shape
        differing_bits = image.packed_masks ^ expected_image.packed_masks
        differing = packed_masks.unpack(differing_bits, 120).flatten(1).sum(1)
        assert (differing <= 2).all() and differing.sum() <= 5
        assert torch.equal(image.boxes[differing == 0], expected_image.boxes[differing == 0])


@pytest.mark.parametrize("kernel", ["gaussian", "linear"])
@pytest.mark.parametrize("head", HEADS)
def test_detections_equal_the_dynamic_path(head, kernel, small_models):
    thresholds = PostprocessConfig(kernel=kernel)
    detections = detect_static(small_models[head], thresholds)
    assert_close(detections, detect_dynamic(small_models[head], thresholds))
    assert all(len(image.scores) > 10 for image in detections)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("thresholds", [
    PostprocessConfig(score_thr=1.0),
    PostprocessConfig(filter_thr=1.0),
    PostprocessConfig(filter_thr=0.0, max_per_image=1000),
    PostprocessConfig(nms_pre=7, max_per_image=3),
    PostprocessConfig(mask_thr=0.9, score_thr=0.05),
    PostprocessConfig(across_classes=True),
])  # fmt: skip
def test_detections_equal_under_other_thresholds(head, thresholds, small_models):
    model = small_models[head]
    assert_close(detect_static(model, thresholds), detect_dynamic(model, thresholds))


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("capacities", [(8, 512), (8, 16), (170, 172), (170, 512), (1,)])
def test_more_candidates_than_the_capacity(head, capacities, small_models, monkeypatch):
    """Run again with a larger capacity, or on the dynamic path beyond the largest one."""
    monkeypatch.setattr(solo_static, "CAPACITIES", capacities)
    detections = detect_static(small_models[head], PostprocessConfig())
    assert_close(detections, detect_dynamic(small_models[head], PostprocessConfig()))
    assert len(detections[0].scores) > 10


class SynchronizingStopwatch(Stopwatch):
    """Stopwatch that claims to synchronize with a device at each mark."""

    synchronizes = True


def test_stages_are_marked_if_the_stopwatch_synchronizes(small_models):
    synchronizing, ordinary = SynchronizingStopwatch(), Stopwatch()
    model = small_models["solo"]
    detections = detect_static(model, PostprocessConfig(), stopwatch=synchronizing)
    assert_close(detections, detect_dynamic(model, PostprocessConfig()))
    detect_static(model, PostprocessConfig(), stopwatch=ordinary)
    assert list(synchronizing.seconds) == ["backbone", "pyramid", "classes", "masks", "post"]
    assert list(ordinary.seconds) == ["post"]


@pytest.mark.parametrize("head", HEADS)
def test_chunks_of_one_candidate(head, small_models, monkeypatch):
    thresholds = PostprocessConfig(score_thr=0.3)
    monkeypatch.setattr(solo_static, "CAPACITIES", (16, 512))
    expected = detect_dynamic(small_models[head], thresholds)
    monkeypatch.setattr(solo_masks, "CPU_CHUNK_BYTES", 1)
    monkeypatch.setattr(mask_statistics, "_CHUNK_BYTES", 1)
    assert_close(detect_static(small_models[head], thresholds), expected)


def test_excluded_classes_are_no_candidates(small_models):
    model, class_mask = small_models["decoupled"], torch.tensor([0.0, 1.0, 0.0])
    detections = detect_static(model, PostprocessConfig(), class_mask)
    assert_close(detections, detect_dynamic(model, PostprocessConfig(), class_mask))
    assert set(detections[0].labels.tolist()) == {1}


@pytest.mark.parametrize("name", ["solo_r50", "decoupled_light_r50"])
@torch.no_grad()
def test_published_architectures(name, procedural, photo):
    model = procedural(name)
    config = replace(model.config.preprocessing, short_side=128, long_side=192)
    geometry = plan(photo, config)
    inputs = prepare([photo], [geometry], config, CPU, model.dtype)
    network, thresholds = model.inference_network, model.config.thresholds
    features = solo.extract_features(network, inputs, torch.ones(80), Stopwatch())
    detections = solo_static.detect_static(network, features, thresholds, 2048, Stopwatch())
    (expected,) = solo.detect_features(network, features, [geometry], thresholds, Stopwatch())
    count = int(detections.counts[0, 0])
    assert 0 < count == len(expected.scores) and 0 < int(detections.counts[1, 0]) <= 2048
    assert torch.equal(detections.labels[0, :count], expected.labels)
    torch.testing.assert_close(detections.scores[0, :count], expected.scores, rtol=0, atol=1e-5)
    soft = detections.masks[0, :count]
    packed, _ = paste_masks(soft, geometry.padded, geometry.resized, geometry.original, thresholds.mask_thr)
    assert packed_masks.popcount(packed ^ expected.packed_masks).sum(1).max() <= 5


def test_candidates_are_in_mmdets_order():
    scores = torch.rand(3, 20, 4, generator=torch.Generator().manual_seed(1))
    scores[1] = 0.0
    candidates = solo_static.select_candidates(scores, 0.5, 64)
    for image in range(3):
        expected = solo.find_candidates(scores[image], 0.5)
        count = int(candidates.counts[image])
        assert count == len(expected.cells) == int(candidates.valid[image].sum())
        assert torch.equal(candidates.cells[image, :count], expected.cells)
        assert torch.equal(candidates.labels[image, :count], expected.labels)
        assert torch.equal(candidates.scores[image, :count], expected.scores)
    first = solo_static.select_candidates(scores, 0.5, 8)
    assert torch.equal(first.cells, candidates.cells[:, :8])
    assert torch.equal(first.counts, candidates.counts)


@pytest.mark.parametrize("head", HEADS)
@torch.no_grad()
def test_static_masks_equal_the_masks_of_the_head(head, small_models):
    model = small_models[head]
    _, inputs = make_batch(model)
    network = model.inference_network
    levels = network.features(inputs)
    num_cells = len(network.mask_head.cells.level)
    cells = torch.stack([torch.randperm(num_cells)[:30].sort().values for _ in inputs])
    scores = static_masks(network.mask_head, levels).scores(cells)
    masks_per_image = network.mask_head.masks(levels, list(cells))
    expected = torch.stack([masks.scores(row) for masks, row in zip(masks_per_image, cells, strict=True)])
    torch.testing.assert_close(scores, expected, rtol=0, atol=1e-5)


def test_scores_are_float32_in_half_precision(small_models):
    model = small_models["decoupled_light"]
    half = type(model)(model.config, copy.deepcopy(model.network)).to(dtype=torch.bfloat16)
    detections = detect_static(half, PostprocessConfig())
    assert detections[0].scores.dtype == torch.float32
    for image, expected in zip(detections, detect_dynamic(half, PostprocessConfig()), strict=True):
        torch.testing.assert_close(image.scores, expected.scores, rtol=0, atol=0.02)


def test_greedy_nms_is_not_supported(monkeypatch):
    monkeypatch.setattr(solo_static, "graphs_allowed", lambda device: True)
    assert solo_static.is_supported(CPU, PostprocessConfig())
    assert not solo_static.is_supported(CPU, PostprocessConfig(nms="greedy"))


@torch.no_grad()
def test_levels_of_unusual_sizes_run_without_the_kernel(small_models, monkeypatch):
    monkeypatch.setattr(dispatch, "triton_allowed", lambda device: True)
    monkeypatch.setattr(dispatch, "_load", lambda name: pytest.fail(f"{name} was loaded"))
    head, config = small_models["solo"].network.mask_head, small_models["solo"].config.architecture
    generator = torch.Generator().manual_seed(0)
    levels = [torch.randn(1, config.pyramid_channels, 4, 6, generator=generator)] * 5
    statistics = static_masks(head, levels).statistics(torch.tensor([[0, 5, 224]]), 0.5)
    assert statistics.areas.shape == statistics.sums.shape == (1, 3)
