"""ShuffleNetV2 without BatchNorm: sizes, channel order, memory format, frozen parts."""

import pytest
import torch
from helpers.nested_tensors import random_maps
from torch import nn

from solo_infer.config.tiny import SHUFFLENET_CHANNELS
from solo_infer.models.backbones.shufflenet import ShuffleNet, interleave

SIZES = [(64, 64), (32, 96), (96, 160)]  # the last two are multiples of 32, but not of 64


@pytest.mark.parametrize("name", SHUFFLENET_CHANNELS)
@torch.no_grad()
def test_maps_have_the_channels_and_strides_of_the_stages(name):
    backbone = ShuffleNet(name)
    for height, width in SIZES:
        maps = backbone(random_maps((3, height, width), count=2))
        expected = [
            (2, channels, height // stride, width // stride)
            for channels, stride in zip(SHUFFLENET_CHANNELS[name], (2, 8, 16, 32), strict=True)
        ]
        assert [tuple(level.shape) for level in maps] == expected
        assert all(level.is_contiguous(memory_format=torch.channels_last) for level in maps)


def test_interleaving_is_the_concatenation_and_channel_shuffle():
    left, right = random_maps((5, 3, 4), count=2), random_maps((5, 3, 4), count=2, seed=2)
    concatenated = torch.cat([left, right], dim=1)
    shuffled = concatenated.view(2, 2, 5, 3, 4).transpose(1, 2).reshape(2, 10, 3, 4)
    for memory_format in (torch.channels_last, torch.contiguous_format):
        pair = (half.contiguous(memory_format=memory_format) for half in (left, right))
        interleaved = interleave(*pair)
        assert torch.equal(interleaved, shuffled)
        assert torch.equal(interleaved, nn.ChannelShuffle(2)(concatenated.contiguous()))
        assert interleaved.is_contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def test_units_of_stride_1_pass_half_of_their_channels():
    block = ShuffleNet("shufflenet_1x").stages[0][1]
    x = random_maps((116, 6, 5))
    assert torch.equal(block(x)[:, ::2], x[:, :58])


def test_frozen_parts():
    backbone = ShuffleNet("shufflenet_1x")
    backbone.freeze_stem()
    frozen = {name for name, p in backbone.named_parameters() if not p.requires_grad}
    trained = {name for name, p in backbone.named_parameters() if p.requires_grad}
    assert frozen and all(name.startswith(("stem.", "stages.0.")) for name in frozen)
    assert trained and all(name.startswith(("stages.1.", "stages.2.")) for name in trained)
