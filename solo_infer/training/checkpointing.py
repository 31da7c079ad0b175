"""State of a training run: moving average of the weights, loss scale, and the file that holds them.

The file is written whole or not at all and read without running code: tensors are in safetensors, everything
else in its metadata as JSON. A resumed run repeats an uninterrupted one bit for bit.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from solo_infer.errors import CacheError, CheckpointError
from solo_infer.runtime.atomic_files import write_whole

STATE_NAME = "training_state.safetensors"
INITIAL_SCALE = 2.0**16  # as in torch.amp.GradScaler
GROWTH_INTERVAL = 2000  # consecutive finite steps before the scale doubles, as in torch.amp.GradScaler
_FORMAT_1, _FORMAT_2 = "solo_infer_training/1", "solo_infer_training/2"


class WeightAverage:
    """Exponential moving average of the weights of a network.

    Args:
        weights: State dict of the network at the start.
        decay: Final decay in 0..1. The decay rises as (1 + n) / (10 + n) with the number of updates n, so
            that the average of a short run does not consist of its initial weights.
    """

    def __init__(self, weights: dict[str, Tensor], decay: float) -> None:
        self.decay = decay
        self.weights = {name: tensor.detach().clone() for name, tensor in weights.items()}

    @torch.no_grad()
    def update(self, weights: dict[str, Tensor], updates: int) -> None:
        """Add the weights after an update.

        Args:
            weights: State dict of the network.
            updates: Number of updates so far, this one included.
        """
        decay = min(self.decay, (1 + updates) / (10 + updates))
        for name, tensor in weights.items():
            if tensor.is_floating_point():
                self.weights[name].lerp_(tensor.to(self.weights[name]), 1 - decay)
            else:
                self.weights[name].copy_(tensor)


class LossScaler:
    """Loss scaling for float16: a power of two that halves on overflow and doubles after many finite steps.

    It replaces ``torch.amp.GradScaler``, which divides in float64 on the device. CoreX has no float64 and
    silently returns zeros. Dividing by a power of two is exact in float32.

    Args:
        enabled: Whether to scale. If ``False``, the loss is unchanged and every step is taken.
    """

    def __init__(self, enabled: bool) -> None:
        self.enabled = enabled
        self.factor = INITIAL_SCALE if enabled else 1.0
        self.good_steps = 0

    def scale(self, loss: Tensor) -> Tensor:
        """Return the loss to backpropagate."""
        return loss * self.factor if self.enabled else loss

    def unscale(self, parameters: Iterable[Parameter]) -> None:
        """Divide the gradients of parameters by the scale, in place."""
        if not self.enabled:
            return
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad.mul_(1.0 / self.factor)

    def step(self, optimizer: Optimizer, norm: float) -> None:
        """Take a step unless the gradients overflowed, and adapt the scale.

        Args:
            optimizer: Optimizer of the parameters.
            norm: Norm of all gradients; not finite if one of them overflowed.
        """
        if self.enabled and not math.isfinite(norm):
            self.factor, self.good_steps = self.factor / 2, 0
            return
        optimizer.step()
        self.good_steps += 1
        if self.enabled and self.good_steps == GROWTH_INTERVAL:
            self.factor, self.good_steps = self.factor * 2, 0

    def state_dict(self) -> dict[str, Any]:
        """Return the state, empty if scaling is disabled."""
        return {"scale": self.factor, "good_steps": self.good_steps} if self.enabled else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state."""
        self.factor, self.good_steps = state["scale"], state.get("good_steps", 0)


@contextlib.contextmanager
def written(path: Path) -> Iterator[None]:
    """Raise ``CacheError``, which names the path, for errors of writing a file or directory of a run."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise CacheError(
            f"{path} cannot be written: {reason}. Free some space or make the directory writable, and resume "
            "the run, whose last saved state is intact; or choose another directory."
        ) from error


def save_state(
    path: Path,
    weights: dict[str, Tensor],
    average: dict[str, Tensor] | None,
    optimizer: Optimizer,
    parameter_names: Sequence[str],
    facts: dict[str, Any],
) -> None:
    """Write the state of a run.

    Args:
        path: File to write.
        weights: State dict of the network.
        average: Moving average of the weights, if there is one.
        optimizer: Optimizer, of which the momenta and step counts are saved.
        parameter_names: Names of the parameters of the optimizer, in its order.
        facts: JSON-ready values: iteration, recipe, state of the loss scaler.

    Raises:
        CacheError: The file cannot be written; an existing one is unchanged.
    """
    tensors = {f"weights/{name}": tensor for name, tensor in weights.items()}
    tensors |= {f"average/{name}": tensor for name, tensor in (average or {}).items()}
    numbers: dict[str, Any] = {}
    for index, entries in optimizer.state_dict()["state"].items():
        for key, value in entries.items():
            name = f"{parameter_names[index]}/{key}"
            if isinstance(value, Tensor):
                tensors[f"optimizer/{name}"] = value
            else:
                numbers[name] = value
    metadata = {"format": _FORMAT_2, "facts": json.dumps({**facts, "optimizer_numbers": numbers})}
    copies = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    with written(path):
        write_whole(path, lambda temporary: save_file(copies, temporary, metadata))


def load_state(path: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """Return the tensors by group ("weights", "average", "optimizer") and the facts of a saved state.

    Raises:
        CheckpointError: The file is damaged or not a training state.
    """
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") not in (_FORMAT_1, _FORMAT_2):
                raise CheckpointError(
                    f"{path} has format {metadata.get('format')!r}: expected a training state, {_FORMAT_2!r}."
                )
            groups: dict[str, dict[str, Tensor]] = {"weights": {}, "average": {}, "optimizer": {}}
            for key in file.keys():
                group, _, name = key.partition("/")
                groups[group][name] = file.get_tensor(key)
            return groups, json.loads(metadata["facts"])
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{path} is damaged or not a training state ({error}): remove it to start the run again."
        ) from error


def restore_optimizer(
    optimizer: Optimizer,
    parameter_names: Sequence[str],
    tensors: dict[str, Tensor],
    numbers: dict[str, Any],
) -> None:
    """Load momenta and step counts into a new optimizer.

    Args:
        optimizer: Optimizer of the same parameters.
        parameter_names: Names of the parameters of the optimizer, in its order.
        tensors: Group "optimizer" of ``load_state``.
        numbers: Entry "optimizer_numbers" of the facts.
    """
    index_of = {name: index for index, name in enumerate(parameter_names)}
    index_of |= {str(old): index_of[name] for old, name in enumerate(_order_of_format_1(parameter_names))}
    state: dict[int, dict[str, Any]] = {}
    for name, value in [*tensors.items(), *numbers.items()]:
        parameter, _, key = name.partition("/")
        state.setdefault(index_of[parameter], {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _order_of_format_1(parameter_names: Sequence[str]) -> list[str]:
    """Return names of parameters in the order of format 1, which identified parameters by their index.

    At that time ``mask_convs`` was the last layer of Decoupled Light heads.
    """
    is_light = any(name.startswith("mask_head.conv_mask_list_x.") for name in parameter_names)
    return sorted(parameter_names, key=lambda name: is_light and name.startswith("mask_head.mask_convs."))
