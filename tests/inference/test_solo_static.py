"""Fixed slots give what the ordinary way gives: the same detections, whatever there is to detect."""

import copy
from dataclasses import replace

import pytest
import torch
from helpers.models import HEADS
from segmenters.test_segmenter import pictures
from solo_infer.inference.solo_cuda import FastPath, cell_table

from solo_infer import PostprocessConfig
from solo_infer.inference import solo, solo_cuda, solo_static
from solo_infer.inference.preprocess import plan, prepare_batch
from solo_infer.models.optimized.static_masks import CellTable, slot_maps
from solo_infer.ops import dispatch, mask_statistics, packed_masks
from solo_infer.ops.paste_masks import paste_masks
from solo_infer.runtime.stopwatch import Stopwatch

CPU = torch.device("cpu")


def batch_of(model, count=3):
    """Return images of one padded size, their geometries and the network input."""
    images = [image for image in pictures(4 * count, seed=3) if image.shape[:2] in ((80, 120), (80, 119))][
        :count
    ]
    geometries = [plan(image, model.config.preprocessing) for image in images]
    assert len({geometry.padded for geometry in geometries}) == 1 < len(images)
    return geometries, prepare_batch(images, geometries, model.config.preprocessing, CPU, model.dtype)


@torch.no_grad()
def both_ways(model, thresholds, wanted=None, watch=None):
    """Return the detections of a batch by the fixed slots and by the ordinary way."""
    geometries, inputs = batch_of(model)
    weights = torch.ones(3) if wanted is None else wanted

    def ordinary(levels, scores, geometry):
        return model._detect(levels, scores, [geometry], thresholds)[0]

    path = FastPath(model.config.architecture)
    network = model.inference_network
    found = path.find(network, inputs, weights, geometries, thresholds, ordinary, watch or Stopwatch())
    levels = network.features(inputs)
    scores = network.class_scores(levels) * weights
    expected = [
        ordinary([level[image, None] for level in levels], scores[image, None], geometry)
        for image, geometry in enumerate(geometries)
    ]
    return found, expected


def assert_same(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.labels, other.labels)
        difference = (one.scores - other.scores).abs()
        # Sums in another order may move a pixel that lies on a threshold, and with it a mean score.
        assert (difference > 1e-5).sum() <= 0.02 * len(difference) and (difference <= 2e-3).all()
        assert one.packed_masks.shape == other.packed_masks.shape
        different = packed_masks.unpack(one.packed_masks ^ other.packed_masks, 120).flatten(1).sum(1)
        assert (different <= 2).all() and different.sum() <= 5  # they lie on a threshold
        assert torch.equal(one.boxes[different == 0], other.boxes[different == 0])


@pytest.mark.parametrize("kernel", ["gaussian", "linear"])
@pytest.mark.parametrize("head", HEADS)
def test_same_detections(head, kernel, small_models):
    found, expected = both_ways(small_models[head], PostprocessConfig(kernel=kernel))
    assert_same(found, expected)
    assert all(len(one.scores) > 10 for one in found)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("thresholds", [
    PostprocessConfig(score_thr=1.0),
    PostprocessConfig(filter_thr=1.0),
    PostprocessConfig(filter_thr=0.0, max_per_image=1000),
    PostprocessConfig(nms_pre=7, max_per_image=3),
    PostprocessConfig(mask_thr=0.9, score_thr=0.05),
])  # fmt: skip
def test_same_detections_with_other_thresholds(head, thresholds, small_models):
    assert_same(*both_ways(small_models[head], thresholds))


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("buckets", [(8, 512), (8, 16), (177, 178), (1,)])
def test_more_candidates_than_slots(head, buckets, small_models, monkeypatch):
    """A larger bucket or, with more than the largest one has, the ordinary way."""
    monkeypatch.setattr(solo_cuda, "BUCKETS", buckets)
    found, expected = both_ways(small_models[head], PostprocessConfig())
    assert_same(found, expected)
    assert len(found[0].scores) > 10


class Waiting(Stopwatch):
    """As on a card whose stages are timed one by one."""

    waits = True


def test_stages_are_marked_where_they_are_waited_for(small_models):
    watch, careless = Waiting(), Stopwatch()
    assert_same(*both_ways(small_models["solo"], PostprocessConfig(), watch=watch))
    both_ways(small_models["solo"], PostprocessConfig(), watch=careless)
    assert list(watch.seconds) == ["backbone", "pyramid", "classes", "masks", "post"]
    assert list(careless.seconds) == ["post"]


def test_bounded_chunks(small_models, monkeypatch):
    monkeypatch.setattr(solo_static, "CHUNK_BYTES", 1)
    monkeypatch.setattr(mask_statistics, "_CHUNK_BYTES", 1)
    monkeypatch.setattr(solo_cuda, "BUCKETS", (16, 512))
    thresholds = PostprocessConfig(score_thr=0.3)
    assert_same(*both_ways(small_models["solo"], thresholds))


def test_classes_that_are_not_wanted_take_no_slot(small_models):
    found, expected = both_ways(small_models["decoupled"], PostprocessConfig(), torch.tensor([0.0, 1.0, 0.0]))
    assert_same(found, expected)
    assert set(found[0].labels.tolist()) == {1}


@pytest.mark.parametrize("name", ["solo_r50", "decoupled_light_r50"])
@torch.no_grad()
def test_published_architectures(name, procedural, photo):
    model = procedural(name)
    config = replace(model.config.preprocessing, short_side=128, long_side=192)
    geometry = plan(photo, config)
    inputs = prepare_batch([photo], [geometry], config, CPU, model.dtype)
    network = model.inference_network
    features = solo_static.extract(network, inputs, torch.ones(80))
    thresholds = model.config.thresholds
    found = solo_static.detect(
        network, features, cell_table(model.config.architecture, CPU), thresholds, 2048
    )
    (expected,) = model._detect(features.levels, features.scores, [geometry], thresholds)
    count = int(found.counts[0, 0])
    assert 0 < count == len(expected.scores) and 0 < int(found.counts[1, 0]) <= 2048
    assert torch.equal(found.labels[0, :count], expected.labels)
    torch.testing.assert_close(found.scores[0, :count], expected.scores, rtol=0, atol=1e-5)
    packed, _ = paste_masks(
        found.masks[0, :count], geometry.padded, geometry.resized, geometry.original, thresholds.mask_thr
    )
    assert packed_masks.popcount(packed ^ expected.packed_masks).sum(1).max() <= 5


def test_slots_are_filled_in_mmdets_order():
    scores = torch.rand(3, 20, 4, generator=torch.Generator().manual_seed(1))
    scores[1] = 0.0
    slots = solo_static.fill(scores, 0.5, 64)
    for image in range(3):
        expected = solo.find_candidates(scores[image], 0.5)
        count = int(slots.counts[image])
        assert count == len(expected.cells) == int(slots.filled[image].sum())
        assert torch.equal(slots.cells[image, :count], expected.cells)
        assert torch.equal(slots.labels[image, :count], expected.labels)
        assert torch.equal(slots.scores[image, :count], expected.scores)
    few = solo_static.fill(scores, 0.5, 8)
    assert torch.equal(few.cells, slots.cells[:, :8]) and torch.equal(few.counts, slots.counts)


@pytest.mark.parametrize("head", HEADS)
def test_slot_maps_are_the_mask_maps(head, small_models):
    model = small_models[head]
    _, inputs = batch_of(model)
    with torch.no_grad():
        network = model.inference_network
        levels = network.features(inputs)
        table = cell_table(model.config.architecture, CPU)
        cells = torch.stack([torch.randperm(len(table.level))[:30].sort().values for _ in inputs])
        found = solo_static.slot_maps(network, levels, table).scores(cells)
        maps = network.mask_maps(levels, cells.unique())
        expected = torch.stack([maps.scores(image, chosen) for image, chosen in enumerate(cells)])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_half_precision_decides_in_float32(small_models):
    model = small_models["decoupled_light"]
    half = type(model)(model.config, copy.deepcopy(model.network)).to(dtype=torch.bfloat16)
    found, expected = both_ways(half, PostprocessConfig())
    assert found[0].scores.dtype == torch.float32
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.scores, other.scores, rtol=0, atol=0.02)


def test_greedy_suppression_is_not_for_fixed_slots(monkeypatch):
    monkeypatch.setattr(solo_cuda, "graphs_allowed", lambda device: True)
    assert FastPath.fits(CPU, PostprocessConfig())
    assert not FastPath.fits(CPU, PostprocessConfig(nms="greedy"))


@torch.no_grad()
def test_levels_of_unusual_sizes_never_reach_the_kernel(small_models, monkeypatch):
    monkeypatch.setattr(dispatch, "triton_allowed", lambda device: True)
    monkeypatch.setattr(dispatch, "_load", lambda name: pytest.fail(f"{name} was loaded"))
    model = small_models["solo"]
    config = model.config.architecture
    levels = [torch.randn(1, config.pyramid_channels, 4, 6, generator=torch.Generator().manual_seed(0))] * 5
    table = CellTable.of(config, torch.device("cpu"))
    maps = slot_maps(model.network, levels, table)
    areas, maskness, _ = solo_static.measure(maps, torch.tensor([[0, 5, 224]]), 0.5)
    assert areas.shape == maskness.shape == (1, 3)
