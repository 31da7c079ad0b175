"""Upgrade of configurations that earlier versions wrote (format "solo_infer/1")."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from solo_infer.config.solo import LEVEL_STRIDES
from solo_infer.config.validation import bounded_repr, require

_FORMAT_1, _FORMAT_2 = "solo_infer/1", "solo_infer/2"
_YOLACT_VARIANTS = {"yolact": "mmdet", "yolact_author": "original"}


def upgrade(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration of format 1 in format 2; any other one unchanged, as a copy.

    Raises:
        ConfigError: It names strides that no SOLO network has.
    """
    sections = dict(values)
    if sections.get("format") != _FORMAT_1:
        return sections
    sections["format"] = _FORMAT_2
    architecture, preprocessing = sections.get("architecture", {}), sections.get("preprocessing")
    if isinstance(preprocessing, Mapping) and "whole_values" in preprocessing:
        sections["preprocessing"] = _renamed(preprocessing, "whole_values", "round_to_uint8")
    if not isinstance(architecture, Mapping):
        return {**sections, "family": "solo"}  # reading it reports the wrong type
    variant = _YOLACT_VARIANTS.get(str(architecture.get("head")))
    if variant is not None:
        fields = {name: value for name, value in architecture.items() if name != "head"}
        return {**sections, "family": "yolact", "architecture": {"variant": variant, **fields}}
    strides = architecture.get("strides", LEVEL_STRIDES)
    fixed = isinstance(strides, list | tuple) and tuple(strides) == LEVEL_STRIDES
    require(
        fixed,
        f"strides={bounded_repr(strides)}: expected {LEVEL_STRIDES}, which the levels of every SOLO have.",
    )
    fields = {name: value for name, value in architecture.items() if name != "strides"}
    return {**sections, "family": "solo", "architecture": fields}


def _renamed(values: Mapping[str, Any], old: str, new: str) -> dict[str, Any]:
    return {new if name == old else name: value for name, value in values.items()}
