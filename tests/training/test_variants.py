"""Training of SOLO variants: biases, another extra level, deformable convolutions."""

from dataclasses import replace

import pytest
import torch
from helpers.models import DEFORMABLE, SOLO_VARIANTS, randomize, small_config, small_network, variant_of

from solo_infer.config import PRESETS
from solo_infer.models import build_network
from solo_infer.training import Recipe, init_model, load_backbone_weights, replace_classifier
from solo_infer.training.initialization import prepare_for_training


def targets_of(images):
    masks = torch.zeros(2, *images.shape[-2:], dtype=torch.bool)
    masks[0, 8:40, 8:40] = masks[1, 20:60, 30:90] = True
    boxes = torch.tensor([[8.0, 8, 40, 40], [30, 20, 90, 60]])
    return [{"boxes": boxes, "labels": torch.tensor([0, 2]), "masks": masks}]


@pytest.mark.parametrize("variant", ["all", "bias", "conv", "deformable"])
def test_every_parameter_of_a_variant_gets_a_gradient(variant):
    config = variant_of(small_config("decoupled"), SOLO_VARIANTS[variant])
    network = prepare_for_training(init_model(config).network, Recipe())
    images = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    losses = network(images, targets_of(images))
    assert all(torch.isfinite(loss) for loss in losses.values())
    sum(losses.values()).backward()
    added = [
        parameter
        for name, parameter in network.named_parameters()
        if name.endswith("conv.bias") or "conv_offset" in name or "layer_blocks.4" in name
    ]
    assert added
    for parameter in added:
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all()
    assert sum(float(parameter.grad.abs().sum()) > 0 for parameter in added) > len(added) / 2


@pytest.mark.parametrize("size", [(94, 70), (65, 97), (126, 122)])
def test_training_on_unpadded_images(size):
    network = prepare_for_training(init_model(small_config("solo")).network, Recipe())
    images = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(1))
    masks = torch.zeros(1, *size, dtype=torch.bool)
    masks[0, 4:60, 4:60] = True
    target = {"boxes": torch.tensor([[4.0, 4, 60, 60]]), "labels": torch.tensor([1]), "masks": masks}
    losses = network(images, [target])
    sum(losses.values()).backward()
    assert 0 < losses["loss_mask"] < 3
    assert network.mask_head.conv_mask_list[1].weight.grad.any()


def test_variants_are_initialized_like_the_published_models():
    config = variant_of(small_config("solo"), SOLO_VARIANTS["all"])
    head = init_model(config).network.mask_head
    for name, parameter in head.named_parameters():
        if name.endswith("conv.bias") or "conv_offset" in name:
            assert not parameter.any(), name
    assert head.conv_cls.bias.eq(head.conv_cls.bias[0]).all() and head.conv_cls.bias[0] < -4
    other = replace_classifier(init_model(config), PRESETS["solo_r50"].categories)
    assert other.config.architecture == replace(config.architecture, num_classes=80)


def test_offsets_are_kept_when_classifier_weights_are_loaded(tmp_path):
    plain_backbone = build_network(small_config("solo").architecture).backbone
    config = variant_of(small_config("solo"), DEFORMABLE)
    network = randomize(small_network(config))
    offset = network.backbone.layer2[0].conv2.conv_offset.weight.clone()
    torch.save(plain_backbone.state_dict(), tmp_path / "resnet50.pth")
    load_backbone_weights(network, tmp_path / "resnet50.pth")
    assert torch.equal(network.backbone.layer2[0].conv2.weight, plain_backbone.layer2[0].conv2.weight)
    assert torch.equal(network.backbone.layer2[0].conv2.conv_offset.weight, offset)
