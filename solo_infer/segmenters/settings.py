"""Settings of one call: thresholds, lowest score, input size, NMS across classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from solo_infer.config import BasePostprocessConfig, ModelConfig
from solo_infer.config.validation import require_instance
from solo_infer.errors import ConfigError, ResultError
from solo_infer.results.result import as_fraction


def change_settings(
    config: ModelConfig,
    thresholds: BasePostprocessConfig | None = None,
    min_score: float | None = None,
    input_size: int | Sequence[int] | None = None,
    across_classes: bool | None = None,
) -> ModelConfig:
    """Return the configuration of a model with the settings that are not None; see ``Segmenter.__call__``.

    Raises:
        ConfigError: A setting is of the wrong type or out of range, or the thresholds are of another family.
    """
    if thresholds is not None:
        config = replace(config, thresholds=thresholds)
    settings = config.thresholds
    if across_classes is not None:
        require_instance("across_classes", across_classes, bool)
        settings = replace(settings, across_classes=across_classes)
    if min_score is not None:
        settings = settings.with_min_score(check_min_score(min_score))
    preprocessing = config.preprocessing
    if input_size is not None:
        preprocessing = preprocessing.with_input_size(input_size)
    return replace(config, thresholds=settings, preprocessing=preprocessing)


def check_min_score(min_score: float) -> float:
    """Return a score as float; raise ``ConfigError`` unless it is a number in 0..1."""
    try:
        return as_fraction("min_score", min_score)
    except ResultError as error:
        raise ConfigError(str(error)) from None
