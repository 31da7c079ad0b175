"""The network of Tiny: sizes of its outputs, names of its tensors, memory format, initial weights."""

import math
import re
from dataclasses import replace

import pytest
import torch
from helpers.models import small_tiny_config, small_tiny_network
from helpers.nested_tensors import flatten_tensors, random_maps

from solo_infer.config import PRESETS
from solo_infer.errors import ConfigError
from solo_infer.models import build_network
from solo_infer.models.tiny.masks import cell_points
from solo_infer.models.tiny.network import FOCAL_PRIOR

SIZES = [(64, 128), (96, 160), (32, 96)]  # the last two are multiples of 32, but not of 64

# Names of the modules that hold tensors, with numbers of blocks and levels as "#".
MODULES = {
    "backbone.stem",
    *(
        f"backbone.stages.#.#.{layer}"
        for layer in ("left_depthwise", "left_pointwise", "expand", "depthwise", "pointwise")
    ),
    "neck.lateral.#",
    *(
        f"neck.{part}.#.{layer}"
        for part in ("top_down", "bottom_up")
        for layer in (
            "ghost#.primary",
            "ghost#.cheap",
            "shortcut_depthwise",
            "shortcut_pointwise",
        )
    ),
    *(
        f"{part}.{layer}"
        for part in (
            "neck.downsample.#",
            "neck.extra_from_c#",
            "neck.extra_from_p#",
            "head.class_tower.#.#",
            "head.kernel_tower.#.#",
        )
        for layer in ("depthwise", "pointwise")
    ),
    *(f"head.{layer}_out.#" for layer in ("class", "distance", "kernel")),
    "mask_branch.from_pyramid.#",
    *(f"mask_branch.context.#.{layer}" for layer in ("expand", "depthwise", "project")),
    *(f"mask_branch.{layer}" for layer in ("coarse#", "fine#", "to_fine", "detail", "quarter", "out")),
}


def level_sizes(size):
    return [(math.ceil(size[0] / stride), math.ceil(size[1] / stride)) for stride in (8, 16, 32, 64)]


def test_parameter_count_of_the_preset():
    network = build_network(PRESETS["tiny"].architecture, device="meta")
    assert sum(parameter.numel() for parameter in network.parameters()) == 2_809_936


def test_names_of_tensors_are_stable():
    state_dict = build_network(PRESETS["tiny"].architecture, device="meta").state_dict()
    modules = {re.sub(r"\d+", "#", name.rpartition(".")[0]) for name in state_dict}
    assert modules == MODULES
    assert {name.rpartition(".")[2] for name in state_dict} == {"weight", "bias"}
    assert len(state_dict) == 308


@pytest.mark.parametrize("backbone", ["shufflenet_1x", "shufflenet_1.5x"])
@pytest.mark.parametrize("size", SIZES)
@torch.no_grad()
def test_shapes(size, backbone):
    network = small_tiny_network(small_tiny_config(backbone))
    images = random_maps((3, *size), count=2)
    stem, *maps = network.backbone(images)
    levels = network.neck(maps)
    assert [tuple(level.shape) for level in levels] == [(2, 16, *shape) for shape in level_sizes(size)]
    output = network(images)
    cells = sum(height * width for height, width in level_sizes(size))
    assert [tuple(values.shape) for values in output.cells] == [(2, cells, 3), (2, cells, 24), (2, cells, 14)]
    assert output.points.shape == (cells, 3) and output.points.dtype == torch.float32
    assert output.features.shape == (2, 8, size[0] // 4, size[1] // 4)
    assert torch.equal(output.points, cell_points(level_sizes(size), images.device))


@torch.no_grad()
def test_feature_maps_stay_channels_last():
    network = small_tiny_network(small_tiny_config())
    stem, *maps = network.backbone(random_maps((3, 96, 128)))
    levels = network.neck(maps)
    features = network.mask_branch(stem, levels[:3])
    for level in (stem, *maps, *levels, features):
        assert level.is_contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def test_images_of_a_batch_do_not_affect_each_other():
    network = small_tiny_network(small_tiny_config())
    images = random_maps((3, 96, 128), count=2)
    batch = network(images)
    for index in range(2):
        alone = network(images[index : index + 1])
        for values, expected in zip(
            flatten_tensors((batch.cells, batch.features)),
            flatten_tensors((alone.cells, alone.features)),
            strict=True,
        ):
            torch.testing.assert_close(values[index : index + 1], expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_cells_of_a_level_follow_the_rows_of_its_map():
    network = small_tiny_network(small_tiny_config())
    stem, *maps = network.backbone(random_maps((3, 64, 96)))
    levels = network.neck(maps)
    cells = network.head(levels)
    start = 0
    for index, level in enumerate(levels):
        height, width = level.shape[-2:]
        logits = network.head.class_out[index](network.head.class_tower[index](level))
        for row in range(height):
            for column in range(width):
                cell = start + row * width + column
                torch.testing.assert_close(cells.class_logits[0, cell], logits[0, :, row, column])
        start += height * width


def test_initial_weights_give_the_prior_score_and_leave_the_backbone():
    network = build_network(small_tiny_config().architecture)
    before = {name: tensor.clone() for name, tensor in network.backbone.state_dict().items()}
    torch.manual_seed(0)
    network.init_weights()
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.backbone.state_dict().items())
    with torch.no_grad():
        output = network(random_maps((3, 64, 96)))
    assert output.cells.class_logits.sigmoid().mean().item() == pytest.approx(FOCAL_PRIOR, rel=0.5)
    assert not network.mask_branch.coarse2.weight.any() and not network.mask_branch.fine2.weight.any()
    assert not network.mask_branch.context[0].project.weight.any()


@torch.no_grad()
def test_new_context_blocks_change_nothing():
    config = small_tiny_config().architecture
    without = build_network(replace(config, mask_context_blocks=0))
    torch.manual_seed(0)
    without.init_weights()
    network = build_network(replace(config, mask_context_blocks=2))
    network.init_weights()
    missing, unexpected = network.load_state_dict(without.state_dict(), strict=False)
    assert len(missing) == 12 and not unexpected
    images = random_maps((3, 64, 96))
    assert torch.equal(network(images).features, without(images).features)


def test_class_rows_are_those_of_every_level():
    network = build_network(small_tiny_config().architecture, device="meta")
    rows = network.class_rows([2, 0])
    assert rows == {f"head.class_out.{level}": [2, 0] for level in range(4)}
    assert all(network.get_submodule(name).out_channels == 3 for name in rows)


def test_train_mode_needs_targets():
    network = build_network(small_tiny_config().architecture).train()
    with pytest.raises(ConfigError, match="one target for each of 1 images, got none"):
        network(torch.zeros(1, 3, 64, 64))
