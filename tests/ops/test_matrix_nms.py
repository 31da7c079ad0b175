"""Matrix-NMS beside results of mmdet, and its two ways to count common pixels."""

import numpy as np
import pytest
import torch
from helpers.kernels import IMPLEMENTATIONS, use_implementation
from helpers.paths import DATA

from solo_infer.diagnostics.procedural_weights import uniform
from solo_infer.errors import ConfigError
from solo_infer.ops import matrix_nms as matrix_nms_module
from solo_infer.ops import packed_masks
from solo_infer.ops.matrix_nms import (
    decay,
    decay_factors,
    matrix_nms,
    matrix_nms_packed,
    pairwise_intersections,
    same_label_intersections,
)

SIZE = (50, 84)
GOLDEN = np.load(DATA / "matrix_nms.npz")
NAMES = sorted({name.split("/")[0] for name in GOLDEN})


@pytest.fixture(autouse=True, params=IMPLEMENTATIONS)
def implementation(request, monkeypatch):
    use_implementation(request.param, monkeypatch)
    return request.param


def shapes(key, count, small, large):
    """Return the ellipses and rectangles of the reference data as bool masks."""
    height, width = SIZE
    u = uniform(key, (count, 6))
    half_h = 0.5 * height * (small + (large - small) * u[:, 0] ** 2)
    half_w = 0.5 * width * (small + (large - small) * u[:, 1] ** 2)
    center_y, center_x = height * (0.08 + 0.84 * u[:, 2]), width * (0.08 + 0.84 * u[:, 3])
    y, x = np.arange(height)[None, :, None] + 0.5, np.arange(width)[None, None, :] + 0.5
    dy = np.abs(y - center_y[:, None, None]) / half_h[:, None, None]
    dx = np.abs(x - center_x[:, None, None]) / half_w[:, None, None]
    return np.where(u[:, 4, None, None] < 0.6, dy * dy + dx * dx <= 1.0, (dy <= 1.0) & (dx <= 1.0))


def case(name):
    """Return masks, labels, scores and options of a golden result, derived from its name."""
    kernel, rest = name.split("_", 1)
    options = {"kernel": kernel, "sigma": 2.0}
    patterns = ("duplicates", "triples", "disjoint", "nested", "ties")
    pattern = rest if rest in patterns else "random"
    if pattern != "random":
        count, labels = 8, 1
    elif rest == "all_filtered":
        count, labels, options["filter_thr"] = 7, 4, 2.0
    elif rest == "n600_test_cfg":
        count, labels = 600, 20
        options |= {"nms_pre": 500, "max_num": 100, "filter_thr": 0.05}
    else:
        words = rest.split("_")
        count, labels = int(words[0][1:]), int(words[1][6:])
        if "limits" in words:
            options |= {"nms_pre": max(1, count * 5 // 6), "max_num": max(1, count // 3), "filter_thr": 0.05}
    key = f"nms/{count}/{pattern}"
    masks = shapes(key, count, 0.1, 0.8)
    if pattern in ("duplicates", "triples"):
        masks = masks[np.arange(count) // (2 if pattern == "duplicates" else 3)]
    elif pattern == "disjoint":
        owner = np.arange(SIZE[1]) * count // SIZE[1]
        masks = np.broadcast_to((owner == np.arange(count)[:, None])[:, None], masks.shape).copy()
    elif pattern == "nested":
        level = np.minimum(np.arange(SIZE[0]), np.arange(SIZE[0])[::-1])
        masks = np.broadcast_to((level >= np.arange(count)[:, None])[:, :, None], masks.shape).copy()
    drawn = uniform(key + "/label", (count,)) * max(labels, 1)
    classes = np.arange(count) if labels == 0 else drawn.astype(np.int64)
    scores = 0.1 + 0.9 * uniform(key + "/score", (count,))
    if pattern == "ties":
        scores = np.round(scores * 2.0 + 0.5) / 4.0
    tensors = masks, classes.astype(np.int64), scores.astype(np.float32)
    return (*map(torch.from_numpy, tensors), options)


@pytest.mark.parametrize("name", NAMES)
def test_matrix_nms_equals_mmdet(name):
    masks, labels, scores, options = case(name)
    result = matrix_nms(masks, labels, scores, **options)
    expected = np.nan_to_num(GOLDEN[f"{name}/scores"], nan=0.0)  # mmdet's third equal mask is 0 / 0
    order = (-expected).argsort(kind="stable")
    np.testing.assert_allclose(result.scores.numpy(), expected[order], rtol=0, atol=1e-6)
    if name in ("linear_duplicates", "linear_triples"):  # the copies end with 0, in any order
        return
    # mmdet does not define the order of equal scores, nor which of them decays the other.
    keep = torch.from_numpy(GOLDEN[f"{name}/keep"])
    assert torch.equal(scores[result.keep].sort().values, scores[keep].sort().values)
    if not name.endswith("ties"):
        assert torch.equal(scores[result.keep], scores[keep])
        unequal = result.keep != keep
        assert torch.equal(result.labels[~unequal], torch.from_numpy(GOLDEN[f"{name}/labels"])[~unequal])


def test_linear_kernel_decays_copies_to_zero():
    masks, labels, scores, options = case("linear_triples")
    result = matrix_nms(masks, labels, scores, **options)
    assert not result.scores.isnan().any()
    assert (result.scores > 0).sum() == 3  # of two groups of three and one pair


def test_shared_masks_equal_repeated_masks():
    masks, labels, scores, options = case("gaussian_duplicates")
    options |= {"nms_pre": -1, "max_num": -1, "filter_thr": -1.0}
    expected = matrix_nms(masks, labels, scores, **options)
    packed = packed_masks.pack(masks[::2].flatten(1))
    areas = masks.flatten(1).sum(1).float()
    result = matrix_nms_packed(packed, areas, labels, scores, mask_index=torch.arange(8) // 2, **options)
    assert torch.equal(result.keep, expected.keep)
    assert torch.equal(result.scores, expected.scores)


def test_matrix_nms_of_no_masks():
    result = matrix_nms(
        torch.zeros(0, 4, 5, dtype=torch.bool), torch.zeros(0, dtype=torch.int64), torch.zeros(0)
    )
    assert [len(tensor) for tensor in result] == [0, 0, 0]
    assert (result.scores.dtype, result.labels.dtype) == (torch.float32, torch.int64)


def test_empty_masks_keep_their_scores():
    masks = torch.zeros(3, 4, 5, dtype=torch.bool)
    result = matrix_nms(masks, torch.zeros(3, dtype=torch.int64), torch.tensor([0.5, 0.9, 0.7]))
    torch.testing.assert_close(result.scores, torch.tensor([0.9, 0.7, 0.5]))


def test_matrix_nms_rejects_unknown_kernel():
    with pytest.raises(ConfigError, match="kernel='box'.*gaussian.*linear"):
        matrix_nms(torch.ones(1, 2, 2).bool(), torch.zeros(1).long(), torch.ones(1), kernel="box")


def test_kernel_is_checked_before_anything_else():
    with pytest.raises(ConfigError, match="kernel='box'"):
        matrix_nms(None, None, None, kernel="box")
    with pytest.raises(ConfigError, match="kernel='box'"):
        decay_factors(torch.zeros(0, 0, 1).byte(), torch.zeros(0, 0), torch.zeros(0, 0).long(), "box", 2.0)


@pytest.mark.parametrize("kernel", ["gaussian", "linear"])
def test_decay_factors_of_a_batch_equal_matrix_nms(kernel):
    masks = torch.rand(2, 40, 12, 14, generator=torch.Generator().manual_seed(1)) < 0.6
    masks[0, 5], masks[1, 7] = masks[0, 4], False
    scores = torch.linspace(0.9, 0.1, 40).expand(2, 40)
    labels = torch.randint(3, (2, 40), generator=torch.Generator().manual_seed(2))
    packed, areas = packed_masks.pack(masks.flatten(2)), masks.flatten(2).sum(2).float()
    factors = decay_factors(packed, areas, labels, kernel, 2.0)
    intersections = pairwise_intersections(packed) * (labels[:, :, None] == labels[:, None])
    unions = areas[:, :, None] + areas[:, None] - intersections
    all_pairs = decay((intersections / unions.clamp(min=1)).triu(diagonal=1), kernel, 2.0)
    assert torch.equal(all_pairs, factors)  # the implementation of other devices than the CPU
    for image in range(2):
        kept = matrix_nms(masks[image], labels[image], scores[image], kernel=kernel)
        expected = torch.empty(40).scatter_(0, kept.keep, kept.scores)
        torch.testing.assert_close(factors[image] * scores[image], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("images, count", [(0, 3), (2, 0)])
def test_decay_factors_of_nothing(images, count):
    arguments = torch.zeros(images, count, 2).byte(), torch.zeros(images, count)
    factors = decay_factors(*arguments, torch.zeros(images, count).long(), "gaussian", 2.0)
    assert factors.shape == (images, count) and factors.dtype == torch.float32


@pytest.mark.parametrize("pairs", [0, 1 << 40])
@pytest.mark.parametrize("density", [0.002, 0.5])
def test_intersections_of_pairs_equal_products(monkeypatch, pairs, density):
    monkeypatch.setattr(matrix_nms_module, "_PAIRS_BYTES", pairs)
    generator = np.random.default_rng(1)
    masks = torch.from_numpy(generator.random((30, 999)) < density)
    labels = torch.from_numpy(generator.integers(0, 4, 30))
    expected = (masks.float() @ masks.float().T) * (labels[:, None] == labels)
    assert torch.equal(same_label_intersections(packed_masks.pack(masks), labels), expected)


def test_intersections_in_chunks(monkeypatch):
    monkeypatch.setattr(matrix_nms_module, "_PAIRS_BYTES", 0)
    monkeypatch.setattr(matrix_nms_module, "_UNPACKED_BYTES", 8 * 32)
    monkeypatch.setattr(matrix_nms_module, "_UNPACKED_BYTES_CPU", 8 * 32)
    masks = torch.from_numpy(np.random.default_rng(0).random((1, 4, 100)) < 0.5)
    packed, expected = packed_masks.pack(masks), masks.float() @ masks.float().mT
    assert torch.equal(pairwise_intersections(packed), expected)
    assert torch.equal(same_label_intersections(packed[0], torch.zeros(4).long()), expected[0])
    labels = torch.tensor([0, 1, 0, 1])
    same = labels[:, None] == labels
    assert torch.equal(same_label_intersections(packed[0], labels), expected[0] * same)


@pytest.mark.parametrize("count, size", [(1, 1), (5, 3), (40, 8), (64, 1001)])
def test_intersections_of_masks_with_empty_ends(count, size):
    generator = np.random.default_rng(size)
    masks = torch.from_numpy(generator.random((count, 8 * size)) < 0.6)
    for index in range(count):
        first, last = sorted(generator.integers(0, 8 * size + 1, 2))
        masks[index, :first] = masks[index, last:] = False
    labels = torch.from_numpy(generator.integers(0, 3, count))
    expected = (masks.float() @ masks.float().T) * (labels[:, None] == labels)
    packed = packed_masks.pack(masks)
    assert torch.equal(same_label_intersections(packed, labels), expected)
    wider = torch.zeros(count, 2 * size, dtype=torch.uint8)
    wider[:, ::2] = packed
    assert torch.equal(same_label_intersections(wider[:, ::2], labels), expected)
