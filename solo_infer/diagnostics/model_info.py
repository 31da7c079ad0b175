"""What ``solo-infer info`` says of a model."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from solo_infer.config import PRESETS, ModelConfig
from solo_infer.diagnostics.layer_table import LayerTable, tabulate
from solo_infer.errors import ConfigError
from solo_infer.models import build_network
from solo_infer.models.dense import raw_maps
from solo_infer.models.solo.network import SOLONetwork
from solo_infer.weights import fetch
from solo_infer.weights.checkpoint import read_config
from solo_infer.weights.load import load_checkpoint, published_config
from solo_infer.weights.manifest import ManifestEntry, load_manifest

_MOST_PIXELS = 1 << 32  # beyond, sizes of memory wrap around


@dataclass(frozen=True)
class Description:
    """What is told of a model.

    Attributes:
        facts: JSON-ready sections: where it was published, parameters, configuration.
        layers: The network's layers on an input of the size asked for.
    """

    facts: dict[str, Any]
    layers: LayerTable


def describe_model(name_or_path: str, input_size: tuple[int, int] | None = None) -> Description:
    """Describe a model; a published one, a preset and a ``config.json`` are described without weights.

    Args:
        name_or_path: What ``SOLO.from_pretrained`` takes, a preset ("solo_r101"), or a ``config.json``.
        input_size: (height, width) in pixels of the network input; if not given, the largest that the model's
            preprocessing makes of a photo in landscape format.

    Raises:
        WeightsError: It is unknown, or its file cannot be read.
        ConfigError: The ``config.json`` is wrong, or the input too small for the network.
    """
    published: dict[str, Any] = {}
    path, entry = Path(name_or_path), load_manifest().get(name_or_path)
    if entry is not None and not path.exists():
        published, config = {"published": describe_entry(entry)}, published_config(entry)
    elif path.suffix == ".json" and path.is_file():
        config = read_config(path)
    elif name_or_path in PRESETS and not path.exists():
        config = PRESETS[name_or_path]
    else:
        config = load_checkpoint(name_or_path).config
    return Description({**published, **describe_config(config)}, layers_of(config, input_size))


def layers_of(config: ModelConfig, input_size: tuple[int, int] | None = None) -> LayerTable:
    """Return the layers of the network that a configuration describes; see ``describe_model``.

    Of SOLO it is the whole network, with the mask logits of all cells; predictions take shorter ways.
    """
    settings = config.preprocessing
    if input_size is None:
        input_size = settings.padded_shape(*settings.resized_shape(settings.short_side, settings.long_side))
    if input_size[0] * input_size[1] > _MOST_PIXELS:
        raise ConfigError(
            f"The network cannot take an input of {input_size} pixels: expected at most 2^32 in all."
        )
    network = build_network(config.architecture, device="meta")
    run = partial(raw_maps, network) if isinstance(network, SOLONetwork) else None
    try:
        return tabulate(network, input_size, run)
    except (RuntimeError, ValueError) as error:
        raise ConfigError(f"The network cannot take an input of {input_size} pixels: {error}") from error


def describe_entry(entry: ManifestEntry) -> dict[str, Any]:
    """Return what the manifest says of a published checkpoint, and whether it is cached here."""
    values = asdict(entry)
    values["sources"] = [source.address for source in entry.sources]
    return {**values, "cached": fetch.is_cached(entry)}


def describe_config(config: ModelConfig) -> dict[str, Any]:
    """Return a configuration with its parameter counts."""
    network = build_network(config.architecture, device="meta")
    counts = {
        part: sum(parameter.numel() for parameter in module.parameters())
        for part, module in network.named_children()
    }
    return {"parameters": {**counts, "total": sum(counts.values())}, **config.to_dict()}
