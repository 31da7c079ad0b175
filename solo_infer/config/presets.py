"""Published settings of every family, by name."""

from __future__ import annotations

from solo_infer.config.architecture import Preset
from solo_infer.config.categories import COCO, Categories
from solo_infer.config.families import FAMILIES
from solo_infer.config.model import ModelConfig
from solo_infer.config.suggestions import did_you_mean
from solo_infer.config.validation import bounded_repr
from solo_infer.errors import ConfigError


def config_from_preset(preset: Preset, categories: Categories = COCO) -> ModelConfig:
    """Return the configuration of a preset for other classes.

    Args:
        preset: Published settings.
        categories: Class names; their number is the number of classes.
    """
    architecture = preset.architecture.with_num_classes(len(categories))
    return ModelConfig(architecture, preset.preprocess, preset.postprocess, categories)


PRESETS: dict[str, ModelConfig] = {
    name: config_from_preset(preset)
    for family in FAMILIES.values()
    for name, preset in family.presets.items()
}


def find_preset(name: str) -> ModelConfig:
    """Return a preset by name, e.g. "decoupled_light_r50".

    Raises:
        ConfigError: There is no such preset; the message lists them.
    """
    if name not in PRESETS:
        hint = did_you_mean(name, PRESETS)
        raise ConfigError(f"No preset {bounded_repr(name)}. {hint}Presets: {', '.join(PRESETS)}.")
    return PRESETS[name]
