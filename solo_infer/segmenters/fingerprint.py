"""Fingerprint of a model: equal for equal weights and settings, on every machine."""

from __future__ import annotations

import hashlib
import json

import torch

from solo_infer.segmenters.loaded_model import LoadedModel


def fingerprint(model: LoadedModel) -> str:
    """Return the SHA-256 of the weights and the configuration of a model, 64 hex digits.

    The dtype of the network counts; its device, and the classes that ``only`` has selected, do not.

    Args:
        model: Model.
    """
    digest = hashlib.sha256(json.dumps(model.config.to_dict(), sort_keys=True).encode())
    for name, tensor in sorted(model.network.state_dict().items()):
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        values = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(values.view(torch.uint8).numpy())
    return digest.hexdigest()
