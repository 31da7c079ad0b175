"""Compiled networks compute what the plain networks compute."""

import pytest
import torch
from helpers.models import (
    HEADS,
    YOLACT_VARIANTS,
    randomize,
    small_config,
    small_network,
    small_yolact_config,
    small_yolact_network,
    variant_of,
)
from helpers.nested_tensors import assert_close_outputs, random_maps
from torch import nn

from solo_infer.models.layers.conv_branch import ConvBranch
from solo_infer.models.optimized.compiled import CompiledConvBranch, compile_for_inference

EAGER = {"backend": "eager"}  # traces, but generates no code


@pytest.fixture(autouse=True)
def no_compiled_code():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("head", HEADS)
@torch.no_grad()
def test_compiled_solo_equals_the_plain_network(head):
    config = variant_of(small_config(head), {"backbone": "resnet18"})
    network = randomize(small_network(config))
    compiled = compile_for_inference(network, EAGER)
    branches = {name for name, module in network.mask_head.named_children() if isinstance(module, ConvBranch)}
    assert branches >= {"cls_convs"}
    for name in branches:
        assert isinstance(compiled.mask_head.get_submodule(name), CompiledConvBranch)
        assert isinstance(network.mask_head.get_submodule(name), ConvBranch)
    images = random_maps((3, 65, 97))
    assert_close_outputs(compiled(images), network(images), 1e-3)


@pytest.mark.parametrize("variant", YOLACT_VARIANTS)
@torch.no_grad()
def test_compiled_yolact_equals_the_plain_network(variant):
    network = randomize(small_yolact_network(small_yolact_config(variant)))
    compiled = compile_for_inference(network, EAGER)
    images = random_maps((3, 96, 96))
    output, expected = compiled(images), network(images)
    assert_close_outputs(output[:2], expected[:2], 1e-3)
    assert output.sizes == expected.sizes


@pytest.mark.parametrize("axes", ["", "xy"])
@torch.no_grad()
def test_compiled_branch_equals_the_plain_branch(axes):
    torch.manual_seed(3)
    branch = ConvBranch(64, 64, 2, axes=axes)
    for block in branch:
        nn.init.normal_(block.gn.weight)
    maps = [random_maps((64, *size), count=2) for size in ((6, 8), (3, 5), (1, 1))]
    compiled = CompiledConvBranch(branch, EAGER)
    assert_close_outputs(compiled(maps), branch(maps), 1e-5)
    shared = {parameter.data_ptr() for parameter in branch.parameters()}
    assert {parameter.data_ptr() for parameter in compiled.parameters()} == shared
