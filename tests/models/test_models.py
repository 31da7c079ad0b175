import pytest
import torch
from helpers.models import HEADS, small_config, small_network
from helpers.reference_solo import all_masks, class_scores

from solo_infer.config import PRESETS
from solo_infer.models import build_network
from solo_infer.models.layers.conv_branch import coordinates
from solo_infer.models.solo.network import keep_local_maxima

PARAMETERS = {
    "solo_r50": 36_301_232,
    "decoupled_r50": 40_028_560,
    "decoupled_light_r50": 32_354_192,
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_published_models_have_mmdets_parameter_counts(name):
    network = build_network(PRESETS[name].architecture, device="meta")
    assert sum(parameter.numel() for parameter in network.parameters()) == PARAMETERS[name]


def test_resnet101_adds_the_blocks_of_its_third_stage():
    shallow = build_network(PRESETS["solo_r50"].architecture, device="meta").state_dict()
    deep = build_network(PRESETS["solo_r101"].architecture, device="meta").state_dict()
    extra = {name.split(".")[2] for name in set(deep) - set(shallow)}
    assert extra == {str(block) for block in range(6, 23)}
    assert set(shallow) < set(deep)


def test_levels_of_a_published_input_size():
    network = build_network(PRESETS["solo_r50"].architecture, device="meta")
    levels = network.features(torch.empty(1, 3, 800, 1344, device="meta"))
    sizes = [tuple(level.shape[1:]) for level in levels]
    assert sizes == [(256, 100, 168), (256, 100, 168), (256, 50, 84), (256, 25, 42), (256, 25, 42)]


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("size", [(96, 160), (65, 97), (33, 250), (1, 1)])
def test_lazy_masks_equal_the_plain_ones(head, size):
    """Also for sizes that are no multiples of 32, and in a batch."""
    network = small_network(small_config(head))
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        levels = network.features(images) if min(size) > 32 else padded_levels(network, size)
        scores = network.class_scores(levels)
        torch.testing.assert_close(scores, class_scores(network, levels), rtol=0, atol=1e-6)
        expected = all_masks(network, levels)
        cells = torch.tensor([7, 0, 99, 50, 3, 163, 100, 164, 199, 200, 224, 216])  # on all levels
        maps = network.mask_maps(levels, cells)
        assert maps.size == expected.shape[-2:]
        for image in range(2):
            found = maps.scores(image, cells)
            torch.testing.assert_close(found, expected[image, cells], rtol=0, atol=2e-6)


def padded_levels(network, size):
    return network.features(torch.zeros(2, 3, *(max(side, 32) for side in size)))


@pytest.mark.parametrize("head", HEADS)
def test_masks_of_one_cell_do_not_depend_on_the_others(head):
    network = small_network(small_config(head))
    levels = network.features(torch.randn(1, 3, 96, 128, generator=torch.Generator().manual_seed(2)))
    few, many = torch.tensor([41, 150]), torch.arange(225)
    found = network.mask_maps(levels, few).scores(0, few)
    expected = network.mask_maps(levels, many).scores(0, few)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_levels_without_cells_run_no_mask_branch(small_models):
    network = small_models["solo"].network
    levels = network.features(torch.zeros(1, 3, 96, 96))
    maps = network.mask_maps(levels, torch.tensor([100, 101]))
    assert list(maps.towers) == [1]


def test_coordinates_run_from_minus_one_to_one_over_the_padded_map():
    x, y = coordinates(torch.zeros(2, 5, 3, 4))
    assert x.shape == y.shape == (2, 1, 3, 4)
    torch.testing.assert_close(x[1, 0, 2], torch.linspace(-1, 1, 4))
    torch.testing.assert_close(y[0, 0, :, 1], torch.linspace(-1, 1, 3))
    x, y = coordinates(torch.zeros(1, 1, 1, 1))
    assert x.item() == y.item() == -1


def test_local_maxima_look_left_and_up_and_keep_plateaus():
    scores = torch.tensor([[0.1, 0.2, 0.2], [0.3, 0.1, 0.5], [0.3, 0.4, 0.4]])[None, None]
    expected = torch.tensor([[0.1, 0.2, 0.2], [0.3, 0.0, 0.5], [0.3, 0.4, 0.0]])
    assert torch.equal(keep_local_maxima(scores)[0, 0], expected)


def test_group_norms_use_mmdets_epsilon_and_groups():
    network = build_network(PRESETS["decoupled_r50"].architecture, device="meta")
    norms = [module for module in network.modules() if isinstance(module, torch.nn.GroupNorm)]
    assert len(norms) == 21
    assert {(norm.eps, norm.num_groups) for norm in norms} == {(1e-5, 32)}
