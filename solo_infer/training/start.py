"""Where training starts: fresh weights, or a trained model with other classes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from solo_infer.base import Segmenter
from solo_infer.categories import Categories
from solo_infer.config import ModelConfig
from solo_infer.models import Network, SOLONetwork, YolactNetwork, build_network
from solo_infer.models.branches import ConvBlock
from solo_infer.models.deformable import DeformableConv
from solo_infer.segmenter import SOLO, YOLACT, make_model

PRIOR = 0.01  # probability that a fresh cell says "object" (RetinaNet; mmdet's bias_prob)
SPREAD = 0.01  # standard deviation of a head's fresh weights (mmdet's SOLO heads)


def fresh_model(config: ModelConfig, seed: int = 0) -> SOLO | YOLACT:
    """Return a model with fresh weights as mmdet initialises them, to be given a body and trained."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build_network(config.architecture)
        if isinstance(network, YolactNetwork):
            _initialise_yolact(network)
        else:
            _initialise_solo(network)
    return make_model(config, network)


def _initialise_solo(network: SOLONetwork) -> None:
    for module in network.mask_head.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=SPREAD)
            if module.bias is not None:
                nn.init.constant_(module.bias, -math.log((1 - PRIOR) / PRIOR))
    for module in network.mask_head.modules():
        if isinstance(module, ConvBlock) and module.conv.bias is not None:
            nn.init.zeros_(module.conv.bias)
        if isinstance(module, DeformableConv):
            module.reset_offsets()
    for module in network.neck.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.xavier_uniform_(module.weight)


def _initialise_yolact(network: YolactNetwork) -> None:
    for part in (network.neck, network.bbox_head, network.mask_head):
        for module in part.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)
                assert module.bias is not None
                nn.init.zeros_(module.bias)


def with_classes(model: Segmenter, categories: Categories, seed: int = 0) -> SOLO | YOLACT:
    """Return a copy of a model for other classes; only its classification layers start anew.

    A model that has these classes already is copied as it is.
    """
    if categories.names == model.config.categories.names:
        return _copy(model, replace(model.config, categories=categories))
    architecture = replace(model.config.architecture, num_classes=len(categories))
    return _copy(model, replace(model.config, architecture=architecture, categories=categories), seed)


def with_chosen_classes(model: Segmenter, names: Sequence[str]) -> SOLO | YOLACT:
    """Return a copy of a model that finds some of its classes only, in the order given.

    Raises:
        ResultError: There is no such class; the message suggests similar names.
    """
    categories = model.config.categories
    labels = categories.labels(names)
    chosen = Categories(tuple(names), tuple(categories.ids[label] for label in labels))
    other = with_classes(model, chosen)
    with torch.no_grad():
        for layer, rows in model.network.class_rows(labels).items():
            given = model.network.get_submodule(layer)
            for name, parameter in other.network.get_submodule(layer).named_parameters():
                parameter.copy_(given.get_parameter(name)[rows])
    return other


def _copy(model: Segmenter, config: ModelConfig, seed: int = 0) -> SOLO | YOLACT:
    fresh = fresh_model(config, seed)
    own, given = fresh.network.state_dict(), model.network.state_dict()
    kept = {name: tensor for name, tensor in given.items() if tensor.shape == own[name].shape}
    if config.architecture.num_classes != model.config.architecture.num_classes or (
        config.categories.names != model.config.categories.names
    ):
        layers = tuple(f"{layer}." for layer in model.network.class_rows([0]))
        kept = {name: tensor for name, tensor in kept.items() if not name.startswith(layers)}
    fresh.network.load_state_dict({**own, **{name: tensor.float() for name, tensor in kept.items()}})
    return fresh


def prepare_for_training(network: Network, freeze_stem: bool) -> Network:
    """Put a network into train mode, all of it trainable but, if wanted, stem and first stage."""
    network.float().requires_grad_(True).train()
    if freeze_stem:
        network.backbone.freeze_stem()
    return network
