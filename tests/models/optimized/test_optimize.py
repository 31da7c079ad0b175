"""Whole optimized networks compute what the plain networks compute; the cached copy follows changes."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch
from helpers.dense_outputs import dense_mask_scores
from helpers.kernels import use_implementation
from helpers.models import (
    DEFORMABLE,
    HEADS,
    SOLO_VARIANTS,
    YOLACT_VARIANTS,
    randomize,
    small_config,
    small_network,
    small_yolact_config,
    small_yolact_network,
    variant_of,
)
from helpers.nested_tensors import assert_close_outputs, flatten_tensors, random_maps
from torch import nn

from solo_infer.models.layers.conv_branch import ConvBranch
from solo_infer.models.layers.deform_conv import DeformableConv
from solo_infer.models.optimized.compiled import compile_for_inference
from solo_infer.models.optimized.conv_branch import LevelwiseConvBranch
from solo_infer.models.optimized.group_norm_relu import GroupNormReLU
from solo_infer.models.optimized.halved_p2 import HalvedP2Neck
from solo_infer.models.optimized.named_children import named_children
from solo_infer.models.optimized.optimize import (
    OptimizedNetworkCache,
    fold_batch_norm,
    optimize_for_inference,
)
from solo_infer.models.optimized.upsampled_conv import FastUpsampledConv2d
from solo_infer.models.optimized.winograd_conv import WinogradConv2d

CONFIGS = {head: small_config(head) for head in HEADS}
CONFIGS |= {name: variant_of(CONFIGS["decoupled_light"], SOLO_VARIANTS[name]) for name in SOLO_VARIANTS}
CONFIGS |= {f"{head}_all": variant_of(CONFIGS[head], SOLO_VARIANTS["all"]) for head in ("solo", "decoupled")}
CONFIGS["lite0"] = variant_of(CONFIGS["decoupled_light"], {"backbone": "efficientnet_lite0"})
CONFIGS |= {f"yolact_{variant}": small_yolact_config(variant) for variant in YOLACT_VARIANTS}
ALL_SIZES = ("solo", "all", "lite0", "yolact_mmdet", "yolact_original")  # names tested with all sizes
SIZES = [(64, 96), (65, 97), (94, 70), (126, 122)]  # the last three have an odd C2, C3 or C4
CELLS = torch.tensor([0, 7, 99, 100, 163, 164, 199, 200, 215, 216, 224])  # of all levels


def random_network(name):
    config = CONFIGS[name]
    build = small_yolact_network if name.startswith("yolact") else small_network
    return randomize(build(config)).to(memory_format=torch.channels_last)


@pytest.fixture(params=["decoupled_light", "lite0"])
def network(request):
    return random_network(request.param)


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_optimized_network_equals_the_plain_network(name):
    network = random_network(name)
    optimized = optimize_for_inference(network)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in optimized.modules())
    for size in SIZES if name in ALL_SIZES else SIZES[1:2]:
        check_optimized_network(optimized, network, name, size)


def check_optimized_network(optimized, network, name, size):
    images = random_maps((3, *size), count=2)
    assert_close_outputs(optimized.backbone(images), network.backbone(images), 1e-3)
    assert_close_outputs(optimized.features(images), network.features(images), 1e-3)
    output, expected = optimized(images), network(images)
    assert type(output) is type(expected)
    assert_close_outputs(output[:2], expected[:2], 1e-3)
    if name.startswith("yolact"):
        assert output.sizes == expected.sizes
        return
    expected_scores = dense_mask_scores(expected)
    masks = optimized.mask_head.masks(optimized.features(images), [CELLS, CELLS[3:]])
    for image, cells in enumerate((CELLS, CELLS[3:])):
        scores = masks[image].scores(cells)
        torch.testing.assert_close(scores, expected_scores[image, cells], rtol=0, atol=2e-3)


@pytest.mark.parametrize("name", ["decoupled_light", "all", "yolact_original"])
@torch.no_grad()
def test_optimized_network_in_bfloat16(name):
    """Rounding errors of bfloat16 add up over the layers, so that the limit is that of the plain network."""
    network = random_network(name)
    images = random_maps((3, 65, 97))
    exact = network.features(images)
    network.to(torch.bfloat16)
    plain = network.features(images.bfloat16())
    optimized = optimize_for_inference(network).features(images.bfloat16())
    for levels in zip(optimized, plain, exact, strict=True):
        assert levels[0].dtype == torch.bfloat16
        error, plain_error = ((level.float() - levels[2]).abs().mean() for level in levels[:2])
        assert error < 1.5 * plain_error < 0.1 * levels[2].abs().max()


@torch.no_grad()
def test_swapped_modules(monkeypatch):
    use_implementation("torch", monkeypatch)
    config = variant_of(small_config("decoupled"), {"pyramid_channels": 256, "head_channels": 256})
    network = randomize(small_network(config))
    optimized = optimize_for_inference(network)
    assert isinstance(optimized.neck, HalvedP2Neck)
    for name in ("cls_convs", "mask_convs_x", "mask_convs_y"):
        assert isinstance(network.mask_head.get_submodule(name), ConvBranch)
        branch = optimized.mask_head.get_submodule(name)
        assert isinstance(branch, LevelwiseConvBranch)
        assert all(isinstance(block.get_submodule("gn"), GroupNormReLU) for block in branch.blocks)
    assert all(isinstance(conv, FastUpsampledConv2d) for conv in optimized.mask_head.conv_mask_list_y)
    wide = {
        name.replace(".block.", ".")  # of fused blocks
        for name, module in optimized.named_modules()
        if isinstance(module, WinogradConv2d)
    }
    assert wide == {
        *(f"backbone.layer3.{block}.conv2" for block in range(1, 6)),
        *(f"backbone.layer4.{block}.conv2" for block in range(1, 3)),
        *(f"neck.neck.layer_blocks.{level}.0" for level in range(4)),
        *(f"mask_head.cls_convs.blocks.{block}.conv" for block in range(2)),
        *(f"mask_head.mask_convs_{axis}.blocks.{block}.conv" for axis in "xy" for block in range(2)),
    }
    images = random_maps((3, 64, 96))
    assert_close_outputs(optimized(images).class_logits, network(images).class_logits, 1e-4)


@pytest.mark.parametrize("instructions", ["avx2", "avx512"])
@torch.no_grad()
def test_compiled_kernels_compute_narrow_convolutions_too(instructions, monkeypatch):
    use_implementation(instructions, monkeypatch)
    network = randomize(small_network(small_config("decoupled")))
    optimized = optimize_for_inference(network)
    names = {name for name, module in optimized.named_modules() if isinstance(module, WinogradConv2d)}
    blocks = {"layer1": range(3), "layer2": range(4), "layer3": range(6), "layer4": range(3)}
    assert {name.replace(".block.", ".") for name in names if name.startswith("backbone")} == {
        f"backbone.{layer}.{block}.conv2" for layer, indices in blocks.items() for block in indices
    }
    images = random_maps((3, 64, 96))
    assert_close_outputs(optimized(images).class_logits, network(images).class_logits, 1e-4)


@torch.no_grad()
def test_wide_deformable_convolutions_stay_deformable():
    changes = {**SOLO_VARIANTS["all"], **DEFORMABLE, "pyramid_channels": 256, "head_channels": 256}
    network = randomize(small_network(variant_of(small_config("decoupled_light"), changes)))
    optimized = optimize_for_inference(network)
    deformable = [module for module in optimized.modules() if isinstance(module, DeformableConv)]
    assert len(deformable) == 4 + 6 + 3 + 2  # the stages of the ResNet, and the two branches
    images = random_maps((3, 65, 97))
    assert_close_outputs(optimized.features(images), network.features(images), 2e-4)
    assert_close_outputs(optimized(images).class_logits, network(images).class_logits, 1e-3)


@torch.no_grad()
def test_plain_network_is_not_changed(network):
    modules = dict(network.named_modules())
    weights = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    optimize_for_inference(network)(random_maps((3, 64, 96)))
    assert dict(network.named_modules()) == modules
    assert any(isinstance(module, nn.BatchNorm2d) for module in network.backbone.modules())
    assert all(torch.equal(tensor, weights[name]) for name, tensor in network.state_dict().items())


def test_optimized_network_shares_unfolded_weights(network):
    optimized = optimize_for_inference(network)
    pointers = {parameter.data_ptr() for parameter in network.mask_head.parameters()}
    assert {parameter.data_ptr() for parameter in optimized.mask_head.parameters()} == pointers


@torch.no_grad()
def test_fold_batch_norm(network):
    folded = fold_batch_norm(network)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    assert not folded.training
    images = random_maps((3, 64, 96), count=2)
    assert_close_outputs(folded.backbone(images), network.backbone(images), 1e-4)


# --- Cache


def test_cache_builds_one_copy_and_follows_changes(network):
    cache = OptimizedNetworkCache(network)
    with ThreadPoolExecutor(8) as pool:
        copies = set(pool.map(lambda _: cache.get(), range(16)))
    assert len(copies) == 1
    (optimized,) = copies
    assert not optimized.training
    with torch.no_grad():
        next(network.neck.parameters()).add_(1.0)
    changed = cache.get()
    assert changed is not optimized and cache.get() is changed
    network.load_state_dict(network.state_dict())
    assert cache.get() is not changed
    network.double()
    assert next(cache.get().backbone.parameters()).dtype == torch.float64


def test_cache_follows_replaced_children(network):
    cache = OptimizedNetworkCache(network)
    before = cache.get()
    network.mask_head = copy.deepcopy(network.mask_head)
    assert cache.get() is not before


def test_cache_follows_replaced_modules_and_data_below_the_children(network):
    cache = OptimizedNetworkCache(network)
    before = cache.get()
    parent, name, conv = next(
        item for item in named_children(network.backbone) if isinstance(item[2], nn.Conv2d)
    )
    setattr(parent, name, copy.deepcopy(conv))
    replaced = cache.get()
    assert replaced is not before and cache.get() is replaced
    weight = parent.get_parameter(f"{name}.weight")
    weight.data = weight.detach() * 2  # does not count as a change of the tensor
    changed = cache.get()
    assert changed is not replaced and cache.get() is changed
    network.backbone.add_module("extra", nn.Identity())
    assert cache.get() is not changed


@torch.no_grad()
def test_cache_follows_casts_there_and_back(network):
    """A cast may put the weights at an address that they had before."""
    cache = OptimizedNetworkCache(network)
    images = random_maps((3, 64, 96))
    for _ in range(2):
        cache.get()
        network.to(torch.bfloat16).to(torch.float32)
        expected = optimize_for_inference(network).features(images)
        levels = cache.get().features(images)
        assert all(torch.equal(*pair) for pair in zip(levels, expected, strict=True))
        randomize(network)


@pytest.mark.parametrize("make_copy", [copy.deepcopy, lambda cache: pickle.loads(pickle.dumps(cache))])
@torch.no_grad()
def test_copied_and_pickled_caches_build_their_own_copies(network, make_copy):
    cache = OptimizedNetworkCache(network, partial(compile_for_inference, options={"backend": "eager"}))
    plain_cache = OptimizedNetworkCache(network)
    optimized = plain_cache.get()
    other = make_copy(plain_cache)
    assert other.get() is not optimized
    images = random_maps((3, 64, 96))
    outputs = flatten_tensors(other.get()(images)), flatten_tensors(optimized(images))
    assert all(torch.equal(*pair) for pair in zip(*outputs, strict=True))
    assert make_copy(cache)._build.keywords == {"options": {"backend": "eager"}}
