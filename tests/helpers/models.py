"""Small models that tests share."""

import copy
import functools
from dataclasses import replace

import torch
from torch import nn

from solo_infer.config import (
    Categories,
    ModelConfig,
    PreprocessConfig,
    SOLOConfig,
    TinyConfig,
    TinyPostprocessConfig,
    YOLACTConfig,
)
from solo_infer.config.presets import config_from_preset
from solo_infer.config.yolact import yolact_preset
from solo_infer.models import build_network
from solo_infer.models.backbones.resnet import ResNet

HEADS = ("solo", "decoupled", "decoupled_light", "solov2")
YOLACT_VARIANTS = ("mmdet", "original")

# Changes of a SOLO architecture, each of a part that the published models leave out.
CONVOLVED = {"head_bias": True, "extra_level": "conv"}
DEFORMABLE = {"deformable_head": True, "deformable_stages": (2, 3, 4)}
SOLO_VARIANTS = {
    "bias": {"head_bias": True},
    "conv": {"extra_level": "conv"},
    "deformable_head": {"deformable_head": True},
    "deformable": DEFORMABLE,
    "one_stage": {"deformable_stages": (3,)},
    "all": {**CONVOLVED, **DEFORMABLE},
}


def small_config(head):
    """Return the configuration of a SOLO model of three classes that runs in milliseconds."""
    return ModelConfig(
        SOLOConfig(
            head=head,
            num_classes=3,
            num_grids=(10, 8, 6, 4, 3),
            stacked_convs=2,
            pyramid_channels=32,
            head_channels=32,
            mask_channels=32 if head == "solov2" else SOLOConfig().mask_channels,
        ),
        PreprocessConfig(short_side=96, long_side=160),
        categories=Categories(("cat", "dog", "bird")),
    )


def variant_of(config, changes):
    """Return a configuration with some fields of its architecture changed."""
    return replace(config, architecture=replace(config.architecture, **changes))


@functools.lru_cache(maxsize=4)
def _built(build, arguments, backbone_constructor):
    """Return a network and the state of the random numbers after it was built."""
    network = build(*arguments)
    return network, torch.get_rng_state()


def copy_of_built(build, *arguments):
    """Return the network that ``build(*arguments)`` returns. A copy takes a fraction of the time."""
    # The constructor, which ``narrow_backbones`` replaces, makes other networks of the same configuration.
    network, random_state = _built(build, arguments, ResNet.__init__)
    torch.set_rng_state(random_state)
    return copy.deepcopy(network)


def small_network(config):
    """Return a network with random weights that finds a few dozen candidates with blob-like masks."""
    return copy_of_built(_build_small_network, config)


def _build_small_network(config):
    torch.manual_seed(7)
    network = build_network(config.architecture)
    with torch.no_grad():
        for name, parameter in network.mask_head.named_parameters():
            if "conv_mask" in name:
                parameter.mul_(20 if name.endswith("weight") else 1)
            if name == "conv_kernel.weight":
                parameter.mul_(6)
            if name == "conv_cls.weight":
                parameter.mul_(8)
            if name == "conv_cls.bias":
                parameter.fill_(-3.0)
    return network.requires_grad_(False)


def small_yolact_config(variant):
    """Return the configuration of a YOLACT model of three classes that runs in milliseconds."""
    config = config_from_preset(yolact_preset(variant, side=96), Categories(("cat", "dog", "bird")))
    architecture = YOLACTConfig(
        variant,
        num_classes=3,
        anchor_sizes=(12, 24, 48, 72, 96),
        strides=(8, 16, 32, 48, 96),
        pyramid_channels=32,
    )
    return replace(config, architecture=architecture)


def small_yolact_network(config):
    """Return a network with random weights that finds a few dozen candidates with blob-like masks."""
    return copy_of_built(_build_small_yolact_network, config)


def _build_small_yolact_network(config):
    torch.manual_seed(7)
    network = build_network(config.architecture)
    head = network.bbox_head
    with torch.no_grad():
        for conv, gain in ((head.conv_cls, 0.6), (head.conv_reg, 0.3), (network.mask_head.protonet[10], 6.0)):
            conv.weight.sub_(conv.weight.mean(dim=(1, 2, 3), keepdim=True)).mul_(gain)
        head.conv_cls.bias.view(3, -1)[:, -1] = 4.0
        network.mask_head.segm_branch.segm_conv.weight.mul_(0.1)
    return network.requires_grad_(False)


def small_tiny_config(backbone="shufflenet_1x"):
    """Return the configuration of a Tiny model of three classes that runs in milliseconds."""
    return ModelConfig(
        TinyConfig(
            backbone,
            num_classes=3,
            pyramid_channels=16,
            mask_channels=8,
            mask_features=8,
            mask_context_blocks=1,
            distance_bins=6,
        ),
        PreprocessConfig(short_side=96, long_side=160),
        TinyPostprocessConfig(),
        Categories(("cat", "dog", "bird")),
    )


@torch.no_grad()
def small_tiny_network(config):
    """Return a network with random weights that finds a few dozen candidates with blob-like masks."""
    network = build_network(config.architecture)
    generator = torch.Generator().manual_seed(7)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            fan_in = module.weight[0].numel()
            module.weight.normal_(std=(2 / fan_in) ** 0.5, generator=generator)
            module.bias.zero_()
    for layers, gain, bias in (
        (network.head.class_out, 0.01, -3.0),
        (network.head.distance_out, 0.005, 0.0),
        (network.head.kernel_out, 0.002, 0.0),
        ([network.mask_branch.out], 0.003, 0.0),
    ):
        for layer in layers:
            layer.weight.mul_(gain)
            layer.bias.fill_(bias)
    return network.to(memory_format=torch.channels_last).requires_grad_(False)


@torch.no_grad()
def randomize(network, seed=5):
    """Give a network the statistics, biases and offsets of a trained one, and return it."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in network.named_parameters():
        if "conv_offset" in name:
            parameter.normal_(std=0.05, generator=generator)
        if name.endswith("conv.bias"):
            parameter.normal_(generator=generator)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1, generator=generator)
            module.running_var.uniform_(0.5, 2.0, generator=generator)
            module.weight.uniform_(0.5, 1.5, generator=generator)
            module.bias.normal_(std=0.1, generator=generator)
    return network
