"""Match a state dict with a network and report every tensor that does not fit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import torch
from torch import Tensor

from solo_infer.config import ArchitectureConfig
from solo_infer.errors import CheckpointError
from solo_infer.models import build_network
from solo_infer.models.base import SegmentationNetwork
from solo_infer.runtime.messages import quoted, shortened
from solo_infer.weights.families import checkpoint_family_of
from solo_infer.weights.named_tensors import NamedTensors

MAX_LISTED = 5  # names in each list of an error message

_MAX_CHARACTERS = 400  # in each of these lists
_COUNTER = ".num_batches_tracked"
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_INTEGERS = (torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64)


@dataclass(frozen=True)
class Comparison:
    """Result of comparing a state dict with a network.

    Attributes:
        matching: Tensors that the network takes, unconverted, in its order.
        problems: Description of all others, "" if there is none.
    """

    matching: dict[str, Tensor]
    problems: str


def match_state_dict(tensors: NamedTensors, network: SegmentationNetwork) -> dict[str, Tensor]:
    """Return exactly the tensors of a network, in its order and dtypes; no two share memory.

    Args:
        tensors: Tensors of a checkpoint.
        network: Network on any device, also on "meta". It is not changed.

    Raises:
        CheckpointError: A tensor is missing or unknown, or has another shape or dtype; the message names the
            first ones.
    """
    comparison = compare(tensors, network)
    if comparison.problems:
        description = describe_architecture(network.config)
        raise CheckpointError(f"{tensors.path} does not fit {description}: {comparison.problems}.")
    # Not before: a tensor of a wrong shape could be one number that is expanded to a terabyte.
    dtypes = {name: parameter.dtype for name, parameter in network.state_dict().items()}
    return unshare_storage({name: tensor.to(dtypes[name]) for name, tensor in comparison.matching.items()})


def compare(tensors: NamedTensors, network: SegmentationNetwork) -> Comparison:
    """Compare the names, shapes and kinds of numbers of tensors with those of a network."""
    expected = network.state_dict()
    # Older writers omit this counter, which inference does not read.
    zero = torch.zeros((), dtype=torch.int64, device="cpu")
    counters = {name: zero for name in expected if name.endswith(_COUNTER)}
    loaded = {**counters, **tensors.tensors}
    matching: dict[str, Tensor] = {}
    misfits, missing = [], []
    for name, parameter in expected.items():
        if name not in loaded:
            missing.append(f"{tensors.display_name(name)} {_shape(parameter)} is missing")
        elif difference := _difference(loaded[name], parameter):
            misfits.append(f"{tensors.display_name(name)} is {difference}")
        else:
            matching[name] = loaded[name]
    unknown = [
        f"{tensors.display_name(name)} {_shape(tensor)} is unknown"
        for name, tensor in loaded.items()
        if name not in expected
    ]
    lists = (misfits, unknown, missing)
    return Comparison(matching, "; ".join(_shortened(problems) for problems in lists if problems))


def build_empty_network(architecture: ArchitectureConfig, path: Path | str) -> SegmentationNetwork:
    """Return a network without memory for its weights (on "meta").

    Args:
        architecture: Architecture of any family.
        path: Path of the checkpoint, for error messages.

    Raises:
        CheckpointError: The network is larger than any supported one.
    """
    check_limits(architecture, path)
    try:
        network: SegmentationNetwork = build_network(architecture, device="meta")
    except (RuntimeError, TypeError, ValueError) as error:  # PyTorch cannot represent such sizes
        raise CheckpointError(
            f"{path}: no network can be built with {shortened(architecture, 600)}: {shortened(error)}"
        ) from error
    return network


def check_limits(architecture: ArchitectureConfig, path: Path | str) -> None:
    """Raise CheckpointError if an architecture exceeds the limits of its family."""
    for name, limit in checkpoint_family_of(architecture).LIMITS.items():
        value = getattr(architecture, name)
        if (max(value) if isinstance(value, tuple) else value) > limit:
            raise CheckpointError(
                f"{path} is of a model with {name}={quoted(value)}: at most {limit} is supported."
            )


def describe_architecture(architecture: ArchitectureConfig) -> str:
    """Return an architecture in words, for error messages."""
    return f"{architecture.name} on {architecture.backbone} with {architecture.num_classes} classes"


def unshare_storage(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return contiguous tensors of which no two share memory, copying only those that do."""
    used: set[int] = set()
    unshared = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().contiguous()
        if tensor.untyped_storage().data_ptr() in used:
            tensor = tensor.clone()
        used.add(tensor.untyped_storage().data_ptr())
        unshared[name] = tensor
    return unshared


def _difference(tensor: Tensor, expected: Tensor) -> str:
    if tensor.shape != expected.shape:
        return f"{_shape(tensor)} instead of {_shape(expected)}"
    if tensor.dtype not in (_FLOATS if expected.is_floating_point() else _INTEGERS):
        return f"{tensor.dtype} instead of {expected.dtype}"
    return ""


def _shape(tensor: Tensor) -> str:
    return quoted(tuple(tensor.shape))


def _shortened(problems: list[str]) -> str:
    """Return the first problems, fewer if they are long."""
    lengths = accumulate(len(problem) for problem in problems[:MAX_LISTED])
    listed = problems[: max(sum(length <= _MAX_CHARACTERS for length in lengths), 1)]
    more = [f"and {len(problems) - len(listed)} more"] if len(problems) > len(listed) else []
    return "; ".join(listed + more)
