"""Cells that several instances claim."""

import pytest
import torch
from helpers.models import small_config

from solo_infer.models.solo.targets import assign_targets, downsample_masks, mask_cells
from solo_infer.models.target import Instances


@pytest.fixture
def instances():
    """Return three squares around one center, with a fourth one elsewhere that has no pixel."""
    masks = torch.zeros(4, 96, 96, dtype=torch.bool)
    for mask, half in zip(masks, (24, 16, 20), strict=False):
        mask[48 - half : 48 + half, 48 - half : 48 + half] = True
    boxes = torch.tensor([[24.0, 24, 72, 72], [32, 32, 64, 64], [28, 28, 68, 68], [0, 0, 40, 40]])
    return Instances(boxes, torch.tensor([2, 0, 1, 2]), masks)


def test_solo_learns_the_last_instance_of_a_cell(instances):
    finest = assign_targets(instances, small_config("solo").architecture)[0]
    assert finest.positive.tolist() == sorted(set(finest.positive.tolist()))
    assert set(finest.labels[finest.positive].tolist()) == {1}
    assert (finest.masks == downsample_masks(instances.masks, 4)[2]).all()


def test_solov2_learns_all_instances_of_a_cell(instances):
    config = small_config("solov2").architecture
    levels = assign_targets(instances, config)
    solo_levels = assign_targets(instances, small_config("solo").architecture)
    for target, solo in zip(levels, solo_levels, strict=True):
        assert torch.equal(target.labels, solo.labels)
        assert torch.equal(target.positive.unique(), solo.positive)
        assert target.masks.shape[1:] == (24, 24)  # a quarter of the input on every level
    finest = levels[0]
    # Each instance claims the same cells, in the order of the instances and of the cells.
    cells = finest.positive.tolist()
    third = len(cells) // 3
    assert cells == 3 * cells[:third] and cells[:third] == sorted(set(cells))
    expected = downsample_masks(instances.masks, 4)[[0, 1, 2]].repeat_interleave(third, dim=0)
    assert torch.equal(finest.masks, expected)
    first_cells = torch.tensor([0, 100, 164, 200, 216])  # grids of 10, 8, 6, 4 and 3 cells
    assert mask_cells(levels).tolist() == [
        cell for target, first in zip(levels, first_cells.tolist(), strict=True)
        for cell in (target.positive + first).tolist()
    ]  # fmt: skip
