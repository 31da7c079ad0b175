"""SHA-256 of a model: equal for equal configurations and weights, on every machine."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

import torch
from torch import Tensor

from solo_infer.config import ModelConfig


def model_digest(config: ModelConfig, tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of a configuration and weights, 64 hex digits; the order of the weights is ignored.

    Args:
        config: Configuration of the model.
        tensors: Weights by name, on any device.
    """
    digest = hashlib.sha256(json.dumps(config.to_dict(), sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        values = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(values.view(torch.uint8).numpy().data)
    return digest.hexdigest()
