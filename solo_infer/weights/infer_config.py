"""Inference of a model's configuration from the tensors of its checkpoint."""

from __future__ import annotations

from dataclasses import replace

from solo_infer.config import COCO, Categories, ModelConfig, categories
from solo_infer.config.presets import config_from_preset
from solo_infer.errors import CheckpointError, ConfigError
from solo_infer.runtime.messages import shortened
from solo_infer.weights.families import checkpoint_families, find_checkpoint_family
from solo_infer.weights.match_state_dict import (
    build_empty_network,
    check_limits,
    compare,
    describe_architecture,
)
from solo_infer.weights.named_tensors import NamedTensors


def infer_config(tensors: NamedTensors) -> ModelConfig:
    """Infer the architecture from tensors; all other settings are those of the most similar published model.

    The class names are COCO's for 80 classes, and numbered otherwise.

    Args:
        tensors: Tensors of a checkpoint.

    Raises:
        CheckpointError: No known family has such tensors.
    """
    family = find_checkpoint_family(tensors.tensors)
    if family is None:
        raise CheckpointError(_unknown_model(tensors))
    try:
        preset = family.infer_preset(tensors.tensors)
    except ConfigError as error:
        raise CheckpointError(f"{tensors.path} fits no known model: {shortened(error)}") from error
    check_limits(preset.architecture, tensors.path)
    return config_from_preset(preset, categories.unnamed(preset.architecture.num_classes))


def with_class_names(config: ModelConfig, names: tuple[str, ...] | None) -> ModelConfig:
    """Return a configuration with the class names of a file, if their number is that of its classes.

    If the names are the configuration's own or COCO's, their category ids are kept.

    Args:
        config: Configuration of the model.
        names: Class names, None if the file has none.
    """
    if names is None or len(names) != config.architecture.num_classes:
        return config
    # mmdet 1.x wrote COCO's names with underscores, and so did the authors.
    spaced = tuple(name.replace("_", " ") for name in names)
    for known in (config.categories, COCO):
        if known.names in (names, spaced):
            return replace(config, categories=known)
    return replace(config, categories=Categories(names))


def _unknown_model(tensors: NamedTensors) -> str:
    """Return the message for tensors of no known family, with the differences from the most similar model."""
    families = checkpoint_families()
    comparisons = []
    for family in families:
        try:
            architecture = family.infer_preset(tensors.tensors).architecture
            network = build_empty_network(architecture, tensors.path)
        except (CheckpointError, ConfigError):
            continue  # sizes that no model of this family has
        comparisons.append((compare(tensors, network), describe_architecture(architecture)))
    models = ", or of ".join(family.MODELS for family in families)
    message = f"{tensors.path} fits no known model: expected the tensors of {models}."
    if not comparisons:
        return message
    closest, description = max(comparisons, key=lambda item: len(item[0].matching))
    return f"{message} Compared with {description}: {closest.problems}."
