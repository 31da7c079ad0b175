"""Feature pyramid of SOLO and the feature maps that its heads read."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from solo_infer.config import PRESETS
from solo_infer.models import build_network
from solo_infer.models.solo.neck import SOLONeck, resize_feats


def random_pyramid():
    torch.manual_seed(1)
    return [torch.randn(1, 8, side, side) for side in (40, 20, 10, 5)]


def test_levels_of_a_published_input_size():
    network = build_network(PRESETS["solo_r50"].architecture, device="meta")
    levels = network.features(torch.empty(1, 3, 800, 1344, device="meta"))
    sizes = [tuple(level.shape[1:]) for level in levels]
    assert sizes == [(256, 100, 168), (256, 100, 168), (256, 50, 84), (256, 25, 42), (256, 25, 42)]


@pytest.mark.parametrize("extra_conv", [False, True])
@torch.no_grad()
def test_pyramid_step_by_step(extra_conv):
    torch.manual_seed(2)
    neck = SOLONeck((8, 8, 8, 8), 16, extra_conv)
    maps = random_pyramid()
    merged = neck.inner_blocks[3][0](maps[3])
    expected = [neck.layer_blocks[3][0](merged)]
    for index in (2, 1, 0):
        enlarged = F.interpolate(merged, size=maps[index].shape[-2:], mode="nearest")
        merged = neck.inner_blocks[index][0](maps[index]) + enlarged
        expected.insert(0, neck.layer_blocks[index][0](merged))
    levels = neck.pyramid(maps)
    assert len(levels) == 5
    for level, expected_level in zip(levels, expected, strict=False):
        assert torch.equal(level, expected_level)


def test_extra_convolution_reads_p5_and_changes_no_other_level():
    torch.manual_seed(1)
    pooled, convolved = SOLONeck((8, 8, 8, 8), 16), SOLONeck((8, 8, 8, 8), 16, extra_conv=True)
    convolved.load_state_dict(pooled.state_dict(), strict=False)
    maps = random_pyramid()
    *levels, p6 = convolved.pyramid(maps)
    *expected_levels, every_second = pooled.pyramid(maps)
    for level, expected in zip(levels, expected_levels, strict=True):
        assert torch.equal(level, expected)
    assert torch.equal(every_second, F.max_pool2d(expected_levels[-1], 1, 2))
    conv = convolved.layer_blocks[4][0]
    expected = F.conv2d(expected_levels[-1], conv.weight, conv.bias, stride=2, padding=1)
    assert p6.shape == (1, 16, 3, 3) and torch.equal(p6, expected)


def test_head_inputs_are_a_halved_p2_and_an_enlarged_p6():
    neck = SOLONeck((8, 8, 8, 8), 16)
    maps = random_pyramid()
    p2, p3, p4, p5, p6 = neck.pyramid(maps)
    levels = neck(maps)
    assert all(torch.equal(*pair) for pair in zip(levels[1:4], (p3, p4, p5), strict=True))
    torch.testing.assert_close(levels[0], F.avg_pool2d(p2, 2))
    expected = F.interpolate(p6, size=(5, 5), mode="bilinear", align_corners=False)
    assert torch.equal(levels[4], expected)


def test_odd_last_rows_and_columns_of_p2_are_dropped():
    p2 = torch.randn(1, 4, 7, 9, generator=torch.Generator().manual_seed(0))
    others = [torch.zeros(1, 4, side, side) for side in (4, 2, 1, 1)]
    assert resize_feats([p2, *others])[0].shape == (1, 4, 3, 4)
    torch.testing.assert_close(resize_feats([p2, *others])[0], F.avg_pool2d(p2, 2))


def test_extra_convolution_is_initialized_as_the_others():
    torch.manual_seed(3)
    conv = SOLONeck((8, 8, 8, 8), 64, extra_conv=True).layer_blocks[4][0]
    assert isinstance(conv, nn.Conv2d) and not conv.bias.any()
    limit = (3 / (64 * 9)) ** 0.5  # of He's uniform initialization with a slope of 1
    assert 0.9 * limit < conv.weight.abs().max() <= limit
