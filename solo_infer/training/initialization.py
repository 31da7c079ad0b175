"""Where training starts: fresh weights, or a trained model with other classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from solo_infer.config import ModelConfig
from solo_infer.config.categories import Categories
from solo_infer.models import build_network
from solo_infer.models.base import SegmentationNetwork
from solo_infer.segmenters.auto import build_segmenter
from solo_infer.segmenters.base import Segmenter


def init_model(config: ModelConfig, seed: int = 0) -> Segmenter:
    """Return a model with fresh weights as mmdet initializes them, to be given a body and trained."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build_network(config.architecture)
        network.init_weights()
    return build_segmenter(config, network)


def replace_classifier(model: Segmenter, categories: Categories, seed: int = 0) -> Segmenter:
    """Return a copy of a model for other classes; only its classification layers start anew.

    A model that has these classes already is copied as it is.
    """
    if categories.names == model.config.categories.names:
        return _copy(model, replace(model.config, categories=categories))
    architecture = replace(model.config.architecture, num_classes=len(categories))
    return _copy(model, replace(model.config, architecture=architecture, categories=categories), seed)


def keep_classes(model: Segmenter, names: Sequence[str]) -> Segmenter:
    """Return a copy of a model that finds some of its classes only, in the order given.

    Raises:
        ResultError: There is no such class; the message suggests similar names.
    """
    categories = model.config.categories
    labels = categories.labels(names)
    chosen = Categories(tuple(names), tuple(categories.ids[label] for label in labels))
    other = replace_classifier(model, chosen)
    with torch.no_grad():
        for layer, rows in model.network.class_rows(labels).items():
            given = model.network.get_submodule(layer)
            for name, parameter in other.network.get_submodule(layer).named_parameters():
                parameter.copy_(given.get_parameter(name)[rows])
    return other


def _copy(model: Segmenter, config: ModelConfig, seed: int = 0) -> Segmenter:
    fresh = init_model(config, seed)
    own, given = fresh.network.state_dict(), model.network.state_dict()
    kept = {name: tensor for name, tensor in given.items() if tensor.shape == own[name].shape}
    if config.architecture.num_classes != model.config.architecture.num_classes or (
        config.categories.names != model.config.categories.names
    ):
        layers = tuple(f"{layer}." for layer in model.network.class_rows([0]))
        kept = {name: tensor for name, tensor in kept.items() if not name.startswith(layers)}
    fresh.network.load_state_dict({**own, **{name: tensor.float() for name, tensor in kept.items()}})
    return fresh


def prepare_for_training(network: SegmentationNetwork, freeze_stem: bool) -> SegmentationNetwork:
    """Put a network into train mode, all of it trainable but, if wanted, stem and first stage."""
    network.float().requires_grad_(True).train()
    if freeze_stem:
        network.backbone.freeze_stem()
    return network
