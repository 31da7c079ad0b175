"""What ``solo-infer info`` says of a model."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from solo_infer.config import ModelConfig
from solo_infer.models import build_network
from solo_infer.weights import sources
from solo_infer.weights.manifest import ManifestEntry, load_manifest
from solo_infer.weights.pretrained import load_checkpoint, published_config


def describe_model(name_or_path: str) -> dict[str, Any]:
    """Return JSON-ready facts of a model; a published one is described without its weights.

    Raises:
        WeightsError: It is unknown, or its file cannot be read.
    """
    entry = load_manifest().get(name_or_path)
    if entry is not None and not Path(name_or_path).exists():
        return {"published": describe_entry(entry), **describe_config(published_config(entry))}
    return describe_config(load_checkpoint(name_or_path).config)


def describe_entry(entry: ManifestEntry) -> dict[str, Any]:
    """Return what the manifest says of a published checkpoint, and whether it is cached here."""
    values = asdict(entry)
    values["sources"] = [source.address for source in entry.sources]
    return {**values, "cached": sources.is_cached(entry)}


def describe_config(config: ModelConfig) -> dict[str, Any]:
    """Return a configuration with its parameter counts."""
    network = build_network(config.architecture, device="meta")
    counts = {
        part: sum(parameter.numel() for parameter in module.parameters())
        for part, module in network.named_children()
    }
    return {"parameters": {**counts, "total": sum(counts.values())}, **config.to_dict()}
