"""Models of any family."""

from __future__ import annotations

import os
from typing import Any

import torch

from solo_infer.config import BasePostprocessConfig, ModelConfig
from solo_infer.config.families import family_of
from solo_infer.runtime.device import resolve_device, resolve_dtype
from solo_infer.segmenters.base import Segmenter
from solo_infer.weights.load import load_checkpoint


def build_segmenter(config: ModelConfig, network: Any) -> Segmenter:
    """Return the model of a configuration and its network.

    Args:
        config: Configuration of the model.
        network: Network of ``config.architecture``.
    """
    segmenter: type[Segmenter] = family_of(config.architecture).load("segmenter")
    return segmenter(config, network)


def load_model(
    name_or_path: str | os.PathLike[str],
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype = torch.float32,
    thresholds: BasePostprocessConfig | None = None,
    config: ModelConfig | None = None,
    revision: str = "main",
    offline: bool | None = None,
) -> Segmenter:
    """Load a model of whatever family its checkpoint is of.

    Arguments and errors are those of ``SOLO.from_pretrained``, but for that of a wrong family.
    """
    where, kind = resolve_device(device), resolve_dtype(dtype)
    checkpoint = load_checkpoint(name_or_path, config=config, revision=revision, offline=offline)
    segmenter: type[Segmenter] = family_of(checkpoint.config.architecture).load("segmenter")
    model = segmenter.from_checkpoint(checkpoint).to(where, kind)
    return model.with_thresholds(thresholds) if thresholds is not None else model
