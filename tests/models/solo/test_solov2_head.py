"""Head of SOLOv2: its definition step by step, and sizes."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from helpers.models import randomize, small_config, small_network
from helpers.nested_tensors import random_maps

from solo_infer.models import build_network

GRIDS = (10, 8, 6, 4, 3)


@pytest.fixture
def network():
    return randomize(small_network(small_config("solov2")))


def with_coordinates(x):
    height, width = x.shape[-2:]
    columns = torch.linspace(-1, 1, width).expand(len(x), 1, height, width)
    rows = torch.linspace(-1, 1, height)[:, None].expand(len(x), 1, height, width)
    return torch.cat([x, columns, rows], 1)


def doubled(x):
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


@torch.no_grad()
def test_kernels_and_classes_are_computed_on_the_grids(network):
    head = network.mask_head
    maps = network.backbone(random_maps((3, 96, 128), count=2))
    levels, output = network.neck.pyramid(maps), head(network.neck(maps))
    p5_size = levels[3].shape[-2:]
    resized = [F.avg_pool2d(levels[0], 2), *levels[1:4], F.interpolate(levels[4], p5_size, mode="bilinear")]
    for level, grid in enumerate(GRIDS):
        x = F.interpolate(with_coordinates(resized[level]), (grid, grid), mode="bilinear")
        kernels, classes = x, x[:, :-2]
        for block in head.kernel_convs:
            kernels = block(kernels)
        for block in head.cls_convs:
            classes = block(classes)
        torch.testing.assert_close(output.kernels[level], head.conv_kernel(kernels), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(output.class_logits[level], head.conv_cls(classes), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_mask_features_are_the_sum_of_the_up_sampled_levels(network):
    head = network.mask_head.mask_feature_head
    p2, p3, p4, p5, _ = network.neck.pyramid(network.backbone(random_maps((3, 96, 128), count=2)))
    blocks = [list(level.children()) for level in head.convs_all_levels]
    assert [len(level) for level in blocks] == [1, 1, 2, 3]
    expected = blocks[0][0](p2)
    for x, level in ((p3, blocks[1]), (p4, blocks[2]), (with_coordinates(p5), blocks[3])):
        for block in level:
            x = doubled(block(x))
        expected = expected + x
    expected = head.conv_pred.gn(F.conv2d(expected, head.conv_pred.conv.weight)).relu()
    torch.testing.assert_close(head([p2, p3, p4, p5]), expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_kernel_branch_runs_on_levels_with_cells_only(network):
    levels = network.features(random_maps((3, 96, 128), count=2))
    calls = []
    network.mask_head.kernel_convs.register_forward_hook(
        lambda _module, inputs, _output: calls.extend(tuple(x.shape) for x in inputs[0])
    )
    nothing = torch.zeros(0, dtype=torch.int64)
    network.mask_head.masks(levels, [torch.tensor([5, 99]), torch.tensor([7, 170])])
    assert calls == [(2, 34, 10, 10), (1, 34, 6, 6)]
    calls.clear()
    masks = network.mask_head.masks(levels, [nothing, nothing])
    assert calls == []
    assert [image.scores(nothing).shape for image in masks] == [(0, 24, 32)] * 2


@pytest.mark.parametrize(
    "changes",
    [
        {"deformable_head": "last", "deformable_stages": (2, 3, 4), "backbone": "resnet50"},
        {"deformable_head": "all", "deformable_mask_features": True},
        {"backbone": "resnext101_64x4d", "deformable_stages": (4,)},
    ],
    ids=str,
)
@torch.no_grad()
def test_deformable_convolutions_are_where_the_configuration_says(changes):
    architecture = replace(small_config("solov2").architecture, modulated=True, **changes)
    network = build_network(architecture, device="meta")
    names = {name.removesuffix(".conv_offset.weight") for name in network.state_dict() if "offset.w" in name}
    heads = {"none": (), "last": (1,), "all": (0, 1)}[architecture.deformable_head]
    expected = {f"mask_head.{branch}.{i}.conv" for branch in ("cls_convs", "kernel_convs") for i in heads}
    if architecture.deformable_mask_features:
        expected |= {
            f"mask_head.mask_feature_head.convs_all_levels.{level}.conv{index}.conv"
            for level, count in enumerate((1, 1, 2, 3))
            for index in range(count)
        } | {"mask_head.mask_feature_head.conv_pred.conv"}
    for stage in architecture.deformable_stages:
        blocks = len(getattr(network.backbone, f"layer{stage}"))
        expected |= {f"backbone.layer{stage}.{block}.conv2" for block in range(blocks)}
    assert names == expected
    output = network(torch.zeros(1, 3, 64, 96, device="meta"))
    assert output.mask_features.shape == (1, 32, 16, 24)
