import numpy as np
import pytest
import torch
from helpers.paths import DATA

from solo_infer.diagnostics.procedural_weights import uniform
from solo_infer.errors import ConfigError
from solo_infer.ops import packed_masks
from solo_infer.ops.matrix_nms import matrix_nms, matrix_nms_packed

SIZE = (50, 84)
GOLDEN = np.load(DATA / "matrix_nms.npz")
NAMES = sorted({name.split("/")[0] for name in GOLDEN})


def shapes(key, count, small, large):
    """Ellipses and rectangles as bitmaps, as the reference kit makes them."""
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
    """Return masks, labels, scores and options of a golden, from its name."""
    kernel, rest = name.split("_", 1)
    options = {"kernel": kernel, "sigma": 2.0}
    kinds = ("duplicates", "triples", "disjoint", "nested", "ties")
    kind = rest if rest in kinds else "random"
    if kind != "random":
        count, labels = 8, 1
    elif rest == "all_filtered":
        count, labels, options["filter_thr"] = 7, 4, 2.0
    elif rest == "n600_test_cfg":
        count, labels = 600, 20
        options |= {"nms_pre": 500, "max_num": 100, "filter_thr": 0.05}
    else:
        parts = rest.split("_")
        count, labels = int(parts[0][1:]), int(parts[1][6:])
        if "limits" in parts:
            options |= {"nms_pre": max(1, count * 5 // 6), "max_num": max(1, count // 3), "filter_thr": 0.05}
    key = f"nms/{count}/{kind}"
    masks = shapes(key, count, 0.1, 0.8)
    if kind in ("duplicates", "triples"):
        masks = masks[np.arange(count) // (2 if kind == "duplicates" else 3)]
    elif kind == "disjoint":
        owner = np.arange(SIZE[1]) * count // SIZE[1]
        masks = np.broadcast_to((owner == np.arange(count)[:, None])[:, None], masks.shape).copy()
    elif kind == "nested":
        level = np.minimum(np.arange(SIZE[0]), np.arange(SIZE[0])[::-1])
        masks = np.broadcast_to((level >= np.arange(count)[:, None])[:, :, None], masks.shape).copy()
    drawn = uniform(key + "/label", (count,)) * max(labels, 1)
    classes = np.arange(count) if labels == 0 else drawn.astype(np.int64)
    scores = 0.1 + 0.9 * uniform(key + "/score", (count,))
    if kind == "ties":
        scores = np.round(scores * 2.0 + 0.5) / 4.0
    tensors = masks, classes.astype(np.int64), scores.astype(np.float32)
    return (*map(torch.from_numpy, tensors), options)


@pytest.mark.parametrize("name", NAMES)
def test_mmdets_results(name):
    masks, labels, scores, options = case(name)
    found = matrix_nms(masks, labels, scores, **options)
    expected = np.nan_to_num(GOLDEN[f"{name}/scores"], nan=0.0)  # fact 25: mmdet's third equal mask is 0 / 0
    order = (-expected).argsort(kind="stable")
    np.testing.assert_allclose(found.scores.numpy(), expected[order], rtol=0, atol=1e-6)
    if name in ("linear_duplicates", "linear_triples"):  # their copies end with 0, in any order
        return
    # mmdet's order among equal scores is free, and with it which of them decays the other.
    keep = torch.from_numpy(GOLDEN[f"{name}/keep"])
    assert torch.equal(scores[found.keep].sort().values, scores[keep].sort().values)
    if not name.endswith("ties"):
        assert torch.equal(scores[found.keep], scores[keep])
        unequal = found.keep != keep
        assert torch.equal(found.labels[~unequal], torch.from_numpy(GOLDEN[f"{name}/labels"])[~unequal])


def test_copies_of_a_better_mask_vanish_with_the_linear_kernel():
    masks, labels, scores, options = case("linear_triples")
    found = matrix_nms(masks, labels, scores, **options)
    assert not found.scores.isnan().any()
    assert (found.scores > 0).sum() == 3  # of two threes and a pair


def test_shared_masks_equal_repeated_ones():
    masks, labels, scores, options = case("gaussian_duplicates")
    options |= {"nms_pre": -1, "max_num": -1, "filter_thr": -1.0}
    expected = matrix_nms(masks, labels, scores, **options)
    packed = packed_masks.pack(masks[::2].flatten(1))
    areas = masks.flatten(1).sum(1).float()
    found = matrix_nms_packed(packed, areas, labels, scores, owners=torch.arange(8) // 2, **options)
    assert torch.equal(found.keep, expected.keep)
    assert torch.equal(found.scores, expected.scores)


def test_nothing_in_nothing_out():
    found = matrix_nms(
        torch.zeros(0, 4, 5, dtype=torch.bool), torch.zeros(0, dtype=torch.int64), torch.zeros(0)
    )
    assert [len(part) for part in found] == [0, 0, 0]
    assert (found.scores.dtype, found.labels.dtype) == (torch.float32, torch.int64)


def test_empty_masks_give_no_nan():
    masks = torch.zeros(3, 4, 5, dtype=torch.bool)
    found = matrix_nms(masks, torch.zeros(3, dtype=torch.int64), torch.tensor([0.5, 0.9, 0.7]))
    torch.testing.assert_close(found.scores, torch.tensor([0.9, 0.7, 0.5]))


def test_unknown_kernel():
    with pytest.raises(ConfigError, match="kernel='box'.*gaussian.*linear"):
        matrix_nms(torch.ones(1, 2, 2).bool(), torch.zeros(1).long(), torch.ones(1), kernel="box")


@pytest.mark.parametrize("width", [1, 7, 8, 9, 84])
def test_bits_are_numpys(width):
    masks = np.random.default_rng(width).random((3, 5, width)) < 0.5
    packed = packed_masks.pack(torch.from_numpy(masks))
    np.testing.assert_array_equal(packed.numpy(), np.packbits(masks, axis=-1))
    np.testing.assert_array_equal(packed_masks.unpack(packed, width).numpy(), masks)
    np.testing.assert_array_equal(
        packed_masks.unpack_float(packed).numpy()[..., :width], masks.astype(np.float32)
    )
    np.testing.assert_array_equal(packed_masks.count(packed).numpy(), masks.sum(axis=-1))
    np.testing.assert_array_equal(
        packed_masks.unpack(packed_masks.union_rows(packed), width).numpy(), masks.any(axis=1)
    )
