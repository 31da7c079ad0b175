"""State dicts under our names that remember the names in their file."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from solo_infer.errors import CheckpointError
from solo_infer.runtime.messages import quoted
from solo_infer.weights.families import find_checkpoint_family
from solo_infer.weights.key_mapping import KeyMap, mmdet_name, strip_wrappers

_PLAIN_NAME = re.compile(r"[\w.]{1,80}", re.ASCII)


@dataclass(frozen=True)
class NamedTensors:
    """Tensors of a checkpoint by our names.

    Attributes:
        tensors: {our name: tensor}.
        path: Path of the file, for error messages.
        file_names: {our name: name in the file}. Defaults to our names.
    """

    tensors: Mapping[str, Tensor]
    path: Path | str = "The state dict"
    file_names: Mapping[str, str] = field(default_factory=dict)

    def display_name(self, name: str) -> str:
        """Return the name of a tensor in an error message: the one in the file.

        A tensor that the file lacks is shown with our name, or with mmdet's if the file has other names than
        ours.
        """
        is_foreign = any(ours != theirs for ours, theirs in self.file_names.items())
        return quoted_name(self.file_names.get(name, mmdet_name(name) if is_foreign else name))


def translate(tensors: Mapping[str, Tensor], path: Path | str) -> NamedTensors:
    """Return the tensors of a file under our names, with their values in our order.

    Args:
        tensors: {name in the file: tensor}.
        path: Path of the file.

    Raises:
        CheckpointError: Two tensors of the file have one name here.
    """
    key_map = _key_map_of(tensors)
    file_names: dict[str, str] = {}
    translated: dict[str, Tensor] = {}
    for file_name, tensor in tensors.items():
        name = key_map.rename(strip_wrappers(file_name))
        if name is None:
            continue
        if name in file_names:
            both = f"{quoted_name(file_names[name])} and {quoted_name(file_name)}"
            raise CheckpointError(f"{path} holds a tensor twice: as {both}.")
        file_names[name] = file_name
        translated[name] = key_map.transform(name, tensor)
    return NamedTensors(translated, path, file_names)


def map_keys(names: Iterable[str]) -> dict[str, str]:
    """Return {name in the file: our name}, without the tensors that no network reads."""
    names = list(names)
    key_map = _key_map_of(names)
    renamed = {name: key_map.rename(strip_wrappers(name)) for name in names}
    return {name: ours for name, ours in renamed.items() if ours is not None}


def _key_map_of(names: Iterable[str]) -> KeyMap:
    plain = [strip_wrappers(name) for name in names]
    family = find_checkpoint_family(plain)
    return KeyMap() if family is None else family.key_map(plain)


def quoted_name(name: str) -> str:
    """Return the name of a tensor or class in a file for a message: as it is, or quoted if it is unusual."""
    return name if _PLAIN_NAME.fullmatch(name) else quoted(name)
