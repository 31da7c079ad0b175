"""Checkpoints of the model families: one module per family, listed in ``solo_infer.config.families``.

To add a family, write a module that provides ``CheckpointFamily`` and name it in the family's row of
``FAMILIES``. No other module of ``solo_infer.weights`` depends on a family.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Protocol, runtime_checkable

from torch import Tensor

from solo_infer.config.architecture import ArchitectureConfig, Preset
from solo_infer.config.families import FAMILIES, family_of
from solo_infer.weights.key_mapping import KeyMap


@runtime_checkable
class CheckpointFamily(Protocol):
    """Contract of the module of a family.

    Attributes:
        MODELS: Names of its models and backbones, for error messages.
        LIMITS: {field of the architecture: greatest supported value}, far beyond every real model. They keep
            a hostile file from making us build a network for hours.
    """

    MODELS: str
    LIMITS: Mapping[str, int]

    def recognizes(self, names: Collection[str]) -> bool:
        """Return whether tensors belong to this family.

        Args:
            names: Names in a file, of any known writer, without the prefixes of wrapping modules.
        """

    def key_map(self, names: Collection[str]) -> KeyMap:
        """Return the key map of the writer of a file of this family.

        Args:
            names: As in ``recognizes``.
        """

    def infer_preset(self, state_dict: Mapping[str, Tensor]) -> Preset:
        """Infer the architecture from tensors, and take all else from the most similar published model.

        Every size is that of most tensors that show it. The few that disagree are then reported when the
        state dict is matched with the network.

        Args:
            state_dict: Tensors by our names, of any network.

        Raises:
            ConfigError: No such architecture exists.
        """


def checkpoint_families() -> list[CheckpointFamily]:
    """Return the modules of all registered families, in their order."""
    return [family.load("checkpoints") for family in FAMILIES.values()]


def checkpoint_family_of(architecture: ArchitectureConfig) -> CheckpointFamily:
    """Return the module of the family of an architecture."""
    module: CheckpointFamily = family_of(architecture).load("checkpoints")
    return module


def find_checkpoint_family(names: Collection[str]) -> CheckpointFamily | None:
    """Return the family that recognizes the names of a file's tensors, None if no family does."""
    return next((family for family in checkpoint_families() if family.recognizes(names)), None)
