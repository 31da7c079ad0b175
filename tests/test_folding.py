"""The folded twin of a network computes what the network does, and follows its changes."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from conftest import small_config
from torch import nn

from solo_infer import SOLO
from solo_infer.models import build_network
from solo_infer.models.folding import FoldedNetwork, folded
from solo_infer.training.start import fresh_model


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
    twin = folded(network.backbone)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in twin.modules())
    for found, expected in zip(twin(images), network.backbone(images), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    assert any(isinstance(module, nn.BatchNorm2d) for module in network.backbone.modules())


def test_the_twin_is_made_once_and_follows_changes(network):
    holder = FoldedNetwork(network)
    with ThreadPoolExecutor(8) as pool:
        twins = set(pool.map(lambda _: holder.get(), range(16)))
    assert len(twins) == 1
    (twin,) = twins
    assert twin.mask_head is network.mask_head and twin.neck is network.neck and not twin.training
    with torch.no_grad():
        next(network.backbone.buffers()).add_(1.0)
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
    model.network.load_state_dict(fresh_model(small_model.config, seed=4).network.state_dict())
    assert not torch.equal(model(photo).scores, before.scores)


def test_models_can_be_copied_and_pickled(small_model, photo):
    expected = small_model(photo).scores
    for other in (copy.deepcopy(small_model), pickle.loads(pickle.dumps(small_model))):
        assert torch.equal(other(photo).scores, expected)


def test_weights_made_in_inference_mode(small_model, photo):
    with torch.inference_mode():
        model = SOLO(small_model.config, copy.deepcopy(small_model.network))
        assert torch.equal(model(photo).scores, small_model(photo).scores)
