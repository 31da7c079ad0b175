"""The state of a training run in one file, written whole or not at all, read without running code.

Tensors are in safetensors, all else in its metadata as JSON, so that a resumed run repeats an uninterrupted
one bit for bit.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from solo_infer.errors import CheckpointError
from solo_infer.runtime.atomic_files import write_whole

STATE_NAME = "training_state.safetensors"
_FORMAT = "solo_infer_training/1"


def save_state(
    path: Path,
    weights: dict[str, Tensor],
    average: dict[str, Tensor] | None,
    optimizer: Optimizer,
    facts: dict[str, Any],
) -> None:
    """Write a training state.

    Args:
        path: The file.
        weights: The network's state dict.
        average: The moving average of the weights, if there is one.
        optimizer: Its momenta and step counts are kept.
        facts: JSON-ready values: iteration, recipe, scaler, ...
    """
    from safetensors.torch import save_file

    tensors = {f"weights/{name}": tensor for name, tensor in weights.items()}
    tensors |= {f"average/{name}": tensor for name, tensor in (average or {}).items()}
    numbers: dict[str, Any] = {}
    for index, slots in optimizer.state_dict()["state"].items():
        for slot, value in slots.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer/{index}/{slot}"] = value
            else:
                numbers[f"{index}/{slot}"] = value
    metadata = {"format": _FORMAT, "facts": json.dumps({**facts, "optimizer_numbers": numbers})}
    whole = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    write_whole(path, lambda temporary: save_file(whole, temporary, metadata))


def load_state(path: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """Return the tensors by group ("weights", "average", "optimizer") and the facts of a state.

    Raises:
        CheckpointError: The file is no training state, or damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != _FORMAT:
                raise CheckpointError(
                    f"{path} is no training state of ours (format {metadata.get('format')!r})."
                )
            groups: dict[str, dict[str, Tensor]] = {"weights": {}, "average": {}, "optimizer": {}}
            for name in file.keys():
                group, _, rest = name.partition("/")
                groups[group][rest] = file.get_tensor(name)
            return groups, json.loads(metadata["facts"])
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path} is no training state or damaged: {error}.") from error


def restore_optimizer(optimizer: Optimizer, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None:
    """Put momenta and step counts back into a freshly built optimizer."""
    state: dict[int, dict[str, Any]] = {}
    for name, value in [*tensors.items(), *numbers.items()]:
        index, _, slot = name.partition("/")
        state.setdefault(int(index), {})[slot] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


class WeightAverage:
    """The exponential moving average of a network's weights, which forgets its start quickly.

    Args:
        weights: The network's state dict at the start.
        decay: Final decay; it rises from small values as (1 + n) / (10 + n), so that a short run has one too.
    """

    def __init__(self, weights: dict[str, Tensor], decay: float) -> None:
        self.decay = decay
        self.weights = {name: tensor.detach().clone() for name, tensor in weights.items()}

    @torch.no_grad()
    def update(self, weights: dict[str, Tensor], updates: int) -> None:
        """Take in the weights after their ``updates``-th change."""
        decay = min(self.decay, (1 + updates) / (10 + updates))
        for name, tensor in weights.items():
            if tensor.is_floating_point():
                self.weights[name].lerp_(tensor.to(self.weights[name]), 1 - decay)
            else:
                self.weights[name].copy_(tensor)
