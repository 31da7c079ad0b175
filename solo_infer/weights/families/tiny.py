"""Checkpoints of Tiny, which only this library writes."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import cast

from torch import Tensor

from solo_infer.config.architecture import Preset
from solo_infer.config.tiny import SHUFFLENET_CHANNELS, TINY_PRESETS, TinyConfig
from solo_infer.models.tiny.masks import NUM_SHAPE_TERMS
from solo_infer.weights.families.tensor_sizes import first_dimension
from solo_infer.weights.key_mapping import KeyMap

MODELS = f"Tiny on {', '.join(SHUFFLENET_CHANNELS)}"
LIMITS = {
    "num_classes": 1 << 16,
    "pyramid_channels": 1 << 12,
    "mask_channels": 1 << 12,
    "mask_features": 1 << 12,
    "distance_bins": 1 << 10,
}

_CONTEXT_BLOCK = re.compile(r"mask_branch\.context\.(\d{1,9})\.")
_MAX_CONTEXT_BLOCKS = 64  # the greatest number of TinyConfig
_HEAD = re.compile(r"head\.(?:class_tower|class_out|kernel_out)\.|mask_branch\.")


def recognizes(names: Collection[str]) -> bool:
    """Return whether a file has tensors of a Tiny head."""
    return any(_HEAD.match(name) for name in names)


def key_map(names: Collection[str]) -> KeyMap:
    """Return the key map of this library, which renames nothing."""
    return KeyMap(rules=())


def infer_preset(state_dict: Mapping[str, Tensor]) -> Preset:
    """Infer backbone and sizes from tensors; see ``CheckpointFamily``."""
    preset = TINY_PRESETS["tiny"]
    published = cast(TinyConfig, preset.architecture)

    def size(pattern: str, default: int) -> int:
        return max(first_dimension(state_dict, pattern, default), 1)

    half_width = size(r"backbone\.stages\.0\.0\.left_pointwise\.\w+", 0)
    backbone = next(
        (name for name, widths in SHUFFLENET_CHANNELS.items() if widths[1] == 2 * half_width),
        published.backbone,
    )
    kernels = size(r"head\.kernel_out\.\d+\.\w+", published.mask_features + NUM_SHAPE_TERMS)
    distances = size(r"head\.distance_out\.\d+\.\w+", 4 * published.distance_bins)
    blocks = (int(match[1]) for match in map(_CONTEXT_BLOCK.match, state_dict) if match)
    architecture = replace(
        published,
        backbone=backbone,
        num_classes=size(r"head\.class_out\.\d+\.\w+", published.num_classes),
        pyramid_channels=size(r"neck\.lateral\.\d+\.\w+", published.pyramid_channels),
        mask_channels=size(r"mask_branch\.(?:coarse|fine)\d\.\w+", published.mask_channels),
        mask_features=max(kernels - NUM_SHAPE_TERMS, 1),
        mask_context_blocks=min(max(blocks, default=-1) + 1, _MAX_CONTEXT_BLOCKS),
        distance_bins=max(distances // 4, 2),
    )
    return replace(preset, architecture=architecture)
