"""The author's kind of YOLACT beside a plain derivation from his own description, and his file's layout."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.models import small_yolact_config, small_yolact_network
from helpers.original_yolact import as_his_file, decode, fast_nms, mask, network, square_anchors

from solo_infer import YOLACT
from solo_infer.config import find_preset
from solo_infer.config.yolact import yolact_preset
from solo_infer.errors import CheckpointError
from solo_infer.models.yolact import anchors as our_anchors
from solo_infer.weights.checkpoint import read_checkpoint

SIDE, SCALES = 96, (12, 24, 48, 72, 96)


@pytest.fixture(scope="module")
def his_weights():
    return as_his_file(small_yolact_network(small_yolact_config("yolact_original")).state_dict())


@pytest.fixture(scope="module")
def his_file(his_weights, tmp_path_factory):
    path = tmp_path_factory.mktemp("author") / "yolact_small_1_2.pth"
    torch.save(his_weights, path)
    return path


def test_photo_to_masks(his_weights, his_file, photo):
    """From his file to the result, against loops over his names, anchors in parts of the image and all."""
    model = YOLACT.from_pretrained(his_file, config=small_yolact_config("yolact_original"), device="cpu")
    found = model(photo, thresholds=replace(yolact_preset("original").postprocess, max_per_image=300))
    pixels = torch.from_numpy(photo).permute(2, 0, 1)[None].float()
    scaled = F.interpolate(pixels, (SIDE, SIDE), mode="bilinear", align_corners=False)
    mean, std = (torch.tensor(v)[:, None, None] for v in ((123.68, 116.78, 103.94), (58.40, 57.12, 57.38)))
    logits, deltas, coefficients, prototypes, sizes = network(his_weights, (scaled - mean) / std)
    scores = logits.softmax(dim=1)[:, 1:].numpy()
    chosen = np.flatnonzero(scores.max(axis=1) > 0.05)
    boxes = decode(deltas, square_anchors(sizes, SCALES, SIDE))[chosen]
    expected = fast_nms(boxes, scores[chosen], 0.5, 0.0, 200, 300)
    assert len(found) == len(expected) > 50
    assert found.scores.min() < 0.05  # he keeps what is below the threshold, too
    np.testing.assert_allclose(found.scores, [score for score, _, _ in expected], atol=1e-5)
    assert found.labels.tolist() == [label for _, label, _ in expected]
    height, width = photo.shape[:2]
    for place, (_, _, row) in enumerate(expected):
        limits = np.array([width, height] * 2)
        assert np.abs(found.boxes[place].numpy() - np.clip(boxes[row] * limits, 0, limits)).max() < 0.01
        if place % 10 == 0:
            own = mask(coefficients[chosen[row]], prototypes, boxes[row], (height, width))
            assert (found[place].mask.numpy() != own).sum() <= 5


@pytest.mark.parametrize("name", ["yolact_original_r50", "yolact_original_r101_700"])
def test_square_anchors_of_the_published_sizes(name):
    config = find_preset(name)
    side = config.preprocessing.short_side
    sizes = {550: (69, 35, 18, 9, 5), 700: (88, 44, 22, 11, 6)}[side]
    scales = {550: (24, 48, 96, 192, 384), 700: (30, 61, 122, 244, 488)}[side]
    assert config.architecture.anchor_sizes == scales
    levels = tuple((size, size) for size in sizes)
    found = our_anchors.square_anchors(
        levels, config.architecture.anchor_sizes, (side, side), torch.device("cpu")
    )
    x, y, w, h = square_anchors(levels, scales, side).T * side
    expected = np.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], axis=1)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-3)


def test_his_names(his_weights, his_file):
    ours = read_checkpoint(his_file).state_dict
    for name, tensor in small_yolact_network(small_yolact_config("yolact_original")).state_dict().items():
        assert torch.equal(ours[name], tensor), name
    assert not any(name in ours for name in his_weights if not name.startswith("backbone."))


def test_kind_depth_and_classes_are_read_from_the_tensors(his_file):
    config = read_checkpoint(his_file).config
    architecture = config.architecture
    assert (architecture.head, architecture.backbone) == ("yolact_original", "resnet50")
    assert (architecture.num_classes, architecture.pyramid_channels, architecture.num_protos) == (3, 32, 32)
    assert (config.preprocessing.short_side, config.thresholds.filter_thr) == (550, 0.0)


def test_leftovers_of_his_first_version(his_weights, tmp_path):
    """Files of April 2019 hold the body twice and layers that the network has no more."""
    old = dict(his_weights)
    old["fpn.downsample_layers.2.weight"] = torch.zeros(32, 32, 3, 3)
    for name, tensor in his_weights.items():
        if name.startswith("backbone.layers."):
            old[f"backbone.layer{int(name[16]) + 1}{name[17:]}"] = tensor
    torch.save(old, tmp_path / "old.pth")
    found = read_checkpoint(tmp_path / "old.pth")
    assert torch.equal(
        found.state_dict["backbone.layer1.0.conv1.weight"], his_weights["backbone.layers.0.0.conv1.weight"]
    )
    assert not any("layer_blocks.5" in name for name in found.state_dict)


def test_what_does_not_fit_is_told_by_name(his_weights, tmp_path):
    wrong = {name: tensor for name, tensor in his_weights.items() if name != "proto_net.4.bias"}
    wrong["prediction_layers.0.conf_layer.weight"] = torch.zeros(13, 32, 3, 3)
    torch.save(wrong, tmp_path / "wrong.pth")
    with pytest.raises(CheckpointError, match=r"conf_layer\.weight is \(13, 32, 3, 3\) instead of \(12,"):
        read_checkpoint(tmp_path / "wrong.pth", small_yolact_config("yolact_original"))
