"""Model summaries for ``solo-infer info``."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from solo_infer.config import PRESETS, ModelConfig
from solo_infer.diagnostics.layer_table import LayerTable, tabulate
from solo_infer.errors import ConfigError
from solo_infer.inference.engines.sessions import open_session
from solo_infer.models import build_network
from solo_infer.segmenters.engine_model import is_engine_file
from solo_infer.weights import fetch
from solo_infer.weights.checkpoint import read_config
from solo_infer.weights.load import load_checkpoint, published_config
from solo_infer.weights.manifest import ManifestEntry, load_manifest

_MAX_PIXELS = 1 << 32  # sizes in bytes overflow beyond


@dataclass(frozen=True)
class Description:
    """Summary of a model.

    Attributes:
        facts: JSON-ready sections: publication, parameters, configuration.
        layers: Table of the layers of the network for an input size.
    """

    facts: dict[str, Any]
    layers: LayerTable


def describe_model(
    name_or_path: str | os.PathLike[str], input_size: tuple[int, int] | None = None
) -> Description:
    """Describe a model. Published models, presets and ``config.json`` files need no weights.

    Args:
        name_or_path: Name or path as for ``SOLO.from_pretrained``, a preset ("solo_r101"), or the path of a
            ``config.json``.
        input_size: (height, width) of the network input in pixels. Defaults to the largest input that the
            preprocessing of the model makes of an image in landscape format.

    Raises:
        WeightsError: The model is unknown, or its file cannot be read.
        ConfigError: The ``config.json`` is invalid, or the input is too small for the network.
    """
    published: dict[str, Any] = {}
    name = os.fspath(name_or_path)
    path, entry = Path(name), load_manifest().get(name)
    if entry is not None and not path.exists():
        published, config = {"published": describe_entry(entry)}, published_config(entry)
    elif path.suffix == ".json" and path.is_file():
        config = read_config(path)
    elif name in PRESETS and not path.exists():
        config = PRESETS[name]
    elif is_engine_file(name):
        config = open_session(path, None, torch.float32).exported.config
    else:
        config = load_checkpoint(name).config
    return Description({**published, **describe_config(config)}, layers_of(config, input_size))


def layers_of(config: ModelConfig, input_size: tuple[int, int] | None = None) -> LayerTable:
    """Return the layers of the network of a configuration, with the mask logits of all grid cells.

    Args:
        config: Configuration of the model.
        input_size: (height, width) of the network input in pixels; see ``describe_model``.
    """
    settings = config.preprocessing
    if input_size is None:
        input_size = settings.padded_shape(*settings.resized_shape(settings.short_side, settings.long_side))
    if input_size[0] * input_size[1] > _MAX_PIXELS:
        raise ConfigError(
            f"The network cannot take an input of {input_size} pixels: expected at most 2^32 in total."
        )
    network = build_network(config.architecture, device="meta")
    try:
        return tabulate(network, input_size)
    except (RuntimeError, ValueError) as error:
        raise ConfigError(f"The network cannot take an input of {input_size} pixels: {error}") from error


def describe_entry(entry: ManifestEntry) -> dict[str, Any]:
    """Return the manifest entry of a published checkpoint, and whether the checkpoint is cached."""
    values = asdict(entry)
    values["sources"] = [source.address for source in entry.sources]
    return {**values, "cached": fetch.is_cached(entry)}


def describe_config(config: ModelConfig) -> dict[str, Any]:
    """Return a configuration and the parameter counts of its network, as JSON-ready values."""
    network = build_network(config.architecture, device="meta")
    counts = {
        name: sum(parameter.numel() for parameter in module.parameters())
        for name, module in network.named_children()
    }
    return {"parameters": {**counts, "total": sum(counts.values())}, **config.to_dict()}
