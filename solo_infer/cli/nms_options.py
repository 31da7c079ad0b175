"""The options ``--nms`` and ``--nms-iou`` of several verbs."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from solo_infer.config import PostprocessConfig
from solo_infer.errors import ConfigError

if TYPE_CHECKING:
    from solo_infer.segmenters.base import Segmenter

_Model = TypeVar("_Model", bound="Segmenter")


def with_chosen_nms(model: _Model, options: argparse.Namespace) -> _Model:
    """Return the model with the NMS that was asked for.

    Raises:
        ConfigError: The model knows only one, or an IoU was given for an NMS without.
    """
    settings = model.config.thresholds
    if options.nms is None and options.nms_iou is None:
        return model
    if not isinstance(settings, PostprocessConfig):
        raise ConfigError("--nms and --nms-iou are for SOLO: this model has an NMS of its own.")
    if options.nms is not None:
        settings = replace(settings, nms=options.nms)
    if options.nms_iou is not None:
        if settings.nms != "greedy":
            raise ConfigError("--nms-iou is for greedy NMS: give --nms greedy too.")
        settings = replace(settings, nms_iou=options.nms_iou)
    return model.with_thresholds(settings)
