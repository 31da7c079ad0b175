"""The twin that predicts computes what the network does, and follows its changes."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from helpers.models import small_config
from torch import nn
from torchvision.models.resnet import Bottleneck

from solo_infer import SOLO
from solo_infer.models import build_network
from solo_infer.models.optimized import fused_bottleneck
from solo_infer.models.optimized.fused_bottleneck import FusedBottleneck, can_fuse
from solo_infer.models.optimized.optimize import InferenceTwin, inference_twin
from solo_infer.models.optimized.winograd_conv import WideConv
from solo_infer.training.initialization import init_model


@pytest.fixture(params=["resnet50", "efficientnet_lite0"])
def network(request):
    config = small_config("decoupled_light")
    network = build_network(replace(config.architecture, backbone=request.param)).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(generator=generator).mul_(0.1)
                module.running_var.uniform_(0.5, 2.0, generator=generator)
                module.weight.uniform_(0.5, 1.5, generator=generator)
                module.bias.normal_(generator=generator).mul_(0.1)
    return network


@torch.no_grad()
def test_same_maps_without_any_batch_norm(network):
    images = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    twin = inference_twin(network)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in twin.modules())
    for found, expected in zip(twin.backbone(images), network.backbone(images), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    assert any(isinstance(module, nn.BatchNorm2d) for module in network.backbone.modules())
    shared = {id(parameter) for parameter in network.mask_head.parameters()}
    assert {id(parameter) for parameter in twin.mask_head.parameters()} == shared


def test_the_twin_is_made_once_and_follows_changes(network):
    holder = InferenceTwin(network)
    with ThreadPoolExecutor(8) as pool:
        twins = set(pool.map(lambda _: holder.get(), range(16)))
    assert len(twins) == 1
    (twin,) = twins
    assert not twin.training
    with torch.no_grad():
        next(network.neck.parameters()).add_(1.0)
    changed = holder.get()
    assert changed is not twin and holder.get() is changed
    network.load_state_dict(network.state_dict())
    assert holder.get() is not changed
    network.double()
    assert next(holder.get().backbone.parameters()).dtype == torch.float64


def test_predictions_follow_the_weights(small_model, photo):
    model = SOLO(small_model.config, copy.deepcopy(small_model.network))
    before = model(photo)
    assert torch.equal(before.scores, small_model(photo).scores)
    model.network.load_state_dict(init_model(small_model.config, seed=4).network.state_dict())
    assert not torch.equal(model(photo).scores, before.scores)


def test_models_can_be_copied_and_pickled(small_model, photo):
    expected = small_model(photo).scores
    for other in (copy.deepcopy(small_model), pickle.loads(pickle.dumps(small_model))):
        assert torch.equal(other(photo).scores, expected)


def test_weights_made_in_inference_mode(small_model, photo):
    with torch.inference_mode():
        model = SOLO(small_model.config, copy.deepcopy(small_model.network))
        assert torch.equal(model(photo).scores, small_model(photo).scores)


@torch.no_grad()
def test_wide_convolutions_go_another_way_and_come_to_the_same():
    config = replace(small_config("solo").architecture, pyramid_channels=256, head_channels=256)
    network = init_model(replace(small_config("solo"), architecture=config)).network.eval()
    twin = inference_twin(network)
    wide = {
        name.replace(".block", "") for name, module in twin.named_modules() if isinstance(module, WideConv)
    }
    assert {
        "mask_head.cls_convs.0.conv",
        "neck.layer_blocks.1.0",
        "backbone.layer3.1.conv2",
        "neck.layer_blocks.0.0",
    } <= wide
    assert not wide & {"backbone.layer3.0.conv2", "mask_head.conv_cls"}
    images = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    for found, expected in zip(twin(images)[0], network(images)[0], strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    conv = twin.get_submodule("mask_head.cls_convs.0.conv")
    assert conv._transformed.shape == (36, 256, 256)
    halves = torch.randn(1, 256, 5, 5, dtype=torch.float64)
    conv.double()
    assert conv(halves).dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_fused_blocks_are_the_blocks(dtype):
    """Whether or not oneDNN's fused operators are there; the input of the body is left alone."""
    body = build_network(small_config("solo").architecture).backbone.to(dtype).eval()
    images = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(1)).to(dtype)
    before = images.clone()
    twin = inference_twin(body)
    kinds = {type(module) for module in twin.layer1}
    assert kinds == {FusedBottleneck if can_fuse(torch.device("cpu"), dtype) else Bottleneck}
    limit = 1e-4 if dtype == torch.float32 else 0.05
    for _ in range(2):
        for found, expected in zip(twin(images), body(images), strict=True):
            difference = (found.float() - expected.float()).abs().max()
            assert difference < limit * expected.float().abs().max()
    assert torch.equal(images, before)


def test_blocks_stay_as_they_are_without_the_operators(monkeypatch):
    monkeypatch.setattr(fused_bottleneck, "_add_convolution_relu", missing)
    fused_bottleneck._fused_operators_work.cache_clear()
    try:
        assert not can_fuse(torch.device("cpu"), torch.float32)
        body = inference_twin(build_network(small_config("solo").architecture).backbone.eval())
        assert not any(isinstance(module, FusedBottleneck) for module in body.modules())
    finally:
        fused_bottleneck._fused_operators_work.cache_clear()


def missing(*_):
    raise AttributeError("'_OpNamespace' 'mkldnn' object has no attribute '_convolution_pointwise_'")


def test_fused_blocks_still_learn():
    body = inference_twin(build_network(small_config("solo").architecture).backbone.eval())
    images = torch.randn(1, 3, 32, 32, requires_grad=True)
    body(images)[-1].sum().backward()
    assert images.grad is not None and images.grad.abs().sum() > 0


def test_predictions_go_through_the_twin_from_end_to_end(small_model, photo, monkeypatch):
    model = SOLO(small_model.config, copy.deepcopy(small_model.network))
    expected = model(photo)
    for part in ("features", "class_scores", "mask_maps"):
        monkeypatch.setattr(model.network, part, missing)  # the twin was made before
    monkeypatch.setattr(model.network.backbone, "forward", missing)
    assert len(expected) and torch.equal(model(photo).packed_masks, expected.packed_masks)
