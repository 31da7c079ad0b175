import numpy as np
import pytest
import torch
from helpers import golden_io, reference_solo
from helpers.models import HEADS
from helpers.paths import DATA

from solo_infer.config import PostprocessConfig
from solo_infer.diagnostics.procedural_weights import uniform
from solo_infer.inference import solo
from solo_infer.inference.preprocess import Geometry
from solo_infer.inference.solo import find_candidates, full_size_masks
from solo_infer.ops import packed_masks

GRIDS, STRIDES = (40, 36, 24, 16, 12), (8, 8, 16, 32, 32)
CELL_STRIDES = torch.cat([torch.full((g * g,), float(s)) for g, s in zip(GRIDS, STRIDES, strict=True)])
GEOMETRY = Geometry(original=(97, 143), resized=(150, 217), padded=(160, 224))
MAP_SIZE = (40, 56)
COUNTS = {"many": 1600, "some": 80, "none": 0}


class StoredMaps:
    """Mask maps that are simply there: (cells, h, w)."""

    def __init__(self, masks):
        self.masks, self.size = masks, tuple(masks.shape[-2:])
        self.largest_request = 0

    def scores(self, image, cells):
        self.largest_request = max(self.largest_request, len(cells))
        return self.masks[cells].clone()


def bump(key, count, size):
    u = uniform(key, (count, 2))
    r = (np.arange(size)[None] + 0.5 - size * u[:, 1:]) / (0.6 + 0.45 * size * u[:, :1] ** 4)
    return 1.0 - 0.5 * r * r


def golden_inputs(case, decoupled):
    """Make the head outputs of the kit's post-processing cases: scores (cells, 80), masks (cells, h, w)."""
    height, width = MAP_SIZE
    total = sum(g * g for g in GRIDS)
    classes, masks = [], []
    for level, grid in enumerate(GRIDS):
        key = f"post/{case}/{level}"
        count = COUNTS[case] * grid * grid // total
        count = max(count, 60) if case == "many" else count
        size = 80 * grid * grid
        picks = (uniform(key + "/where", (2 * max(count, 1) + 8,)) * size).astype(np.int64)
        where = np.sort(np.resize(np.unique(picks)[: max(count, 1)], max(count, 1)))
        scores = np.zeros(size, np.float32)
        scores[where[:count]] = uniform(key + "/score", (count,))
        classes.append(scores.reshape(80, grid * grid).T)
        cells = grid if decoupled else grid * grid
        x, y = bump(key + "/x", cells, width)[:, None, :], bump(key + "/y", cells, height)[:, :, None]
        if decoupled:
            x, y = np.clip(x, 0, 1).astype(np.float32), np.clip(y, 0, 1).astype(np.float32)
            masks.append((x[None] * y[:, None]).reshape(-1, height, width))
        else:
            masks.append(np.clip(x + y - 1.0, 0, 1).astype(np.float32))
    return torch.from_numpy(np.concatenate(classes)), torch.from_numpy(np.concatenate(masks))


@pytest.mark.parametrize("case", COUNTS)
@pytest.mark.parametrize("kind", ["solo", "decoupled"])
def test_mmdets_post_processing(kind, case):
    scores, masks = golden_inputs(case, kind == "decoupled")
    candidates = find_candidates(scores, 0.1)
    found = solo.detect(candidates, StoredMaps(masks), 0, CELL_STRIDES, GEOMETRY, PostprocessConfig())
    with np.load(DATA / f"post__{kind}.npz") as file:
        golden = {name.split("/")[1]: file[name] for name in file if name.startswith(f"{case}/")}
    assert len(candidates.cells) == int(golden["img0_num_candidates"])
    assert len(found.scores) == len(golden["img0_scores"])
    assert found.labels.tolist() == golden["img0_labels"].tolist()
    unpacked = packed_masks.unpack(found.packed_masks, 143).numpy()
    report = golden_io.compare(golden, 0, found.scores.numpy(), found.labels.numpy(), unpacked, 1e-5)
    assert (report["missing"], report["extra"], report["mask_pixels"]) == (0, 0, 0), report
    if case == "many":
        areas, _, _ = solo.measure_masks(StoredMaps(masks), 0, candidates.cells.unique(), 0.5)
        cells, owners = candidates.cells.unique_consecutive(return_inverse=True)
        large = (areas > CELL_STRIDES[cells])[owners]
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


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_equals_the_plain_road_under_any_settings(head, settings, small_models, photo):
    model = small_models[head]
    geometry = Geometry((60, 79), (91, 120), (96, 128))
    images = torch.randn(1, 3, 96, 128, generator=torch.Generator().manual_seed(3))
    levels, scores = model.network(images)
    candidates = find_candidates(scores[0], settings.score_thr)
    maps = model.network.mask_maps(levels, candidates.cells) if len(candidates.cells) else None
    found = solo.detect(candidates, maps, 0, model._strides, geometry, settings)
    masks = reference_solo.all_masks(model.network, levels)[0]
    expected = reference_solo.detect(scores[0], masks, model._strides, geometry, settings)
    assert found.labels.tolist() == expected[1].tolist()
    torch.testing.assert_close(found.scores, expected[0], rtol=0, atol=1e-5)
    differing = (packed_masks.unpack(found.packed_masks, 79) != expected[2]).flatten(1).sum(1)
    assert len(differing) == 0 or differing.max() <= 5


@pytest.mark.parametrize("head", HEADS)
def test_chunks_change_nothing(head, small_models, monkeypatch):
    model = small_models[head]
    images = torch.randn(1, 3, 96, 128, generator=torch.Generator().manual_seed(3))
    levels, scores = model.network(images)
    candidates = find_candidates(scores[0], 0.05)
    maps = model.network.mask_maps(levels, candidates.cells)
    geometry = Geometry((60, 79), (91, 120), (96, 128))

    def detect():
        return solo.detect(candidates, maps, 0, model._strides, geometry, PostprocessConfig())

    whole = detect()
    monkeypatch.setattr(solo, "CACHED_BYTES", 3 * 4 * maps.size[0] * maps.size[1])
    chunked = detect()
    assert len(whole.scores) > 20
    torch.testing.assert_close(chunked.scores, whole.scores, rtol=0, atol=1e-6)
    assert torch.equal(chunked.labels, whole.labels)
    assert torch.equal(chunked.packed_masks, whole.packed_masks)
    assert torch.equal(chunked.boxes, whole.boxes)


def test_requests_never_exceed_the_chunk(monkeypatch):
    scores, masks = golden_inputs("many", decoupled=False)
    maps = StoredMaps(masks)
    monkeypatch.setattr(solo, "CACHED_BYTES", 11 * 4 * 40 * 56)
    solo.detect(find_candidates(scores, 0.1), maps, 0, CELL_STRIDES, GEOMETRY, PostprocessConfig())
    assert maps.largest_request == 11


def test_every_cell_and_class_a_candidate():
    """The case in which mmdet asks for hundreds of gigabytes."""
    scores = 0.2 + 0.6 * torch.rand(sum(g * g for g in GRIDS), 80, generator=torch.Generator().manual_seed(0))
    _, masks = golden_inputs("none", decoupled=False)
    candidates = find_candidates(scores, 0.1)
    assert len(candidates.cells) == 3872 * 80
    found = solo.detect(candidates, StoredMaps(masks), 0, CELL_STRIDES, GEOMETRY, PostprocessConfig())
    assert len(found.scores) == 100


SIZES = {
    "kit": GEOMETRY,
    "enlarged": Geometry(original=(31, 17), resized=(150, 82), padded=(160, 96)),
    "reduced": Geometry(original=(700, 1001), resized=(90, 128), padded=(96, 128)),
    "one pixel": Geometry(original=(1, 1), resized=(32, 32), padded=(32, 32)),
    "a thin line": Geometry(original=(1, 400), resized=(1, 96), padded=(32, 96)),
}


@pytest.mark.parametrize("name", SIZES)
def test_full_size_masks_follow_the_two_steps(name):
    geometry = SIZES[name]
    size = tuple(side // 4 for side in geometry.padded)
    generator = torch.Generator().manual_seed(1)
    masks = torch.rand(9, *size, generator=generator)
    masks[4] = 0
    cells = torch.tensor([3, 1, 0, 4, 8, 2])
    packed, boxes = full_size_masks(StoredMaps(masks), 0, cells, geometry, 0.5)
    height, width = geometry.resized
    soft = reference_solo.bilinear(masks[None], size=geometry.padded)[:, :, :height, :width]
    expected = reference_solo.bilinear(soft, size=geometry.original)[0]
    found = packed_masks.unpack(packed, geometry.original[1])
    unclear = (expected - 0.5).abs() < 1e-5  # where the rounding of another order may decide
    assert torch.equal(found | unclear[cells], (expected[cells] > 0.5) | unclear[cells])
    assert unclear.float().mean() < 1e-3 or unclear.sum() == 0
    assert torch.equal(boxes, boxes_of(found))


def boxes_of(masks):
    """Return the boxes of bool masks (N, H, W), one after another."""
    boxes = []
    for mask in masks:
        rows, columns = torch.nonzero(mask, as_tuple=True)
        box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1] if len(rows) else [0] * 4
        boxes.append([float(side) for side in box])
    return torch.tensor(boxes)


def test_candidates_come_in_mmdets_order():
    scores = torch.tensor([[0.2, 0.0, 0.1], [0.05, 0.3, 0.0], [0.9, 0.0, 0.11]])
    found = find_candidates(scores, 0.1)
    assert found.cells.tolist() == [0, 1, 2, 2]
    assert found.labels.tolist() == [0, 1, 0, 2]
    torch.testing.assert_close(found.scores, torch.tensor([0.2, 0.3, 0.9, 0.11]))
