"""The original variant of YOLACT, compared with a reference in plain loops, and its checkpoint files."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import original_yolact as reference
from helpers.models import small_yolact_config, small_yolact_network
from helpers.original_yolact import in_original_names

from solo_infer import YOLACT
from solo_infer.config import find_preset
from solo_infer.config.yolact import yolact_preset
from solo_infer.errors import CheckpointError
from solo_infer.models.yolact.anchors import square_anchors
from solo_infer.weights.checkpoint import read_checkpoint

SIDE, SCALES = 96, (12, 24, 48, 72, 96)


@pytest.fixture(scope="module")
def original_weights():
    return in_original_names(small_yolact_network(small_yolact_config("original")).state_dict())


@pytest.fixture(scope="module")
def original_file(original_weights, tmp_path_factory):
    path = tmp_path_factory.mktemp("original") / "yolact_small_1_2.pth"
    torch.save(original_weights, path)
    return path


def test_results_equal_the_reference(original_weights, original_file, photo):
    model = YOLACT.from_pretrained(original_file, config=small_yolact_config("original"), device="cpu")
    result = model(photo, thresholds=replace(yolact_preset("original").postprocess, max_per_image=300))
    pixels = torch.from_numpy(photo).permute(2, 0, 1)[None].float()
    scaled = F.interpolate(pixels, (SIDE, SIDE), mode="bilinear", align_corners=False)
    mean, std = (torch.tensor(v)[:, None, None] for v in ((123.68, 116.78, 103.94), (58.40, 57.12, 57.38)))
    logits, deltas, coefficients, prototypes, sizes = reference.network(
        original_weights, (scaled - mean) / std
    )
    scores = logits.softmax(dim=1)[:, 1:].numpy()
    candidates = np.flatnonzero(scores.max(axis=1) > 0.05)
    boxes = reference.decode(deltas, reference.square_anchors(sizes, SCALES, SIDE))[candidates]
    expected = reference.fast_nms(boxes, scores[candidates], 0.5, 0.0, 200, 300)
    assert len(result) == len(expected) > 50
    assert result.scores.min() < 0.05  # scores below the threshold are kept
    np.testing.assert_allclose(result.scores, [score for score, _, _ in expected], atol=1e-5)
    assert result.labels.tolist() == [label for _, label, _ in expected]
    height, width = photo.shape[:2]
    for index, (_, _, row) in enumerate(expected):
        limits = np.array([width, height] * 2)
        assert np.abs(result.boxes[index].numpy() - np.clip(boxes[row] * limits, 0, limits)).max() < 0.01
        if index % 10 == 0:
            expected_mask = reference.mask(
                coefficients[candidates[row]], prototypes, boxes[row], (height, width)
            )
            assert (result[index].mask.numpy() != expected_mask).sum() <= 5


@pytest.mark.parametrize("name", ["yolact_original_r50", "yolact_original_r101_700"])
def test_square_anchors_of_the_published_sizes(name):
    config = find_preset(name)
    side = config.preprocessing.short_side
    sizes = {550: (69, 35, 18, 9, 5), 700: (88, 44, 22, 11, 6)}[side]
    scales = {550: (24, 48, 96, 192, 384), 700: (30, 61, 122, 244, 488)}[side]
    assert config.architecture.anchor_sizes == scales
    levels = tuple((size, size) for size in sizes)
    anchors = square_anchors(levels, config.architecture.anchor_sizes, (side, side), torch.device("cpu"))
    x, y, w, h = reference.square_anchors(levels, scales, side).T * side
    expected = np.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], axis=1)
    np.testing.assert_allclose(anchors.numpy(), expected, atol=1e-3)


def test_tensors_are_renamed(original_weights, original_file):
    state_dict = read_checkpoint(original_file).state_dict
    for name, tensor in small_yolact_network(small_yolact_config("original")).state_dict().items():
        assert torch.equal(state_dict[name], tensor), name
    assert not any(name in state_dict for name in original_weights if not name.startswith("backbone."))


def test_architecture_is_inferred_from_the_tensors(original_file):
    config = read_checkpoint(original_file).config
    architecture = config.architecture
    assert (architecture.variant, architecture.backbone) == ("original", "resnet50")
    assert (architecture.num_classes, architecture.pyramid_channels, architecture.num_protos) == (3, 32, 32)
    assert (config.preprocessing.short_side, config.thresholds.filter_thr) == (550, 0.0)


def test_files_of_the_first_version(original_weights, tmp_path):
    """Files of April 2019 hold the backbone twice, and layers that the network no longer has."""
    old = dict(original_weights)
    old["fpn.downsample_layers.2.weight"] = torch.zeros(32, 32, 3, 3)
    for name, tensor in original_weights.items():
        if name.startswith("backbone.layers."):
            old[f"backbone.layer{int(name[16]) + 1}{name[17:]}"] = tensor
    torch.save(old, tmp_path / "old.pth")
    checkpoint = read_checkpoint(tmp_path / "old.pth")
    assert torch.equal(
        checkpoint.state_dict["backbone.layer1.0.conv1.weight"],
        original_weights["backbone.layers.0.0.conv1.weight"],
    )
    assert not any("layer_blocks.5" in name for name in checkpoint.state_dict)


def test_mismatches_are_named_as_in_the_file(original_weights, tmp_path):
    weights = {name: tensor for name, tensor in original_weights.items() if name != "proto_net.4.bias"}
    weights["prediction_layers.0.conf_layer.weight"] = torch.zeros(13, 32, 3, 3)
    torch.save(weights, tmp_path / "original.pth")
    with pytest.raises(CheckpointError, match=r"conf_layer\.weight is \(13, 32, 3, 3\) instead of \(12,"):
        read_checkpoint(tmp_path / "original.pth", small_yolact_config("original"))
