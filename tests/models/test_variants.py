"""Variants of the published networks: biases, another extra level, deformable convolutions."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers import reference_solo
from helpers.checkpoint_files import check_same_model, in_authors_names, in_mmdet_names, narrow_backbones
from helpers.models import HEADS, small_config, small_network
from solo_infer.models.dense import raw_maps
from torch import nn

from solo_infer import SOLO
from solo_infer.config import PRESETS, SOLOConfig
from solo_infer.config.presets import config_from_preset
from solo_infer.config.solo import solo_preset
from solo_infer.inference.preprocess import plan, prepare
from solo_infer.models import build_network
from solo_infer.models.layers.deform_conv import DeformableConv
from solo_infer.models.optimized.optimize import inference_twin
from solo_infer.models.solo.neck import FeaturePyramid
from solo_infer.training.initialization import (
    init_model,
    load_backbone_weights,
    prepare_for_training,
    replace_classifier,
)
from solo_infer.weights.infer_config import infer_config
from solo_infer.weights.named_tensors import NamedTensors

CONVOLVED = {"head_bias": True, "extra_level": "conv"}
DEFORMABLE = {"deformable_head": True, "deformable_stages": (2, 3, 4)}
VARIANTS = {
    "bias": {"head_bias": True},
    "conv": {"extra_level": "conv"},
    "deformable_head": {"deformable_head": True},
    "deformable": DEFORMABLE,
    "one_stage": {"deformable_stages": (3,)},
    "all": {**CONVOLVED, **DEFORMABLE},
}
SIZES = [(64, 96), (65, 97), (94, 70), (126, 122)]  # the last three with an odd C2, C3 or C4


def variant_of(config, changes):
    return replace(config, architecture=replace(config.architecture, **changes))


def random_network(config, seed=5):
    """Return a network whose statistics, biases and offsets are not those of a fresh one."""
    network = small_network(config)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in network.named_parameters():
        if "conv_offset" in name:
            parameter.normal_(std=0.05, generator=generator)
        if name.endswith("conv.bias"):
            parameter.normal_(generator=generator)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1, generator=generator)
            module.running_var.uniform_(0.5, 2.0, generator=generator)
    return network


# --- Sizes


def test_biases_a_convolution_and_79_classes_have_the_known_number_of_parameters():
    network = build_network(SOLOConfig(head="solo", num_classes=79, **CONVOLVED), device="meta")
    assert sum(parameter.numel() for parameter in network.parameters()) == 36_892_591


@pytest.mark.parametrize("pool", [True, False])
def test_shapes_of_an_unpadded_input(pool):
    """800 wide, 1333 high: no multiple of 32."""
    config = SOLOConfig(head="solo", num_classes=79, head_bias=not pool)
    network = build_network(replace(config, extra_level="max_pool" if pool else "conv"), device="meta")
    images = torch.empty(1, 3, 1333, 800, device="meta")
    towers = []
    network.mask_head.mask_convs.register_forward_hook(lambda _, __, out: towers.append(tuple(out.shape)))
    assert [tuple(maps.shape[1:]) for maps in network.backbone(images)] == [
        (256, 334, 200),
        (512, 167, 100),
        (1024, 84, 50),
        (2048, 42, 25),
    ]
    heights_and_widths = [(167, 100), (167, 100), (84, 50), (42, 25), (42, 25)]
    assert [tuple(level.shape[1:]) for level in network.features(images)] == [
        (256, *size) for size in heights_and_widths
    ]
    found = raw_maps(network, images)
    assert towers == [(1, 256, *size) for size in heights_and_widths]
    assert [tuple(maps.shape[1:]) for (maps,) in found.masks] == [
        (1600, 334, 200),
        (1296, 334, 200),
        (576, 168, 100),
        (256, 84, 50),
        (144, 84, 50),
    ]
    assert [tuple(maps.shape[1:]) for maps in found.classes] == [(79, g, g) for g in (40, 36, 24, 16, 12)]
    twin = inference_twin(network)
    assert [level.shape for level in twin.features(images)] == [
        level.shape for level in network.features(images)
    ]


def test_extra_convolution_reads_p5_and_the_other_levels_stay():
    torch.manual_seed(1)
    pooled, convolved = FeaturePyramid((8, 8, 8, 8), 16), FeaturePyramid((8, 8, 8, 8), 16, extra_conv=True)
    convolved.load_state_dict(pooled.state_dict(), strict=False)
    maps = [torch.randn(1, 8, side, side) for side in (40, 20, 10, 5)]
    *same, p6 = convolved(maps)
    *expected, every_second = pooled(maps)
    for ours, theirs in zip(same, expected, strict=True):
        assert torch.equal(ours, theirs)
    assert torch.equal(every_second, nn.functional.max_pool2d(expected[-1], 1, 2))
    conv = convolved.layer_blocks[4][0]
    by_hand = nn.functional.conv2d(expected[-1], conv.weight, conv.bias, stride=2, padding=1)
    assert p6.shape == (1, 16, 3, 3) and torch.equal(p6, by_hand)


# --- The same function on every road


@pytest.mark.parametrize(
    "variant, size",
    [("all", size) for size in SIZES] + [(variant, SIZES[1]) for variant in list(VARIANTS)[:-1]],
)
@torch.no_grad()
def test_inference_twin_equals_the_plain_network(variant, size):
    network = random_network(variant_of(small_config("decoupled_light"), VARIANTS[variant]))
    twin = inference_twin(network)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in twin.modules())
    images = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(1))
    levels, expected_levels = twin.features(images), network.features(images)
    logits, expected_logits = (
        twin.mask_head.class_logits(levels),
        network.mask_head.class_logits(expected_levels),
    )
    for found, expected in zip(levels + logits, expected_levels + expected_logits, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


@torch.no_grad()
def test_wide_deformable_convolutions_stay_deformable():
    changes = {**CONVOLVED, **DEFORMABLE, "pyramid_channels": 256, "head_channels": 256}
    network = random_network(variant_of(small_config("decoupled_light"), changes))
    twin = inference_twin(network)
    kept = [module for module in twin.modules() if isinstance(module, DeformableConv)]
    assert len(kept) == 4 + 6 + 3 + 2  # the ResNet's stages, and the two branches
    images = torch.randn(1, 3, 65, 97, generator=torch.Generator().manual_seed(1))
    for found, expected in zip(twin(images)[0], network(images)[0], strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("head", HEADS)
@torch.no_grad()
def test_lazy_masks_equal_the_plain_ones(head):
    network = random_network(variant_of(small_config(head), VARIANTS["all"]))
    images = torch.randn(1, 3, 65, 97, generator=torch.Generator().manual_seed(2))
    levels, scores = network(images)
    torch.testing.assert_close(scores, reference_solo.class_scores(network, levels), rtol=0, atol=1e-6)
    cells = torch.tensor([0, 99, 100, 163, 199, 215, 224])
    found = network.mask_maps(levels, cells).scores(0, cells)
    torch.testing.assert_close(found, reference_solo.all_masks(network, levels)[0, cells], rtol=0, atol=2e-6)


@pytest.mark.parametrize("head", HEADS)
@torch.no_grad()
def test_raw_maps_are_the_logits_of_scores_and_masks(head):
    network = random_network(small_config(head))
    images = torch.randn(1, 3, 94, 65, generator=torch.Generator().manual_seed(2))
    levels, raw = network.features(images), raw_maps(network, images)
    for level, feature in enumerate(levels):
        for found, expected in zip(
            raw.masks[level], reference_solo.mask_logits(network.mask_head, feature, level), strict=True
        ):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    for found, expected in zip(raw.classes, network.mask_head.class_logits(levels), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("variant", ["bias", "all"])
def test_predictions_on_unpadded_images_equal_the_plain_road(variant, photo):
    config = variant_of(small_config("decoupled"), VARIANTS[variant])
    settings = replace(config.preprocessing, short_side=94, long_side=157, size_divisor=1)
    model = SOLO(replace(config, preprocessing=settings), random_network(config))
    geometry = plan(photo, settings)
    assert geometry.padded == geometry.resized and geometry.resized[1] % 4
    image = prepare(photo, geometry, settings, torch.device("cpu"))[None]
    with torch.no_grad():
        levels, scores = model.network(image)
        masks = reference_solo.all_masks(model.network, levels)[0]
        expected = reference_solo.detect(scores[0], masks, model._strides, geometry, config.thresholds)
    found = model(photo)
    assert found.labels.tolist() == expected[1].tolist() and len(found) > 5
    torch.testing.assert_close(found.scores, expected[0], rtol=0, atol=2e-3)
    assert (found.masks != expected[2]).flatten(1).sum(1).max() < 0.002 * photo[..., 0].size


# --- Deformable convolutions


def test_resting_taps_are_an_ordinary_convolution():
    torch.manual_seed(0)
    conv = DeformableConv(6, 5, stride=2, bias=True)
    x = torch.randn(2, 6, 9, 11)
    expected = nn.functional.conv2d(x, conv.weight, conv.bias, stride=2, padding=1)
    torch.testing.assert_close(conv(x), expected)


def test_offsets_are_y_then_x_of_each_tap_with_zeros_outside():
    """All taps a pixel down and two to the right: a convolution of the shifted image."""
    torch.manual_seed(0)
    conv = DeformableConv(3, 4)
    with torch.no_grad():
        conv.conv_offset.bias.copy_(torch.tensor([1.0, 2.0]).repeat(9))
    x = torch.randn(1, 3, 8, 9)
    padded = nn.functional.pad(x, (1, 3, 1, 2))  # what the taps see, two to the right and one down
    expected = nn.functional.conv2d(padded, conv.weight)[..., 1:, 2:]
    torch.testing.assert_close(conv(x), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@torch.no_grad()
def test_deformable_convolutions_in_other_dtypes(dtype):
    torch.manual_seed(0)
    conv = DeformableConv(8, 8, bias=True)
    conv.conv_offset.bias.uniform_(-2, 2)
    x = torch.randn(1, 8, 10, 12)
    expected = conv(x)
    found = conv.to(dtype)(x.to(dtype))
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), expected, rtol=0, atol=0.1 if dtype.itemsize < 4 else 1e-5)


@pytest.mark.parametrize("stride", [1, 2])
@torch.no_grad()
def test_each_tap_reads_its_own_place(stride):
    """Beside sampling by ``grid_sample``, tap by tap, with zeros outside."""
    torch.manual_seed(0)
    conv = DeformableConv(3, 4, stride=stride)
    conv.conv_offset.weight.normal_()
    x = torch.randn(1, 3, 9, 11)
    offsets = conv.conv_offset(x)[0]  # (18, h, w)
    rows, columns = (torch.arange(side) * stride - 1.0 for side in offsets.shape[1:])
    expected = torch.zeros(1, 4, *offsets.shape[1:])
    for tap in range(9):
        y = rows[:, None] + tap // 3 + offsets[2 * tap]
        x_ = columns[None] + tap % 3 + offsets[2 * tap + 1]
        grid = torch.stack([x_ / (11 - 1), y / (9 - 1)], dim=-1)[None] * 2 - 1
        seen = nn.functional.grid_sample(x, grid, padding_mode="zeros", align_corners=True)
        expected += nn.functional.conv2d(seen, conv.weight[:, :, tap // 3, tap % 3, None, None])
    torch.testing.assert_close(conv(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1e30])
def test_places_that_are_no_numbers_do_no_harm(value):
    """Torchvision's operator ends the process at offsets of NaN."""
    conv = DeformableConv(3, 4)
    nn.init.constant_(conv.conv_offset.bias, value)
    x = torch.zeros(1, 3, 8, 9, requires_grad=True)
    out = conv(x)
    out.sum().backward()
    assert out.shape == (1, 4, 8, 9) and torch.isfinite(out).all() and torch.isfinite(x.grad).all()


def test_deformable_network_in_bfloat16_predicts(photo):
    config = variant_of(small_config("decoupled_light"), DEFORMABLE)
    model = SOLO(config, random_network(config))
    assert len(model(photo)) > 0
    assert model.to(dtype="bfloat16")(photo).masks.dtype == torch.bool


# --- Checkpoints


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("head", HEADS)
def test_variants_are_recognized_from_their_tensors(head, variant):
    expected = variant_of(config_from_preset(solo_preset(head)), VARIANTS[variant])
    state_dict = build_network(expected.architecture, device="meta").state_dict()
    assert infer_config(NamedTensors(state_dict)).architecture == expected.architecture
    reversed_order = NamedTensors(dict(reversed(state_dict.items())))
    assert infer_config(reversed_order).architecture == expected.architecture


@pytest.mark.parametrize("variant", VARIANTS)
def test_files_of_variants_need_no_configuration(variant, tmp_path):
    with narrow_backbones():
        config = variant_of(small_config("decoupled_light"), VARIANTS[variant])
        model = SOLO(config, random_network(config))
        for rename in (dict, in_mmdet_names, in_authors_names):
            file = tmp_path / "model.pth"
            names = config.categories.names
            torch.save({"meta": {"CLASSES": names}, "state_dict": rename(model.network.state_dict())}, file)
            found = SOLO.from_pretrained(file, device="cpu")
            assert found.config.architecture == replace(
                config.architecture, scale_ranges=PRESETS["decoupled_light_r50"].architecture.scale_ranges
            )
            ours, theirs = found.network.state_dict(), model.network.state_dict()
            assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
        folder = model.save_pretrained(tmp_path / "saved")
        check_same_model(SOLO.from_pretrained(folder, device="cpu"), model)


def test_names_of_the_variants_tensors_are_mmdets():
    """The authors' light DCN file: ``bbox_head`` with ``use_dcn_in_tower``, ``stage_with_dcn`` 2 to 4."""
    light = build_network(PRESETS["decoupled_light_dcn_r50"].architecture, device="meta").state_dict()
    names = in_authors_names(light)
    offsets = {name: tuple(tensor.shape) for name, tensor in names.items() if "offset.weight" in name}
    assert {name: shape for name, shape in offsets.items() if "bbox" in name} == {
        "bbox_head.ins_convs.3.conv.conv_offset.weight": (18, 256, 3, 3),
        "bbox_head.cate_convs.3.conv.conv_offset.weight": (18, 256, 3, 3),
    }
    assert sum("backbone" in name for name in offsets) == 4 + 6 + 3
    assert offsets["backbone.layer2.0.conv2.conv_offset.weight"] == (18, 128, 3, 3)
    convolved = build_network(SOLOConfig(head="solo", **CONVOLVED), device="meta").state_dict()
    assert in_mmdet_names(convolved)["neck.fpn_convs.4.conv.weight"].shape == (256, 256, 3, 3)
    assert in_mmdet_names(convolved)["mask_head.mask_convs.0.conv.bias"].shape == (256,)


# --- Training


def targets_of(images):
    masks = torch.zeros(2, *images.shape[-2:], dtype=torch.bool)
    masks[0, 8:40, 8:40] = masks[1, 20:60, 30:90] = True
    boxes = torch.tensor([[8.0, 8, 40, 40], [30, 20, 90, 60]])
    return [{"boxes": boxes, "labels": torch.tensor([0, 2]), "masks": masks}]


@pytest.mark.parametrize("variant", ["all", "bias", "conv", "deformable"])
def test_variants_are_trained(variant):
    config = variant_of(small_config("decoupled"), VARIANTS[variant])
    network = prepare_for_training(init_model(config).network, freeze_stem=True)
    images = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    losses = network(images, targets_of(images))
    assert all(torch.isfinite(loss) for loss in losses.values())
    sum(losses.values()).backward()
    new = [
        parameter
        for name, parameter in network.named_parameters()
        if name.endswith("conv.bias") or "conv_offset" in name or "layer_blocks.4" in name
    ]
    assert new
    for parameter in new:
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all()
    assert sum(float(parameter.grad.abs().sum()) > 0 for parameter in new) > len(new) / 2


@pytest.mark.parametrize("size", [(94, 70), (65, 97), (126, 122)])
def test_unpadded_images_can_be_trained_on(size):
    network = prepare_for_training(init_model(small_config("solo")).network, freeze_stem=True)
    images = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(1))
    masks = torch.zeros(1, *size, dtype=torch.bool)
    masks[0, 4:60, 4:60] = True
    target = {"boxes": torch.tensor([[4.0, 4, 60, 60]]), "labels": torch.tensor([1]), "masks": masks}
    losses = network(images, [target])
    sum(losses.values()).backward()
    assert 0 < losses["loss_mask"] < 3
    assert network.mask_head.conv_mask_list[1].weight.grad.any()


def test_fresh_variants_start_as_the_published_ones_do():
    config = variant_of(small_config("solo"), VARIANTS["all"])
    head = init_model(config).network.mask_head
    for name, parameter in head.named_parameters():
        if name.endswith("conv.bias") or "conv_offset" in name:
            assert not parameter.any(), name
    assert head.conv_cls.bias.eq(head.conv_cls.bias[0]).all() and head.conv_cls.bias[0] < -4
    other = replace_classifier(init_model(config), PRESETS["solo_r50"].categories)
    assert other.config.architecture == replace(config.architecture, num_classes=80)


def test_bodies_of_classifiers_have_no_offsets(tmp_path):
    plain_body = build_network(small_config("solo").architecture).backbone
    config = variant_of(small_config("solo"), DEFORMABLE)
    network = random_network(config)
    offset = network.backbone.layer2[0].conv2.conv_offset.weight.clone()
    torch.save(plain_body.state_dict(), tmp_path / "resnet50.pth")
    load_backbone_weights(network, tmp_path / "resnet50.pth")
    assert torch.equal(network.backbone.layer2[0].conv2.weight, plain_body.layer2[0].conv2.weight)
    assert torch.equal(network.backbone.layer2[0].conv2.conv_offset.weight, offset)
