"""Detections of SOLO against mmdet's, and with bounded memory."""

import numpy as np
import pytest
import torch
from helpers import golden_io, reference_postprocess
from helpers.dense_outputs import dense_mask_scores
from helpers.models import HEADS
from helpers.paths import DATA

from solo_infer.config import PostprocessConfig
from solo_infer.diagnostics.procedural_weights import uniform
from solo_infer.inference.preprocess import Geometry
from solo_infer.inference.solo import detect_batch, detect_image, find_candidates, full_size_masks
from solo_infer.models.solo import masks as solo_masks
from solo_infer.models.solo.masks import CandidateMasks, KernelMasks
from solo_infer.models.solo.scores import class_scores_from_logits
from solo_infer.ops import packed_masks
from solo_infer.runtime.stopwatch import Stopwatch

GRIDS, STRIDES = (40, 36, 24, 16, 12), (8, 8, 16, 32, 32)
CELL_STRIDES = torch.cat([torch.full((g * g,), float(s)) for g, s in zip(GRIDS, STRIDES, strict=True)])
GEOMETRY = Geometry(original=(97, 143), resized=(150, 217), padded=(160, 224))
MASK_SIZE = (40, 56)
CANDIDATE_COUNTS = {"many": 1600, "some": 80, "none": 0}


class StoredMasks(CandidateMasks):
    """Masks of all cells (cells, h, w), computed beforehand."""

    def __init__(self, masks):
        self.masks, self.size = masks, tuple(masks.shape[-2:])
        self.largest_request = 0

    def scores(self, cells):
        self.largest_request = max(self.largest_request, len(cells))
        return self.masks[cells].clone()


def bump(key, count, size):
    u = uniform(key, (count, 2))
    r = (np.arange(size)[None] + 0.5 - size * u[:, 1:]) / (0.6 + 0.45 * size * u[:, :1] ** 4)
    return 1.0 - 0.5 * r * r


def golden_inputs(case, decoupled):
    """Return class scores (cells, 80) and masks (cells, h, w) of a post-processing case of the kit."""
    height, width = MASK_SIZE
    total = sum(g * g for g in GRIDS)
    classes, masks = [], []
    for level, grid in enumerate(GRIDS):
        key = f"post/{case}/{level}"
        count = CANDIDATE_COUNTS[case] * grid * grid // total
        count = max(count, 60) if case == "many" else count
        size = 80 * grid * grid
        picks = (uniform(key + "/where", (2 * max(count, 1) + 8,)) * size).astype(np.int64)
        positions = np.sort(np.resize(np.unique(picks)[: max(count, 1)], max(count, 1)))
        scores = np.zeros(size, np.float32)
        scores[positions[:count]] = uniform(key + "/score", (count,))
        classes.append(scores.reshape(80, grid * grid).T)
        num_maps = grid if decoupled else grid * grid
        x, y = bump(key + "/x", num_maps, width)[:, None, :], bump(key + "/y", num_maps, height)[:, :, None]
        if decoupled:
            x, y = np.clip(x, 0, 1).astype(np.float32), np.clip(y, 0, 1).astype(np.float32)
            masks.append((x[None] * y[:, None]).reshape(-1, height, width))
        else:
            masks.append(np.clip(x + y - 1.0, 0, 1).astype(np.float32))
    return torch.from_numpy(np.concatenate(classes)), torch.from_numpy(np.concatenate(masks))


def golden_inputs_of_solov2(case):
    """Return class scores (cells, 80) and masks of a post-processing case, from kernels and class logits.

    The mask features are 1 on one column, one row or everywhere.
    """
    height, width = MASK_SIZE
    features = np.zeros((128, height, width), np.float32)
    features[np.arange(width), :, np.arange(width)] = 1
    features[width + np.arange(height), np.arange(height)] = 1
    features[width + height] = 1
    kernels, logits = [], []
    scores = golden_inputs(case, True)[0].split([grid * grid for grid in GRIDS])
    for level, (grid, level_scores) in enumerate(zip(GRIDS, scores, strict=True)):
        key = f"post/{case}/{level}"
        kernel = np.zeros((grid * grid, 128))
        kernel[:, :width] = 8 * (bump(key + "/x", grid * grid, width) - 1)
        kernel[:, width : width + height] = 8 * (bump(key + "/y", grid * grid, height) - 1)
        kernel[:, width + height] = 4
        kernels.append(np.maximum(kernel, -40).astype(np.float32))
        level_scores = np.maximum(level_scores.T.reshape(1, 80, grid, grid).double().numpy(), 1e-9)
        logits.append(torch.from_numpy(np.log(level_scores / (1 - level_scores)).astype(np.float32)))
    kernels = torch.from_numpy(np.concatenate(kernels))
    masks = KernelMasks(torch.from_numpy(features), torch.arange(len(kernels)), kernels)
    return class_scores_from_logits(logits)[0], masks


@pytest.mark.parametrize("case", CANDIDATE_COUNTS)
@pytest.mark.parametrize("head", ["solo", "decoupled", "solov2"])
def test_detections_equal_mmdets(head, case):
    if head == "solov2":
        scores, masks = golden_inputs_of_solov2(case)
    else:
        scores, maps = golden_inputs(case, head == "decoupled")
        masks = StoredMasks(maps)
    candidates = find_candidates(scores, 0.1)
    detections = detect_image(candidates, masks, CELL_STRIDES, GEOMETRY, PostprocessConfig())
    with np.load(DATA / f"post__{head}.npz") as file:
        golden = {name.split("/")[1]: file[name] for name in file if name.startswith(f"{case}/")}
    assert len(candidates.cells) == int(golden["img0_num_candidates"])
    assert len(detections.scores) == len(golden["img0_scores"])
    assert detections.labels.tolist() == golden["img0_labels"].tolist()
    unpacked = packed_masks.unpack(detections.packed_masks, 143).numpy()
    report = golden_io.compare(
        golden, 0, detections.scores.numpy(), detections.labels.numpy(), unpacked, 1e-5
    )
    assert (report["missing"], report["extra"], report["mask_pixels"]) == (0, 0, 0), report
    if case == "many":
        areas, _, _ = masks.statistics(candidates.cells.unique(), 0.5)
        cells, mask_index = candidates.cells.unique_consecutive(return_inverse=True)
        large = (areas > CELL_STRIDES[cells])[mask_index]
        assert int(large.sum()) == int(golden["img0_num_after_area"]) < len(candidates.cells)


SETTINGS = [
    PostprocessConfig(),
    PostprocessConfig(kernel="linear"),
    PostprocessConfig(score_thr=0.02, sigma=0.5),
    PostprocessConfig(mask_thr=0.7, filter_thr=0.2),
    PostprocessConfig(nms_pre=20, max_per_image=7),
    PostprocessConfig(filter_thr=0.0, max_per_image=10_000, nms_pre=10_000),
    PostprocessConfig(score_thr=0.999),
    PostprocessConfig(filter_thr=1.0),
    PostprocessConfig(mask_thr=1.0),
]


def random_images():
    return torch.randn(1, 3, 96, 128, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@torch.no_grad()
def test_detections_equal_the_reference_under_any_settings(head, settings, small_models):
    network = small_models[head].network
    geometry = Geometry((60, 79), (91, 120), (96, 128))
    output = network(random_images())
    (class_scores,) = class_scores_from_logits(output.class_logits)
    (masks,) = dense_mask_scores(output)
    strides = network.mask_head.cells.stride
    expected_scores, expected_labels, expected_masks = reference_postprocess.detect(
        class_scores, masks, strides, geometry, settings
    )
    (detections,) = detect_batch(network, random_images(), [geometry], settings, None, Stopwatch())
    assert detections.labels.tolist() == expected_labels.tolist()
    torch.testing.assert_close(detections.scores, expected_scores, rtol=0, atol=1e-5)
    differing = (packed_masks.unpack(detections.packed_masks, 79) != expected_masks).flatten(1).sum(1)
    assert len(differing) == 0 or differing.max() <= 5


@pytest.mark.parametrize("head", HEADS)
@torch.no_grad()
def test_chunks_do_not_change_detections(head, small_models, monkeypatch):
    network = small_models[head].network
    levels = network.features(random_images())
    (class_scores,) = class_scores_from_logits(network.mask_head.class_logits(levels))
    candidates = find_candidates(class_scores, 0.05)
    (masks,) = network.mask_head.masks(levels, [candidates.cells.unique_consecutive()])
    geometry, strides = Geometry((60, 79), (91, 120), (96, 128)), network.mask_head.cells.stride

    def detect():
        return detect_image(candidates, masks, strides, geometry, PostprocessConfig())

    expected = detect()
    monkeypatch.setattr(solo_masks, "CPU_CHUNK_BYTES", 3 * 4 * masks.size[0] * masks.size[1])
    assert masks.chunk_length(candidates.cells) == 3
    chunked = detect()
    assert len(expected.scores) > 20
    torch.testing.assert_close(chunked.scores, expected.scores, rtol=0, atol=1e-6)
    assert torch.equal(chunked.labels, expected.labels)
    assert torch.equal(chunked.packed_masks, expected.packed_masks)
    assert torch.equal(chunked.boxes, expected.boxes)


def test_requests_never_exceed_the_chunk(monkeypatch):
    scores, masks = golden_inputs("many", decoupled=False)
    stored = StoredMasks(masks)
    monkeypatch.setattr(solo_masks, "CPU_CHUNK_BYTES", 11 * 4 * MASK_SIZE[0] * MASK_SIZE[1])
    detect_image(find_candidates(scores, 0.1), stored, CELL_STRIDES, GEOMETRY, PostprocessConfig())
    assert stored.largest_request == 11


def test_all_cells_and_classes_are_candidates():
    """Detect with 309,760 candidates, for which mmdet would allocate hundreds of gigabytes."""
    scores = 0.2 + 0.6 * torch.rand(sum(g * g for g in GRIDS), 80, generator=torch.Generator().manual_seed(0))
    _, masks = golden_inputs("none", decoupled=False)
    candidates = find_candidates(scores, 0.1)
    assert len(candidates.cells) == 3872 * 80
    detections = detect_image(candidates, StoredMasks(masks), CELL_STRIDES, GEOMETRY, PostprocessConfig())
    assert len(detections.scores) == 100


@torch.no_grad()
def test_stages_are_marked(small_model):
    geometry, stopwatch = Geometry((60, 79), (91, 120), (96, 128)), Stopwatch()
    detect_batch(small_model.network, random_images(), [geometry], PostprocessConfig(), None, stopwatch)
    assert list(stopwatch.seconds) == ["backbone", "pyramid", "classes", "masks", "post"]


SIZES = {
    "golden": GEOMETRY,
    "enlarged": Geometry(original=(31, 17), resized=(150, 82), padded=(160, 96)),
    "reduced": Geometry(original=(700, 1001), resized=(90, 128), padded=(96, 128)),
    "one_pixel": Geometry(original=(1, 1), resized=(32, 32), padded=(32, 32)),
    "thin_line": Geometry(original=(1, 400), resized=(1, 96), padded=(32, 96)),
}


@pytest.mark.parametrize("name", SIZES)
def test_full_size_masks_equal_two_interpolations(name):
    geometry = SIZES[name]
    size = tuple(side // 4 for side in geometry.padded)
    generator = torch.Generator().manual_seed(1)
    masks = torch.rand(9, *size, generator=generator)
    masks[4] = 0
    cells = torch.tensor([3, 1, 0, 4, 8, 2])
    packed, boxes = full_size_masks(StoredMasks(masks), cells, geometry, 0.5)
    height, width = geometry.resized
    soft = reference_postprocess.bilinear(masks[None], size=geometry.padded)[:, :, :height, :width]
    expected = reference_postprocess.bilinear(soft, size=geometry.original)[0]
    unpacked = packed_masks.unpack(packed, geometry.original[1])
    at_threshold = (expected - 0.5).abs() < 1e-5  # rounding decides about these pixels
    assert torch.equal(unpacked | at_threshold[cells], (expected[cells] > 0.5) | at_threshold[cells])
    assert at_threshold.float().mean() < 1e-3 or at_threshold.sum() == 0
    assert torch.equal(boxes, boxes_of(unpacked))


def boxes_of(masks):
    """Return the tight boxes (N, 4) of bool masks (N, H, W)."""
    boxes = []
    for mask in masks:
        rows, columns = torch.nonzero(mask, as_tuple=True)
        box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1] if len(rows) else [0] * 4
        boxes.append([float(side) for side in box])
    return torch.tensor(boxes)


def test_candidates_are_in_mmdets_order():
    scores = torch.tensor([[0.2, 0.0, 0.1], [0.05, 0.3, 0.0], [0.9, 0.0, 0.11]])
    candidates = find_candidates(scores, 0.1)
    assert candidates.cells.tolist() == [0, 1, 2, 2]
    assert candidates.labels.tolist() == [0, 1, 0, 2]
    torch.testing.assert_close(candidates.scores, torch.tensor([0.2, 0.3, 0.9, 0.11]))
