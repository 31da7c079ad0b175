"""Models of any family."""

from __future__ import annotations

from solo_infer.config import ModelConfig
from solo_infer.config.families import family_of
from solo_infer.models.base import SegmentationNetwork
from solo_infer.segmenters.base import Segmenter

load_model = Segmenter.from_pretrained
"""Load a model of any family. Takes the arguments of ``Segmenter.from_pretrained``."""


def build_segmenter(config: ModelConfig, network: SegmentationNetwork) -> Segmenter:
    """Return the model of a configuration and its network.

    Args:
        config: Configuration of the model.
        network: Network of ``config.architecture``, in eval mode.
    """
    segmenter: type[Segmenter] = family_of(config.architecture).load("segmenter")
    return segmenter(config, network)
